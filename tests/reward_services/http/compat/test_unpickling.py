"""Pickles of plain data are read; what could run anything, or eat the machine, is refused before it does."""

import copyreg
import io
import os
import pickle
import pickletools
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from reward_services import RequestMalformed, RewardError, TooLarge
from reward_services.http.compat.unpickling import MOST_OPCODES, _DataUnpickler, pickled, unpickled

REQUEST = {"images": [b"\xff\xd8\xff" + bytes(300), b"b"], "prompts": ["a", "\u00e9" * 300], "metadata": {}}
GENEVAL = {
    "images": [b"a"],
    "meta_datas": [{"tag": "counting", "include": [{"class": "cat", "count": 300, "position": ["left", 0]}]}],
    "only_strict": True,
    "more": [None, False, -5, 70000, 1.5],
}
EXTENSION = 240  # a code of those that are free for private use


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._folder,)


class AttackByState:
    """Makes it when its state is set: a class, a new object of it and BUILD, as most objects are pickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, str]) -> None:
        os.mkdir(state["folder"])


def text(folder: str) -> bytes:
    return b"X" + len(folder).to_bytes(4, "little") + folder.encode()


def by_protocol(protocol: int, folder: str) -> bytes:
    return pickle.dumps(Attack(folder), protocol)


MKDIR = b"cos\nmkdir\n"
# Every way to name and to call there is; each of them makes a folder when Python unpickles it.
ATTACKS: dict[str, Callable[[str], bytes]] = {
    **{f"protocol {protocol}": partial(by_protocol, protocol) for protocol in range(6)},
    "newobj and build": lambda folder: pickle.dumps(AttackByState(folder)),
    "global": lambda folder: b"(" + text(folder) + b"t0" + MKDIR + text(folder) + b"\x85R.",
    "stack global": lambda folder: text("os") + text("mkdir") + b"\x93" + text(folder) + b"\x85R.",
    "inst": lambda folder: b"(" + text(folder) + b"ios\nmkdir\n.",
    "obj": lambda folder: b"(" + MKDIR + text(folder) + b"o.",
    "within a request": lambda folder: pickle.dumps({"images": [b"a", Attack(folder)], "prompts": ["a"]}),
    "as a key": lambda folder: pickle.dumps({"images": [], Attack(folder): 1}),
    "dropped": lambda folder: MKDIR + text(folder) + b"\x85R0}.",
    "out of the memo": lambda folder: MKDIR + b"q\x000h\x00" + text(folder) + b"\x85R.",
}
BY_CODE: dict[str, Callable[[str], bytes]] = {
    "ext1": lambda folder: b"\x82\xf0" + text(folder) + b"\x85R.",
    "ext2": lambda folder: b"\x83\xf0\x00" + text(folder) + b"\x85R.",
    "ext4": lambda folder: b"\x84\xf0\x00\x00\x00" + text(folder) + b"\x85R.",
}


@pytest.fixture(autouse=True)
def extension() -> Iterator[None]:
    """os.mkdir under a code, as a library may have registered it."""
    copyreg.add_extension("os", "mkdir", EXTENSION)
    yield
    copyreg.remove_extension("os", "mkdir", EXTENSION)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("sent", [REQUEST, GENEVAL, {"images": [b"a"]}, [], "a", None])
def test_plain_data_is_read(sent: Any, protocol: int) -> None:
    assert unpickled(pickle.dumps(sent, protocol)) == sent


def test_what_is_answered_is_plain_data() -> None:
    answer = {"scores": [0.5, -1.0]}
    assert pickle.loads(pickled(answer)) == unpickled(pickled(answer)) == answer


@pytest.mark.parametrize("attack", [*ATTACKS.values(), *BY_CODE.values()], ids=[*ATTACKS, *BY_CODE])
def test_nothing_runs(attack: Callable[[str], bytes], tmp_path: Path) -> None:
    folder = tmp_path / "made"
    payload = attack(str(folder))
    pickle.loads(payload)
    assert folder.exists(), "this is no attack"
    folder.rmdir()
    with pytest.raises(RequestMalformed, match="only dicts, lists, text, bytes and numbers"):
        unpickled(payload)
    assert not folder.exists()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_the_second_wall_holds_without_the_first(attack: Callable[[str], bytes], tmp_path: Path) -> None:
    """But for codes: those that were resolved once are in a cache, and no unpickler is asked any more."""
    folder = tmp_path / "made"
    with pytest.raises(RequestMalformed):
        _DataUnpickler(io.BytesIO(attack(str(folder)))).load()
    assert not folder.exists()


@pytest.mark.parametrize("payload", [b"Pos.mkdir\n.", b"\x80\x02" + text("os.mkdir") + b"Q."])
def test_no_reference_is_followed(payload: bytes) -> None:
    for read in (unpickled, lambda body: _DataUnpickler(io.BytesIO(body)).load()):
        with pytest.raises(RequestMalformed):
            read(payload)


def test_an_array_is_refused_with_what_to_send_instead() -> None:
    import numpy as np

    for protocol in range(6):
        with pytest.raises(RequestMalformed, match=r"send prompts\.tolist\(\)"):
            unpickled(pickle.dumps({"images": [], "prompts": np.array(["a"])}, protocol))


def nested(make: Callable[[bytes], bytes], depth: int) -> bytes:
    body = b"]"
    for _ in range(depth):
        body = make(body)
    return b"\x80\x04" + body + b"."


BOMBS = {
    "a place far out in the memo": b"\x80\x04]r\xff\xff\xff\x7f.",
    "a text that is not there": b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b"a.",
    "bytes that are not there": b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"a.",
    "an array that is not there": b"\x80\x05\x96" + (2**60).to_bytes(8, "little") + b"a.",
    "a frame that is not there": b"\x80\x04\x95" + (2**60).to_bytes(8, "little") + b"].",
    "many lists": b"\x80\x04" + b"]" * 10**7 + b".",
    "many marks": b"\x80\x04" + b"(" * 10**7 + b".",
    "many places": b"\x80\x04]" + b"\x94" * 10**7 + b".",
    "copies": b"\x80\x04]" + b"2" * 10**7 + b".",
    "a number of a million digits": b"\x80\x04\x8b" + (10**6).to_bytes(4, "little") + b"\1" * 10**6 + b".",
    "a number in a million letters": b"I" + b"9" * 10**6 + b"\n.",
    # Tuples of the same two tuples, thirty deep: as a key its hash takes 2 ** 30 steps.
    "laughing keys": b"\x80\x04}N" + b"2\x86" * 30 + b"Ns.",
    "laughing keys by the memo": b"\x80\x04}N" + b"q\x00h\x00\x86" * 30 + b"Ns.",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_at_once_and_take_no_memory(bomb: bytes) -> None:
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises((RequestMalformed, TooLarge)):
        unpickled(bomb)
    took_s, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(bomb) + 2**20
    assert took_s < 2


def test_lists_that_share_their_parts_stay_as_small_as_they_are_sent() -> None:
    """A billion laughs, a list within itself, and one five thousand deep: read as they are."""
    laughs = b"\x80\x04" + b"]" + b"".join(b"q%c](" % n + b"h%c" % n * 10 + b"e" for n in range(30)) + b"."
    level: Any = unpickled(laughs)
    for _ in range(30):
        assert len({id(one) for one in level}) == 1
        level = level[0]
    itself: Any = unpickled(b"\x80\x04]q\x00h\x00a.")
    assert itself[0] is itself
    deep: Any = unpickled(nested(lambda body: b"]" + body + b"a", 5000))
    assert len(deep) == 1


def test_as_many_opcodes_as_are_read_and_one_more() -> None:
    rest = len(list(pickletools.genops(b"\x80\x04](e.")))
    assert len(unpickled(b"\x80\x04](" + b"N" * (MOST_OPCODES - rest) + b"e.")) == MOST_OPCODES - rest
    with pytest.raises(TooLarge, match="send fewer items"):
        unpickled(b"\x80\x04](" + b"N" * (MOST_OPCODES - rest + 1) + b"e.")


def test_what_is_no_pickle_is_refused_whatever_it_is() -> None:
    """Every end that a pickle can be cut to, and thousands that were damaged: data or a refusal."""
    whole = pickle.dumps(GENEVAL)
    for end in range(len(whole)):
        with pytest.raises(RequestMalformed):
            unpickled(whole[:end])
    chance = random.Random(0)
    refused = 0
    for _ in range(5000):
        torn = bytearray(pickle.dumps(GENEVAL, chance.choice([3, 4])))
        for _ in range(chance.randint(1, 4)):
            torn[chance.randrange(len(torn))] = chance.choice(
                [*b"(]}aesu.\x94h2\x85R\x93N", chance.randrange(256)]
            )
        try:
            unpickled(bytes(torn))
        except RewardError:
            refused += 1
    assert refused > 2000
