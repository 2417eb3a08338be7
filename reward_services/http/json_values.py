"""How many values a JSON body may have: a parser makes 300 bytes of memory of a `[`, and an error of each."""

from __future__ import annotations

import re

from reward_services.errors import TooLarge
from reward_services.schema import Limits

_PER_ITEM, _BESIDES = 64, 512  # an item has about thirty marks and a prompt with some commas
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)


def check_values(body: bytes, limits: Limits) -> None:
    """Raises `TooLarge` for a body of more values than a request of `max_items` has use for.

    64 MB of `{},` took 40 GB before a validator said that there are too many.
    """
    most = _PER_ITEM * limits.max_items + _BESIDES
    marks = _count(body, b',[{"')
    if marks <= most:
        return
    # Prompts may be full of marks. Beyond what prompts can hold, the strings need not be looked for.
    fits = marks <= most + limits.max_items * limits.max_prompt_bytes
    if not fits or _count(_STRING.sub(b"", body), b",[{") > most:
        raise TooLarge(f"the JSON has more than {most} values; send fewer items")


def _count(body: bytes, marks: bytes) -> int:
    return sum(body.count(mark) for mark in marks)
