"""RAY. Rewards on a cluster: one Serve deployment per reward, and the HTTP ingress before them.

HTTP ──▶ ingress (decodes) ──┐                        ┌──▶ preference: @serve.batch ─▶ scorer
                             ├─▶ ServeRewards ────────┼──▶ clip:       @serve.batch ─▶ scorer
coordinator, in the cluster ─┘   one ray.put a call   └──▶ ...         a deployment per reward
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import ray
from ray import serve
from ray._private import ray_constants
from ray.exceptions import ActorAlreadyExistsError, RayError
from ray.serve.exceptions import RayServeException

from reward_services.config import Http, Reward, ServicesConfig, lacking
from reward_services.config_file import checked
from reward_services.diagnosis import failure_among, first_line, more_telling
from reward_services.errors import ConfigInvalid, RewardNotReady
from reward_services.fingerprint import fingerprint, of_code, of_files
from reward_services.handles import ServeRewards
from reward_services.judges import JUDGES
from reward_services.ownership import APPLICATION, delete_orphans, own_application
from reward_services.replicas import Ingress, JudgeReplica, RewardReplica

_INGRESS = "_ingress"  # no reward can have this name
_MADE_OF_TIMEOUT_S, _POLL_S = 2.0, 0.2
_MANY_HOSTS = ray_constants.ENABLE_RAY_CLUSTER
_QUEUES = {"max_ongoing_requests", "max_queued_requests"}
_HEALTH = {"health_check_period_s", "health_check_timeout_s"}


def application(args: dict[str, Any]) -> serve.Application:
    """What a Serve configuration file imports: `args` hold what a rewards.yaml would.

    Raises:
        ConfigInvalid: a value is wrong; one line that says where and what to do.
    """
    return build(checked(args, "args"))


def build(config: ServicesConfig) -> serve.Application:
    """The application: one deployment per reward, called like it, and the ingress before them."""
    rewards = {name: _deployment(name, reward) for name, reward in config.rewards.items()}
    http = config.http or Http()
    ingress = serve.deployment(
        name=_INGRESS,
        num_replicas=http.num_replicas,
        max_ongoing_requests=1000,
        # A new one is there before the old one goes: it costs little and no request is lost.
        max_surge_percent=100,
        ray_actor_options={"num_cpus": http.num_cpus if config.http else 0},
    )
    return ingress(Ingress).bind(rewards, config, fingerprint(config))


def _deployment(name: str, reward: Reward) -> serve.Application:
    # No runtime_env means the job's own, working directory and all.
    actor = reward.model_dump(include={"num_cpus", "num_gpus", "resources", "runtime_env"}, exclude_none=True)
    scale: dict[str, Any] = {"num_replicas": reward.num_replicas}
    if reward.autoscaling is not None:
        first = {"initial_replicas": reward.first_replicas}
        scale = {"autoscaling_config": reward.autoscaling.model_dump() | first}
    settings = {
        "reward": reward.model_dump(mode="json", include={"scorer", "options", "batch", "observe"}),
        "files": of_files(reward),
    }
    deployment = serve.deployment(
        name=name,
        ray_actor_options=actor,
        user_config=settings,
        max_constructor_retry_count=3,
        **reward.model_dump(include=_QUEUES | _HEALTH),
        **scale,
    )
    # Deployed again from Python, Serve restarts every replica unless it is told that their code is the same;
    # with that, other settings reach the running ones. (By a Serve configuration file they do where `args`
    # stay and a deployment's `user_config` changes.)
    replica = JudgeReplica if reward.scorer in JUDGES else RewardReplica
    same_code: Any = deployment(replica).options(version=of_code(reward), _internal=True)
    return same_code.bind(name)  # type: ignore[no-any-return]  # Any, for the two arguments above


def deploy(config: ServicesConfig, *, timeout_s: float = 120.0) -> None:
    """Serve the rewards on the connected Ray cluster and wait until every one has scored its golden sample.

    They stay when the caller ends. The same rewards, if they run already, are left alone; other ones are
    replaced, but not those of runs.

    Raises:
        ConfigInvalid: the HTTP port is taken, or Serve runs without HTTP for others.
        RewardNotReady: a reward did not come up within `timeout_s` seconds; one line with cause and remedy.
    """
    delete_orphans()
    before = serve.status().applications.get(APPLICATION)
    if _runs_already(config, before):
        return
    try:
        _run(config, APPLICATION, timeout_s)
    except RewardNotReady:
        if before is None:
            serve.delete(APPLICATION)
        raise


def check_room(config: ServicesConfig) -> None:
    """Raise ConfigInvalid where the connected Ray lacks what the rewards reserve: Serve waits for nodes."""
    there = ray.cluster_resources()
    asked = config.resources
    short = [f"{asked[name]:g} {name} of {there.get(name, 0.0):g}" for name in lacking(asked, there)]
    if short:
        raise ConfigInvalid(
            f"the rewards reserve {', '.join(short)} on this machine: set num_cpus, num_gpus or num_replicas "
            "lower, or serve on a cluster with --address"
        )


@contextmanager
def deployed_for_run(config: ServicesConfig, *, timeout_s: float = 120.0) -> Iterator[bool]:
    """The rewards of one run on a cluster that others use, for as long as this context lasts.

    Those that `deploy` has served there, if they are the same; else an application of the run's own, which
    is reached by handles alone and deleted at the end.

    Yields:
        Whether they are the run's own.

    Raises:
        RewardNotReady: as `deploy`.
    """
    delete_orphans()
    if _runs_already(config, serve.status().applications.get(APPLICATION)):
        yield False
        return
    name = own_application()
    try:
        _run(config.model_copy(update={"http": None}), name, timeout_s)
        yield True
    finally:
        # Where the cluster does not answer any more, the next run deletes it.
        with suppress(RayError, RayServeException, TimeoutError):
            serve.delete(name)


def _run(config: ServicesConfig, name: str, timeout_s: float) -> None:
    _start_serve(config.http)
    target = serve.RunTarget(build(config), name=name, route_prefix="/" if config.http else None)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    _wait_until_ready(name, timeout_s)


def _start_serve(http: Http | None) -> None:
    """Start Serve where it does not run; whether and where it listens is settled then."""
    status = serve.status()
    if http is not None and not status.proxies:
        if others := sorted(status.applications):
            raise ConfigInvalid(
                f"Serve runs without HTTP on this cluster, for {', '.join(others)}: serve when that has "
                "ended, or with `http: null`"
            )
        http.check_port()
        serve.shutdown()
    options = http.model_dump(include={"host", "port", "request_timeout_s"}) if http else None
    start = partial(serve.start, proxy_location="HeadOnly" if options else "Disabled", http_options=options)
    try:
        start()
    except ActorAlreadyExistsError:  # another run has started it at the same time
        start()


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """A connection to a running Ray cluster; without an address, to one that lives as long as the context."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        start_ray(address)
    except (ConnectionError, ValueError, RayError) as error:
        raise ConfigInvalid(f"cannot connect to Ray at {address}: {first_line(str(error))}") from error
    try:
        yield
    finally:
        ray.shutdown()


