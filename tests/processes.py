"""Processes that a test has started, and waiting for what they do."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

PATIENCE_S = 240


def replica_pids(reward: str) -> set[int]:
    """Processes of this cluster that serve a reward."""
    return pids_titled(f"ServeReplica:rewards:{reward}")


def pids_titled(title: str, below: int | None = None) -> set[int]:
    """Descendants of a process (this one) whose command line holds `title`; others may run here too."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                titles[int(entry.name)] = (entry / "cmdline").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    ours = {below or os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return {pid for pid in ours if title in titles.get(pid, "")}


def wait_for(condition: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """What the condition says as soon as it is true."""
    ends = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.1)
    return found


Asking = Callable[[list[float], asyncio.Event], Coroutine[Any, Any, None]]
"""Asks until the event is set, and notes when each answer came."""


async def killed_under_load(
    title: str, askers: Sequence[Asking], at_once: Callable[[], Awaitable[None]] | None = None
) -> tuple[int, float]:
    """kill -9 of the process of this title while callers ask, who go on until they are answered again.

    Args:
        title: as for `pids_titled`; there is one such process.
        askers: the callers.
        at_once: what is done first after the kill.

    Returns:
        How many answers came in all, and the longest time without one after the kill, in seconds.
    """
    ends: list[float] = []
    done = asyncio.Event()
    callers = [asyncio.create_task(ask(ends, done)) for ask in askers]
    await asyncio.sleep(2)
    (pid,) = pids_titled(title)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    if at_once is not None:
        await at_once()
    while sum(end > killed for end in ends) < 3 * len(callers) and not any(one.done() for one in callers):
        await asyncio.sleep(0.1)
    done.set()
    await asyncio.gather(*callers)
    after = sorted(end for end in ends if end > killed)
    gaps = [second - first for first, second in zip([killed, *after], after, strict=False)]
    return len(ends), max(gaps)
