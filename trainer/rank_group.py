"""RAY. The ranks as processes: started by Ray Train, waited for, and why they failed. The loop knows no Ray.

A rank that dies is started again by Ray Train with all the others, and they go on from the newest checkpoint.
"""

import re
import shutil
import signal
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayActorError, RayError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from trainer import loop
from trainer.cluster import CoordinatorScoring, last_line
from trainer.config import TrainConfig
from trainer.driver import RunFailed, absolute_paths
from trainer.ranks import Ranks
from trainer.run_folder import RunFolder
from trainer.scoring import Scoring

_OF_ANOTHER = re.compile(r"gloo/|NCCL|by peer|Broken pipe|TCPStore", flags=re.IGNORECASE)


class Trainer(TorchTrainer):
    """Ray Train without its cleaner of placement groups: a run's end is its job's end, which frees them.

    The cleaner asks the dashboard; on a cluster without one every run would wait 12 s for it to give up.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if not isinstance(one, PlacementGroupCleanerCallback)]


def run_ranks(config: TrainConfig, scoring: Scoring) -> None:
    """Run the loop on every rank by Ray Train and wait for the end, which may be a stop that was asked for.

    Raises:
        RunFailed: ranks died, or could not be started, more often than `ranks.max_failures`.
        RevisionChanged: a reward is not of the revision that the run is pinned to.
    """
    ranks = config.ranks
    # Ray Train wants a place that all nodes see, though the loop keeps its own checkpoints.
    storage = config.run_folder.absolute() / ".ray_train"
    shutil.rmtree(storage, ignore_errors=True)
    if config.rewards.revisions == "pin" and isinstance(scoring, CoordinatorScoring):
        scoring = scoring.pinned(RunFolder(config.run_folder), config.rewards.names)
    trainer = Trainer(
        # Bound to the function, what ranks need is unpacked by them alone: the controller imports no model.
        partial(_rank_main, absolute_paths(config).model_dump(mode="json"), scoring),
        # Gradients are summed where they are, the ranks' other messages are small and on the CPU.
        torch_config=ray.train.torch.TorchConfig(
            backend="cpu:gloo,cuda:nccl" if ranks.gpus_per_worker else "gloo"
        ),
        scaling_config=ScalingConfig(
            num_workers=(ranks.min_workers, ranks.workers) if ranks.min_workers else ranks.workers,
            elastic_resize_monitor_interval_s=ranks.resize_s,
            use_gpu=ranks.gpus_per_worker > 0,
            resources_per_worker=ranks.resources_per_worker,
        ),
        run_config=RunConfig(
            name=config.run_folder.name,
            storage_path=str(storage),
            failure_config=FailureConfig(
                max_failures=ranks.max_failures, controller_failure_limit=ranks.max_failures
            ),
        ),
    )
    try:
        fit(trainer, restarts=ranks.max_failures)
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def fit(trainer: Trainer, *, restarts: int) -> None:
    """Run ranks to their end; raises RunFailed, which names the rank that is to blame."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        rank, failure = to_blame(error.worker_failures)
        raise RunFailed(f"rank {rank} failed, after {restarts} restarts too: {last_line(failure)}") from error
    except (ray.train.TrainingFailedError, RayError) as error:
        raise RunFailed(f"the ranks could not be run: {last_line(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            # Ray Train's own handler would outlive the run and call an actor that is gone.
            signal.signal(signal.SIGINT, handler)


def to_blame(failures: Mapping[int, Exception]) -> tuple[int, Exception]:
    """The rank whose failure caused those of the others, and that failure.

    Ranks that wait for one that is gone fail, too, and are often noticed sooner. So a dead process comes
    first, then a failure that does not speak of a connection to another rank, then the lowest rank.
    """

    def order(item: tuple[int, Exception]) -> tuple[bool, bool, int]:
        rank, failure = item
        died = isinstance(failure, WorkerHealthCheckFailedError | RayActorError)
        return not died, _OF_ANOTHER.search(str(failure)) is not None, rank

    return min(failures.items(), key=order)


def _rank_main(settings: Mapping[str, Any], scoring: Scoring) -> None:
    config = TrainConfig.model_validate(settings)
    torch.set_num_threads(config.ranks.torch_threads)
    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    with RunFolder(config.run_folder).keeping_warnings(ranks.rank):
        loop.run(config, scoring=scoring, ranks=ranks, device=ray.train.torch.get_device())