def start_ray(address: str | None, **options: Any) -> None:
    """Connect to a Ray cluster; without an address, start one that only this machine can reach.

    Ray is quiet: its logs hold what its processes say, and would bury the one line that matters here. It
    raises what `ray.init` raises, which takes the other `options`.
    """
    # Ray's own switch, off by itself on macOS and Windows: then a node is on loopback and listens there only.
    # From the environment Ray reads it at its import, when it is not known yet whether to join a cluster.
    ray_constants.ENABLE_RAY_CLUSTER = _MANY_HOSTS and address is not None
    ray.init(
        address or "local",
        include_dashboard=None if address else False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        **options,
    )


def connect() -> ServeRewards:
    """The rewards of this job, or else those that are served on the connected Ray cluster.

    Raises:
        RewardNotReady: there are none.
    """
    applications, own = serve.status().applications, own_application()
    served = own if own in applications else APPLICATION
    application = applications.get(served)
    names = [name for name in application.deployments if name != _INGRESS] if application else []
    if not names:
        raise RewardNotReady("no rewards are served on this cluster; start them with `rewards serve CONFIG`")
    return ServeRewards({name: serve.get_deployment_handle(name, served) for name in names})


def _runs_already(config: ServicesConfig, application: Any) -> bool:
    if application is None or application.status != "RUNNING":
        return False
    try:
        made_of = serve.get_deployment_handle(_INGRESS, APPLICATION).made_of.remote()
        return bool(made_of.result(timeout_s=_MADE_OF_TIMEOUT_S) == fingerprint(config))
    except (RayError, RayServeException, TimeoutError):
        return False


def _wait_until_ready(name: str, timeout_s: float) -> None:
    ends = time.monotonic() + timeout_s
    states: dict[str, tuple[str, str]] = {}
    while (application := serve.status().applications[name]).status != "RUNNING":
        for reward, deployment in application.deployments.items():
            _, earlier = states.get(reward, ("", ""))
            states[reward] = (deployment.status.value, more_telling(deployment.message, earlier))
        failure = failure_among(states, is_late=time.monotonic() > ends)
        if failure is not None:
            raise RewardNotReady(failure)
        time.sleep(_POLL_S)
