"""RAY. Starts a run on a Ray cluster: reward services, coordinator, trainer ranks. The loop knows no Ray.

    driver ──▶ Serve: one deployment per reward ◀── handles ── coordinator (actor, one per run) ◀─┐
       └─────▶ Ray Train: ranks 0..N-1, each runs trainer.loop.train ── previews, scores ─────────┘

A rank that dies is started again by Ray Train with all the others, and they go on from the newest checkpoint.
The coordinator restarts by itself; requests that were under way are sent again and, being pure, count once.
"""

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from reward_services import AsyncRewardClient, RewardError, Rewards, Score
from reward_services.config import ServicesConfig
from reward_services.config_file import load_config as load_services
from reward_services.deployments import connect, deploy, start_ray
from reward_services.instruments import Instruments
from trainer import loop
from trainer.config import TrainConfig
from trainer.coordinator import Pace
from trainer.costs import Devices
from trainer.driver import RunFailed, absolute_paths
from trainer.observed import STALL, ObservedCoordinator
from trainer.preflight import check_names, check_reachable, check_room, check_served
from trainer.ranks import Ranks
from trainer.revisions import Revisions
from trainer.run_folder import RunFolder
from trainer.scoring import Scoring, Unscored

NAMESPACE = "diffusion-sharpening"


@dataclass(frozen=True, slots=True)
class CoordinatorScoring:
    """`Scoring` through the coordinator actor."""

    coordinator: Any
    """Handle of the actor."""
    record: Instruments = field(default_factory=Instruments)
    seen: Revisions = field(default_factory=Revisions)
    devices: Devices | None = None
    """Of all replicas that the run's own reward services may have; None where they run elsewhere."""

    def submit(
        self, images: NDArray[np.uint8], prompts: Sequence[str], rewards: Sequence[str]
    ) -> Callable[[], Mapping[str, Sequence[Score]]]:
        """Send pictures off; the returned function waits for the scores."""
        scores = self.coordinator.score.remote(images, list(prompts), list(rewards))

        def wait() -> Mapping[str, Sequence[Score]]:
            began = time.monotonic()
            answer: Mapping[str, Sequence[Score]] = _get(scores)
            self.record(STALL, time.monotonic() - began)
            self.seen.look_at(answer)
            return answer

        return wait

    def stats(self) -> Mapping[str, float]:
        """The coordinator's counters."""
        counters: Mapping[str, float] = _get(self.coordinator.stats.remote())
        return counters

    def revisions(self) -> Mapping[str, str]:
        """The revision of each reward that this rank's newest score is of."""
        return self.seen.newest

    def pinned(self, folder: RunFolder, rewards: Sequence[str]) -> Self:
        """The same, for a run that goes on only while these rewards are what it began with.

        Raises:
            RevisionChanged: one is not.
        """
        served: Mapping[str, str] = _get(self.coordinator.revisions.remote())
        served = {name: served[name] for name in rewards}
        seen = Revisions(pinned=folder.pin(served))
        seen.check(served)
        return replace(self, seen=seen)


