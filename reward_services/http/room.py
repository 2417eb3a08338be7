"""Room for a bounded amount, such as pixels in memory, of which each caller holds a part."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Place:
    """What a caller holds of a room; it may turn out to be less than what was asked for."""

    def __init__(self, room: Room, amount: int) -> None:
        self._room = room
        self.amount = amount

    def shrink(self, amount: int) -> None:
        """Give back all but `amount`; what is not held cannot be kept."""
        kept = min(amount, self.amount)
        self._room.release(self.amount - kept)
        self.amount = kept


class Room:
    """So much is there at once; who comes when it is taken waits for his turn."""

    def __init__(self, at_once: int) -> None:
        self._free = self._at_once = at_once
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def held(self, amount: int) -> AsyncIterator[Place]:
        """Hold so much within the context. More than there is at all is held by whoever is alone."""
        amount = min(amount, self._at_once)
        entered = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, entered))
        self._admit()
        place = Place(self, amount)
        try:
            await entered
            yield place
        finally:
            if entered.done() and not entered.cancelled():
                self.release(place.amount)
            elif (amount, entered) in self._waiting:
                self._waiting.remove((amount, entered))
                self._admit()

    def release(self, amount: int) -> None:
        """Let others have so much of what was held."""
        self._free += amount
        self._admit()

    def _admit(self) -> None:
        """Let in by turn; one who has just given up, and has not come to leave the line, is passed over."""
        while self._waiting:
            amount, entered = self._waiting[0]
            if not entered.cancelled():
                if amount > self._free:
                    return
                self._free -= amount
                entered.set_result(None)
            self._waiting.popleft()
