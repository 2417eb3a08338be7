"""Pickles that hold plain data, and nothing that could run: the only place that reads one from outside.

First every opcode is looked at, without being carried out: those that build None, booleans, numbers, text,
bytes, lists and dicts are known, and not one that names a class or a function, calls, or sets state. Nor one
that builds tuples: hashing those that share their parts takes for ever. Their number is bounded, and so are
the places of the memo, for which an unpickler takes memory by the highest number it is told. Then Python's
own unpickler reads it, and is told to refuse every name. That alone would not do: a name that `copyreg` has a
code for, once resolved by anybody, comes out of a cache without `find_class` being asked.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any, NoReturn

from reward_services.errors import RequestMalformed, TooLarge

MOST_OPCODES = 16_384
"""A picture with its prompt takes about four, and one of GenEval's descriptions about thirty."""

_DATA = (
    {"PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE"}
    | {"BININT", "BININT1", "BININT2", "BINFLOAT"}
    | {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
    | {"EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"}
    | {"MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}
)
_PLACES = {"BINPUT", "LONG_BINPUT"}
# What Python's unpickler is known to raise on bytes that are no pickle.
_NO_PICKLE = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    ValueError,
)


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        """Admits no name, should `_check` ever let one pass."""
        raise _not_data("a name")

    def persistent_load(self, pid: Any) -> NoReturn:
        """Admits no reference either."""
        raise _not_data("a reference")


def unpickled(body: bytes) -> Any:
    """What a pickle holds. Lists may hold themselves and share parts: check types, walk nothing.

    Raises:
        RequestMalformed: it is none, or holds more than plain data.
        TooLarge: it has more than `MOST_OPCODES` opcodes.
    """
    try:
        _check(body)
        return _DataUnpickler(io.BytesIO(body)).load()
    except _NO_PICKLE as error:
        raise RequestMalformed(f"the body is no pickle that can be read: {type(error).__name__}") from error


def _check(body: bytes) -> None:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(body), start=1):
        if opcode.name not in _DATA:
            raise _not_data(opcode.name)
        place = int(argument) if opcode.name in _PLACES and argument else 0
        if max(count, place) > MOST_OPCODES:
            raise TooLarge(f"the pickle has more than {MOST_OPCODES} opcodes; send fewer items")


def _not_data(found: str) -> RequestMalformed:
    return RequestMalformed(
        f"the pickle has {found}; only dicts, lists, text, bytes and numbers are read, no NumPy arrays: "
        "send prompts.tolist()"
    )


def pickled(answer: dict[str, list[float]]) -> bytes:
    """An answer as a pickle of protocol 4, which every Python since 3.4 reads."""
    return pickle.dumps(answer, protocol=4)
