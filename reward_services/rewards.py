"""The one protocol through which everybody scores, be it Serve handles or an HTTP server behind it.

A deadline goes from level to level: client, server, merged calls, handle, replica. Each waits as long as it
was told and tells the one below a little less, `told_s`, so that what is there in time reaches the caller.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reward_services.errors import RequestInvalid, RewardNotReady, RewardUnknown
from reward_services.schema import RewardInfo, Score

_MARGIN, _MOST_MARGIN_S = 0.1, 0.5


class Rewards(Protocol):
    """Images and prompts in, scores out. Every method raises `RewardError` subclasses only."""

    async def describe(self, rewards: Collection[str] | None = None) -> list[RewardInfo]:
        """What is served, all of it or these rewards; raises `RewardUnavailable` while that is not known."""
        ...

    async def score(
        self,
        images: Sequence[NDArray[np.uint8]],
        prompts: Sequence[str],
        *,
        rewards: Sequence[str],
        deadline_s: float,
    ) -> dict[str, list[Score]]:
        """Score images[i], (H, W, 3) uint8, against prompts[i] by every reward, within `deadline_s` seconds.

        One score per image and reward, in order. What one image or one reward cannot do, or not in time, is a
        failed `Score`; an exception means that nothing of the call could be scored.
        """
        ...


def told_s(deadline_s: float) -> float:
    """The deadline for the level below when one waits `deadline_s` seconds: a tenth less, at most 0.5 s.

    With the same deadline it would answer a moment after one has given up, and its scores would be lost.
    """
    return max(deadline_s - min(_MARGIN * deadline_s, _MOST_MARGIN_S), 0.001)


def check_batch(images: Sequence[object], prompts: Sequence[str], rewards: Sequence[str] = ()) -> None:
    """Raises `RequestInvalid` unless these are lists, with one prompt per image.

    Text is a sequence, too: one prompt would be as many as it has letters, each of them scored.
    """
    for name, given in (("images", images), ("prompts", prompts), ("rewards", rewards)):
        if isinstance(given, str | bytes):
            raise RequestInvalid(f"{name} must be a list, also of one: write {name}=[...]")
    if len(images) != len(prompts):
        raise RequestInvalid(f"{len(images)} images but {len(prompts)} prompts; give one prompt per image")


def check_known(asked: Collection[str], served: Collection[str]) -> None:
    """Raises `RewardUnknown`, with the nearest name, when a reward is asked for that is not served."""
    for name in asked:
        if name not in served:
            near = difflib.get_close_matches(name, served, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(served))}"
            raise RewardUnknown(f"no reward {name!r}; {hint}")


def check_ready(served: Collection[RewardInfo]) -> None:
    """Raises `RewardNotReady`, with their names, when some of these cannot score yet."""
    waiting = [info.id for info in served if not info.ready]
    if waiting:
        raise RewardNotReady(f"not ready: {', '.join(waiting)}")