class _Trainer(TorchTrainer):
    """Ray Train without its cleaner of placement groups: a run's end is its job's end, which frees them.

    The cleaner asks the dashboard; on a cluster without one every run would wait 12 s for it to give up.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        return [one for one in callbacks if not isinstance(one, PlacementGroupCleanerCallback)]


@contextlib.contextmanager
def scoring_on_ray(config: TrainConfig, address: str | None, *, trains: bool = True) -> Iterator[Scoring]:
    """A Ray cluster with reward services and a coordinator before them, for as long as this context lasts.

    Without rewards it is a cluster alone.

    Args:
        config: which rewards: `rewards.services` are deployed, `rewards.url` are reached over HTTP.
        address: a running cluster; None takes the one in RAY_ADDRESS, which `ray job submit` sets for the
            command it runs, or else starts one on this machine.
        trains: whether ranks are to be started there, too.

    Raises:
        RewardError: the rewards' configuration cannot be used, one never became ready or is not among them.
        RunFailed: the cluster cannot be reached, or has no room for the run.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    services = _services(config, alone=address is None)
    if address is not None:
        check_reachable(address)
    check_served(config.rewards)
    _connect(address)
    try:
        ranks, rewards = config.ranks if trains else None, services.resources if services else {}
        for note in check_room(ray.cluster_resources(), ranks, rewards, grows=address is not None):
            sys.stderr.write(f"{note}\n")
        if services is not None:
            deploy(services, timeout_s=config.rewards.ready_timeout_s)
        devices = Devices(services.gpus, services.cpus) if services else None
        yield scoring_of(config, devices)
    finally:
        ray.shutdown()


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
        scoring = scoring.pinned(RunFolder(config.run_folder), _rewards_of(config))
    trainer = _Trainer(
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
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        rank, failure = min(error.worker_failures.items(), key=lambda item: item[0])
        raise RunFailed(
            f"rank {rank} failed, after {ranks.max_failures} restarts too: {_last_line(failure)}"
        ) from error
    except (ray.train.TrainingFailedError, RayError) as error:
        raise RunFailed(f"the ranks could not be run: {_last_line(error)}") from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)
        if threading.current_thread() is threading.main_thread():
            # Ray Train's own handler would outlive the run and call an actor that is gone.
            signal.signal(signal.SIGINT, handler)


def _rank_main(settings: Mapping[str, Any], scoring: Scoring) -> None:
    config = TrainConfig.model_validate(settings)
    torch.set_num_threads(config.ranks.torch_threads)
    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    with RunFolder(config.run_folder).keeping_warnings(ranks.rank):
        loop.run(config, scoring=scoring, ranks=ranks, device=ray.train.torch.get_device())


def _services(config: TrainConfig, *, alone: bool) -> ServicesConfig | None:
    """The rewards to deploy, checked; None when they run elsewhere."""
    path = config.rewards.services
    if path is None:
        return None
    services = load_services(path)
    check_names(config.rewards, path, services.rewards)
    # On a cluster of its own nobody else calls them: no port, so that runs side by side do not meet there.
    return services.model_copy(update={"http": None}) if alone else services


def _connect(address: str | None) -> None:
    # Ray is quiet: its logs hold what its processes say, and would bury the progress bar here.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    for name in ("ray.serve", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cores = {}
    if address is None:
        # Two ranks and a few rewards share what cores there are, even when there is one.
        cores = {"num_cpus": max(2, os.cpu_count() or 1)}
        # Ranks find each other where Ray's processes do: on the first of the interfaces, which is loopback.
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", socket.if_indextoname(1))
    try:
        start_ray(address, namespace=NAMESPACE, **cores)
    except Exception as error:  # a bare one is what Ray raises when its processes come up too late
        where = f"at {address}" if address else "on this machine"
        raise RunFailed(f"cannot use a Ray cluster {where}: {_last_line(error)}") from error


def scoring_of(config: TrainConfig, devices: Devices | None = None) -> Scoring:
    """A coordinator of its own for one run, before rewards that `scoring_on_ray` has made ready.

    Args:
        config: which rewards; without any nothing is started.
        devices: that the rewards reserve, if that is known.
    """
    options = config.rewards
    if not options.names:
        return Unscored()
    rewards: Rewards
    if options.services is not None:
        rewards = connect()
    else:
        rewards = AsyncRewardClient(str(options.url), api_key=os.environ.get("REWARDS_API_KEY"))
    actor = ray.remote(ObservedCoordinator).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=1000
    )
    names = _rewards_of(config)
    coordinator: Any = actor.remote(
        rewards,
        names=names,
        pace=Pace(
            batch_images=options.batch_images,
            batches_at_once=options.calls_at_once,
            attempt_s=options.attempt_s,
            deadline_s=options.deadline_s,
        ),
        record=Instruments(),
    )
    # No picture yet: asked now, a reward that is not there is found before anything is written.
    _get(coordinator.score.remote([], [], names))
    return CoordinatorScoring(coordinator, devices=devices)


def _rewards_of(config: TrainConfig) -> list[str]:
    return config.rewards.names


def _get(reference: Any) -> Any:
    """Wait for an actor's answer; an error of the rewards comes as what it is, without Ray's wrapping."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RewardError):
            raise error.cause from None
        raise


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
