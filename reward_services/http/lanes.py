"""Who goes first: so many images are scored at once, and callers who wait are admitted by lane, then by turn.

The queue is here because those behind it, Serve's and a batch's, know no priorities: what has entered them is
served in order. A lane is strict: while `train` callers wait, no other is admitted.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import get_args

from reward_services.errors import Overloaded
from reward_services.schema import Lane

_RANKS = {lane: rank for rank, lane in enumerate(get_args(Lane))}


@dataclass(frozen=True, order=True, slots=True)
class _Place:
    rank: int
    turn: int
    images: int = field(compare=False)
    admitted: asyncio.Future[None] = field(compare=False)


class Lanes:
    """Room for `at_once` images under way and `waiting` more; beyond that the last in line is refused."""

    def __init__(self, *, at_once: int = 512, waiting: int = 2048) -> None:
        self._at_once, self._waiting = at_once, waiting
        self._under_way = 0
        self._queue: list[_Place] = []
        self._turns = itertools.count()

    @property
    def images_under_way(self) -> int:
        """Images of the callers who have been admitted."""
        return self._under_way

    def images_waiting(self, lane: Lane) -> int:
        """Images of the callers of a lane who wait."""
        return sum(place.images for place in self._queue if place.rank == _RANKS[lane])

    def has_place(self, lane: Lane) -> bool:
        """Whether a caller of this lane would be taken in, if only with one image."""
        before = sum(place.images for place in self._queue if place.rank <= _RANKS[lane])
        return before < self._waiting

    @asynccontextmanager
    async def admitted(self, lane: Lane, images: int) -> AsyncIterator[None]:
        """Wait for one's turn with so many images, and hold the place within the context.

        A request of more than `at_once` images is admitted when it is alone.

        Raises:
            Overloaded: too many wait, now or because callers of a better lane came meanwhile.
        """
        future = asyncio.get_running_loop().create_future()
        place = _Place(_RANKS[lane], next(self._turns), images, future)
        bisect.insort(self._queue, place)
        self._admit()
        self._refuse_the_last()
        try:
            await place.admitted
            yield
        finally:
            self._leave(place)

    def _admit(self) -> None:
        while self._queue:
            first = self._queue[0]
            if self._under_way and self._under_way + first.images > self._at_once:
                return
            del self._queue[0]
            if not first.admitted.cancelled():
                self._under_way += first.images
                first.admitted.set_result(None)

    def _refuse_the_last(self) -> None:
        while sum(place.images for place in self._queue) > self._waiting:
            last = self._queue.pop()
            if not last.admitted.cancelled():
                last.admitted.set_exception(Overloaded(f"more than {self._waiting} images wait"))

    def _leave(self, place: _Place) -> None:
        if place in self._queue:
            self._queue.remove(place)
        elif not place.admitted.cancelled() and place.admitted.exception() is None:
            self._under_way -= place.images
        self._admit()
