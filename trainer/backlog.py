"""When the scores of previews come: what coordinator and replicas do, by the clock alone."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Previews:
    """What ranks, which are in step, send to be scored at a time."""

    came_s: float
    images: int


@dataclass(frozen=True, slots=True)
class Replicas:
    """Of one reward."""

    count: int
    images_per_second: float
    """That each of them scores."""


def answered_s(
    previews: Sequence[Previews],
    replicas: Mapping[str, Replicas],
    *,
    batch_images: int,
    calls_at_once: int,
) -> dict[str, float]:
    """When each reward has answered its last call.

    The coordinator makes batches of what waits, whole ones while there is enough, as far as calls may be
    under way. A call goes to all rewards and is over when all have answered; of each it takes the replica
    that is free first.

    Args:
        previews: in the order in which they come.
        replicas: of each reward.
        batch_images: most images of a call.
        calls_at_once: most calls under way.
    """
    arrivals, waiting, now = list(previews), 0, 0.0
    slots = [0.0] * calls_at_once
    free = {name: [0.0] * of_reward.count for name, of_reward in replicas.items()}
    answered = dict.fromkeys(replicas, 0.0)
    while arrivals or waiting:
        now = max(now, slots[0], 0.0 if waiting else arrivals[0].came_s)
        while arrivals and arrivals[0].came_s <= now:
            waiting += arrivals.pop(0).images
        size = min(waiting, batch_images)
        waiting -= size
        ends = {name: max(now, free[name][0]) + size / replicas[name].images_per_second for name in replicas}
        for name, end in ends.items():
            heapq.heapreplace(free[name], end)
            answered[name] = max(answered[name], end)
        heapq.heapreplace(slots, max(ends.values(), default=now))
    return answered
