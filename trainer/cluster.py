"""RAY. What a run needs of a Ray cluster: reward services, a coordinator. `rank_group` runs the ranks there.

    driver ──▶ Serve: one deployment per reward ◀── handles ── coordinator (actor, one per run) ◀─┐
       └─────▶ Ray Train: ranks 0..N-1, each runs trainer.loop.run ─── previews, scores ─────────┘

The coordinator restarts by itself; requests that were under way are sent again and, being pure, count once.
"""

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from reward_services import AsyncRewardClient, RewardError, Rewards, Score
from reward_services.config import ServicesConfig
from reward_services.deployments import connect, deploy, deployed_for_run, start_ray
from reward_services.instruments import Instruments
from trainer.config import RanksConfig, TrainConfig
from trainer.costs import Devices
from trainer.driver import RunFailed
from trainer.observed import STALL, ObservedCoordinator
from trainer.pace import Pace
from trainer.preflight import check_reachable, check_room, check_served
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


@contextlib.contextmanager
def scoring_on_ray(
    config: TrainConfig, address: str | None, *, ranks: Sequence[RanksConfig] = (), at_once: int = 1
) -> Iterator[Scoring]:
    """A Ray cluster with reward services and a coordinator before them, for as long as this context lasts.

    Without rewards it is a cluster alone.

    Args:
        config: which rewards: `rewards.services` are served until the end, unless the same are there already;
            `rewards.url` are reached over HTTP.
        address: a running cluster; None takes the one in RAY_ADDRESS, which `ray job submit` sets for the
            command it runs, or else starts one on this machine.
        ranks: of each run that is to be started there, too.
        at_once: most of these that are under way at a time.

    Raises:
        RewardError: the rewards' configuration cannot be used, one never became ready or is not among them.
        RunFailed: the cluster cannot be reached, or has no room for the run.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        check_reachable(address)
    services = check_served(config.rewards)
    _connect(address)
    try:
        for note in check_room(
            ray.cluster_resources(),
            ranks,
            services.resources if services else {},
            at_once=at_once,
            on_cpus=services.on_cpus if services else (),
            grows=address is not None,
        ):
            sys.stderr.write(f"{note}\n")
        devices = Devices(services.gpus, services.cpus) if services else None
        with _served(config, services, alone=address is None):
            yield scoring_of(config, devices)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _served(config: TrainConfig, services: ServicesConfig | None, *, alone: bool) -> Iterator[None]:
    """Rewards that are ready; on a cluster of the run's own they end with it, elsewhere with the context."""
    timeout_s = config.rewards.ready_timeout_s
    if services is None:
        yield
    elif alone:
        # Nobody else calls them: no port, so that runs side by side do not meet there.
        deploy(services.model_copy(update={"http": None}), timeout_s=timeout_s)
        yield
    else:
        with deployed_for_run(services, timeout_s=timeout_s) as own:
            if not own:
                sys.stderr.write("The rewards are those that are served on the cluster already.\n")
            yield


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
        raise RunFailed(f"cannot use a Ray cluster {where}: {last_line(error)}") from error


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
        key = os.environ.get("REWARDS_API_KEY")
        rewards = AsyncRewardClient(str(options.url), api_key=key, requests_at_once=options.calls_at_once)
    actor = ray.remote(ObservedCoordinator).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=1000
    )
    names = options.names
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


def _get(reference: Any) -> Any:
    """Wait for an actor's answer; an error of the rewards comes as what it is, without Ray's wrapping."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RewardError):
            raise error.cause from None
        raise


def last_line(error: BaseException) -> str:
    """Of what an error says; Ray puts a traceback before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
