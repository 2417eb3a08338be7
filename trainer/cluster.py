"""RAY. Starts a run on a Ray cluster: reward services, coordinator, trainer ranks. The loop itself knows no Ray.

    driver ──▶ Serve: one deployment per reward ◀── handles ── coordinator (actor, one per run) ◀─┐
       └─────▶ Ray Train: ranks 0..N-1, each runs trainer.loop.train ── previews, scores ─────────┘

A rank that dies is started again by Ray Train with all the others, and they go on from the newest checkpoint. The
coordinator restarts by itself; requests that were under way are sent again and, being pure, count once.
"""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError

from reward_services import AsyncRewardClient, Rewards, Score
from reward_services.config import load_config as load_services
from reward_services.deployments import connect, deploy
from trainer import loop
from trainer.config import TrainConfig
from trainer.coordinator import Coordinator, Pace
from trainer.ranks import Ranks

NAMESPACE = "diffusion-sharpening"


class RunFailed(RuntimeError):
    """The ranks gave up; one line with the cause."""


@dataclass(frozen=True, slots=True)
class CoordinatorScoring:
    """`Scoring` through the coordinator actor."""

    coordinator: Any
    """Handle of the actor."""

    def submit(
        self, images: NDArray[np.uint8], prompts: Sequence[str], rewards: Sequence[str]
    ) -> Callable[[], Mapping[str, Sequence[Score]]]:
        """Send pictures off; the returned function waits for the scores."""
        scores = self.coordinator.score.remote(images, list(prompts), list(rewards))

        def wait() -> Mapping[str, Sequence[Score]]:
            answer: Mapping[str, Sequence[Score]] = ray.get(scores)
            return answer

        return wait

    def stats(self) -> Mapping[str, float]:
        """The coordinator's counters."""
        counters: Mapping[str, float] = ray.get(self.coordinator.stats.remote())
        return counters


@contextlib.contextmanager
def scoring_on_ray(config: TrainConfig, address: str | None) -> Iterator[CoordinatorScoring]:
    """A Ray cluster with reward services and a coordinator before them, for as long as this context lasts.

    Args:
        config: which rewards: `rewards.services` are deployed, `rewards.url` are reached over HTTP.
        address: a running cluster, or None to start one on this machine.

    Raises:
        RewardError: the rewards' configuration cannot be used, or one never became ready.
        RunFailed: the cluster cannot be reached.
    """
    _connect(address)
    try:
        yield CoordinatorScoring(_start_coordinator(config))
    finally:
        ray.shutdown()


def run_ranks(config: TrainConfig, scoring: CoordinatorScoring) -> None:
    """Run the loop on every rank by Ray Train and wait for the end, which may be a stop that was asked for.

    Raises:
        RunFailed: ranks died more often than `ranks.max_failures`.
    """
    ranks = config.ranks
    trainer = ray.train.torch.TorchTrainer(
        _rank_main,
        train_loop_config={"config": config.model_dump(mode="json"), "scoring": scoring},
        scaling_config=ray.train.ScalingConfig(
            num_workers=ranks.workers,
            use_gpu=ranks.gpus_per_worker > 0,
            resources_per_worker={"CPU": ranks.cpus_per_worker, "GPU": ranks.gpus_per_worker},
        ),
        run_config=ray.train.RunConfig(
            name=f"{config.run_folder.name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(config.run_folder / "ray_train"),
            failure_config=ray.train.FailureConfig(max_failures=ranks.max_failures),
        ),
    )
    try:
        trainer.fit()
    except (ray.train.TrainingFailedError, RayError) as error:
        raise RunFailed(f"the ranks failed: {_last_line(error)}") from error


def _rank_main(payload: Mapping[str, Any]) -> None:
    config = TrainConfig.model_validate(payload["config"])
    torch.set_num_threads(config.ranks.torch_threads)
    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    loop.run(config, scoring=payload["scoring"], ranks=ranks, device=ray.train.torch.get_device())


def _connect(address: str | None) -> None:
    try:
        if address:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(
                address="local",
                namespace=NAMESPACE,
                num_cpus=max(2, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
    except (ConnectionError, RayError, RuntimeError) as error:
        raise RunFailed(f"cannot use a Ray cluster at {address or 'this machine'}: {_last_line(error)}") from error


def _start_coordinator(config: TrainConfig) -> Any:
    options = config.rewards
    rewards: Rewards
    if options.services is not None:
        deploy(load_services(options.services), timeout_s=options.ready_timeout_s)
        rewards = connect()
    else:
        rewards = AsyncRewardClient(str(options.url), api_key=os.environ.get("REWARDS_API_KEY"))
    names = [*options.weights, *([options.judge] if options.judge else [])]
    actor = ray.remote(Coordinator).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=1000
    )
    return actor.remote(rewards, names=names, pace=Pace(deadline_s=options.deadline_s))


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
