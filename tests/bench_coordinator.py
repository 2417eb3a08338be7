"""One coordinator between many ranks and many replicas whose model sleeps as a GPU would: what it carries.

make bench-coordinator    (python -m tests.bench_coordinator [FOLDER]; writes FOLDER/coordinator.json)

The coordinator is the real one. Ranks ask again once they are answered, for new pictures each time; a replica
scores a batch at a time. In process both are tasks of the coordinator's own event loop, which therefore pays
for them too. Over Ray the coordinator is an actor, as in a run, and ranks ask from other processes. It is
saturated by a model that takes no time; by the side of the pictures.
"""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from reward_services import RewardInfo, Score
from trainer.coordinator import Coordinator
from trainer.pace import Pace

IMAGES = 16
"""Of a request, and of a replica's batch."""
BATCH_S = 0.5
SIZES = (1, 4, 16, 64)
SIDES = (64, 256, 512, 1024)
CELL_S = 5.0


class SleepingReplicas:
    """`Rewards` by so many replicas; each takes `batch_s` for a batch, whatever is in it."""

    def __init__(self, replicas: int, batch_s: float) -> None:
        self._free, self._batch_s = asyncio.Semaphore(replicas), batch_s

    async def describe(self, rewards: Any = None) -> list[RewardInfo]:
        return [
            RewardInfo(
                id="sleep",
                revision="1",
                range=(None, None),
                higher_is_better=True,
                deterministic=True,
                modality=("image",),
                max_items=IMAGES,
                ready=True,
            )
        ]

    async def score(
        self, images: Sequence[Any], prompts: Sequence[str], *, rewards: Sequence[str], deadline_s: float
    ) -> dict[str, list[Score]]:
        async with self._free:
            await asyncio.sleep(self._batch_s)
        return {name: [Score.of(1.0)] * len(images) for name in rewards}


class Between(Coordinator):
    """The coordinator before sleeping replicas, which it lets work all at once."""

    def __init__(self, replicas: int, batch_s: float) -> None:
        pace = Pace(batch_images=IMAGES, batches_at_once=replicas, deadline_s=600, attempt_s=600)
        super().__init__(SleepingReplicas(replicas, batch_s), names=["sleep"], pace=pace)


async def asking(score: Any, ranks: Sequence[int], side: int, seconds: float) -> int:
    """Images that these ranks had scored, each asking again once it is answered; no two are the same."""
    ends, prompts = time.monotonic() + seconds, ["a red circle"] * IMAGES

    async def ask(rank: int) -> int:
        images, done = np.zeros((IMAGES, side, side, 3), dtype=np.uint8), 0
        while time.monotonic() < ends:
            numbers = np.arange(done, done + IMAGES, dtype=np.uint64) + (rank << 40)
            images.reshape(IMAGES, -1)[:, :8] = numbers.view(np.uint8).reshape(IMAGES, 8)
            scores = await score(images, prompts)
            assert all(one.ok for one in scores["sleep"])
            done += IMAGES
        return done

    return sum(await asyncio.gather(*(ask(rank) for rank in ranks)))


async def here(ranks: int, replicas: int, batch_s: float, side: int = 64) -> dict[str, float]:
    """Images a second in this process, and the processor's time for each."""
    score = Between(replicas, batch_s).score
    began, used = time.monotonic(), time.process_time()
    done = await asking(score, range(ranks), side, CELL_S)
    used, wall_s = time.process_time() - used, time.monotonic() - began
    return {"images_per_s": done / wall_s, "cpu_us_per_image": 1e6 * used / done, "cpu_share": used / wall_s}


class Asker:
    """Ranks of one process of the cluster."""

    def ask(self, actor: Any, ranks: Sequence[int], side: int, seconds: float) -> int:
        async def score(images: NDArray[np.uint8], prompts: Sequence[str]) -> Any:
            return await actor.score.remote(images, prompts)

        return asyncio.run(asking(score, ranks, side, seconds))


def over_ray(ranks: int, batch_s: float, side: int) -> float:
    """Images a second through the actor, asked by ranks in two processes."""
    remote = ray.remote(Between).options(num_cpus=0, max_concurrency=1000)
    actor: Any = remote.remote(ranks, batch_s)
    askers: list[Any] = [ray.remote(Asker).options(num_cpus=0).remote() for _ in range(2)]
    shares = [range(first, ranks, 2) for first in range(2)]
    others = [range(1000, 1000 + len(share)) for share in shares]
    ray.get([asker.ask.remote(actor, share, side, 0.1) for asker, share in zip(askers, others)])
    began = time.monotonic()
    done = ray.get([asker.ask.remote(actor, share, side, CELL_S) for asker, share in zip(askers, shares)])
    rate: float = sum(done) / (time.monotonic() - began)
    for process in (actor, *askers):
        ray.kill(process)
    return rate


def efficiency(rates: dict[int, float]) -> dict[int, float]:
    """Of n ranks and replicas, against n times what one of each does."""
    return {size: rate / (size * rates[1]) for size, rate in rates.items()}


def main() -> None:
    """Measure all and write it down."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/bench")
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"images_of_a_batch": IMAGES, "batch_s": BATCH_S}
    sized = {size: asyncio.run(here(size, size, BATCH_S)) for size in SIZES}
    shares = efficiency({size: one["images_per_s"] for size, one in sized.items()})
    found["in_process"] = {size: one | {"efficiency": shares[size]} for size, one in sized.items()}
    found["saturated"] = {side: asyncio.run(here(16, 64, 0.0, side)) for side in SIDES}
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    rates = {size: over_ray(size, BATCH_S, 64) for size in SIZES}
    shares = efficiency(rates)
    found["over_ray"] = {
        size: {"images_per_s": rate, "efficiency": shares[size]} for size, rate in rates.items()
    }
    found["saturated_over_ray"] = {side: {"images_per_s": over_ray(16, 0.0, side)} for side in SIDES}
    ray.shutdown()
    for name in ("in_process", "over_ray", "saturated", "saturated_over_ray"):
        print(name)
        for key, one in found[name].items():
            print(f"  {key:5}: " + ", ".join(f"{what} {value:.4g}" for what, value in one.items()))
    (folder / "coordinator.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
