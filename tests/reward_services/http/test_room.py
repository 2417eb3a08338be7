"""Room: by turn, never more than there is, given back by whoever leaves, waits no more, or needed less."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any

from reward_services.http.room import Place, Room


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(play: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(play, 10))


class Holder:
    """Somebody who holds a part of a room, or waits for it."""

    def __init__(self, room: Room, amount: int) -> None:
        self.places: list[Place] = []
        self.leaving = asyncio.Event()
        self.task = asyncio.create_task(self.hold(room, amount))

    async def hold(self, room: Room, amount: int) -> None:
        async with room.held(amount) as place:
            self.places.append(place)
            await self.leaving.wait()

    async def leave(self) -> None:
        self.leaving.set()
        await self.task
        await settle()


def test_who_finds_it_taken_waits_and_nobody_overtakes() -> None:
    async def play() -> None:
        room = Room(10)
        first, second, third = Holder(room, 6), Holder(room, 5), Holder(room, 1)
        await settle()
        assert [len(holder.places) for holder in (first, second, third)] == [1, 0, 0]
        await first.leave()
        assert second.places
        assert third.places
        await second.leave()
        await third.leave()

    run(play())


def test_what_is_not_needed_is_given_back() -> None:
    async def play() -> None:
        room = Room(10)
        first, second = Holder(room, 10), Holder(room, 7)
        await settle()
        assert first.places
        first.places[0].shrink(4)
        await settle()
        assert not second.places
        first.places[0].shrink(3)
        await settle()
        assert second.places
        first.places[0].shrink(9)
        assert first.places[0].amount == 3
        await first.leave()
        await second.leave()
        async with AsyncExitStack() as stack:  # all of it is there again
            await stack.enter_async_context(room.held(10))

    run(play())


def test_who_gives_up_waiting_holds_nothing_and_lets_others_by() -> None:
    async def play() -> None:
        room = Room(10)
        first, second, third = Holder(room, 6), Holder(room, 10), Holder(room, 4)
        await settle()
        second.task.cancel()
        await settle()
        assert third.places
        await first.leave()
        await third.leave()
        async with room.held(10):
            pass

    run(play())


def test_room_left_to_one_who_has_just_given_up_goes_to_the_next() -> None:
    """Deadlines of callers who came together pass together: who holds leaves just after who waits gave up."""

    async def play() -> None:
        room = Room(10)
        first, second, third = Holder(room, 10), Holder(room, 10), Holder(room, 10)
        await settle()
        second.task.cancel()  # it has not run yet: its place in line is still there
        first.places[0].shrink(0)
        await settle()
        assert second.task.cancelled()
        assert not second.places
        assert third.places
        await first.leave()
        await third.leave()
        async with room.held(10):
            pass

    run(play())


def test_a_line_of_callers_with_one_deadline_loses_nothing() -> None:
    async def hold(room: Room, ends: float) -> None:
        async with asyncio.timeout_at(ends), room.held(10):
            await asyncio.sleep(9)

    async def play() -> None:
        room = Room(10)
        ends = asyncio.get_running_loop().time() + 0.05
        outcomes = await asyncio.gather(*(hold(room, ends) for _ in range(5)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [TimeoutError] * 5
        async with room.held(10):
            pass

    run(play())


def test_more_than_there_is_is_held_alone() -> None:
    async def play() -> None:
        room = Room(10)
        first, second = Holder(room, 1), Holder(room, 100)
        await settle()
        assert not second.places
        await first.leave()
        assert second.places
        assert second.places[0].amount == 10
        await second.leave()

    run(play())
