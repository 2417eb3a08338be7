"""RAY. Scorers as batched Serve deployments, the HTTP ingress before them, and `Rewards` over their handles.

HTTP ──▶ ingress (decodes) ──┐                        ┌──▶ preference: @serve.batch ─▶ scorer
                             ├─▶ ServeRewards ────────┼──▶ clip:       @serve.batch ─▶ scorer
coordinator, in the cluster ─┘   one ray.put a call   └──▶ ...         a deployment per reward
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from reward_services.config import Batch, Http, Reward, ServicesConfig
from reward_services.diagnosis import failure_among, first_line
from reward_services.errors import (
    ConfigInvalid,
    DeadlineExceeded,
    Overloaded,
    ReplicaFailed,
    ReplicaLost,
    RewardError,
    RewardNotReady,
)
from reward_services.fingerprint import fingerprint
from reward_services.http.app import create_app
from reward_services.images import packed
from reward_services.pipeline import Call, Pipeline
from reward_services.rewards import check_batch, check_known
from reward_services.schema import RewardInfo, Score
from reward_services.scorers import SCORERS

APPLICATION = "rewards"

_INGRESS = "_ingress"  # no reward can have this name
_FRESH_S, _DESCRIBE_TIMEOUT_S, _POLL_S = 5.0, 2.0, 0.2
_QUEUES = {"max_ongoing_requests", "max_queued_requests"}
_HEALTH = {"health_check_period_s", "health_check_timeout_s"}


def _count_images(calls: list[Call]) -> int:
    """The size of a batch. An exception in here would hang the replica (ray#66140): nothing here raises."""
    return sum(len(call.prompts) for call in calls)


class RewardReplica:
    """One replica of one reward: any scorer, batched across callers, with a health check that scores."""

    def __init__(self, name: str, reward: Reward) -> None:
        self._name = name
        self._batch = reward.batch
        self._scorer = SCORERS[reward.scorer](**reward.options.model_dump())
        self._pipeline = Pipeline(self._scorer)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Change the batching of a running replica."""
        self._batch = Batch.model_validate(user_config)
        batched: Any = self._score_batch
        batched.set_max_batch_size(self._batch.max_images)
        batched.set_batch_wait_timeout_s(self._batch.wait_ms / 1000)

    async def check_health(self) -> None:
        """Called by Serve; a replica that raises here three times in a row is replaced."""
        await self._pipeline.check()

    async def describe(self) -> RewardInfo:
        """What is served here."""
        return self._scorer.describe(self._name, max_items=self._batch.max_images)

    async def score(
        self, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str], deadline_s: float
    ) -> list[Score]:
        """One score per image, in order; what is not begun within the deadline is not scored."""
        call = Call(images, prompts, expires=time.monotonic() + deadline_s)
        batched: Any = self._score_batch
        answers = await asyncio.gather(*(batched(part) for part in call.split(self._batch.max_images)))
        return [score for answer in answers for score in answer]

    @serve.batch(max_concurrent_batches=2, batch_size_fn=_count_images)
    async def _score_batch(self, calls: list[Call]) -> list[list[Score]]:
        return await self._pipeline.score(calls)


@serve.ingress()
class Ingress:
    """The HTTP application in a replica: it decodes, and passes arrays on to the rewards' handles."""

    def __init__(self, handles: Mapping[str, Any], config: ServicesConfig, made_of: str) -> None:
        logging.getLogger("reward_services").handlers = logging.getLogger("ray.serve").handlers
        logging.getLogger("reward_services").setLevel(logging.INFO)
        self._app = create_app(ServeRewards(handles), limits=config.limits, http=config.http, echo_ids=False)
        self._made_of = made_of

    def __serve_build_asgi_app__(self) -> Any:
        return self._app

    async def made_of(self) -> str:
        """The fingerprint of the configuration that is served."""
        return self._made_of


class ServeRewards:
    """`Rewards` by Serve handles. It can be sent to other processes of the cluster.

    A reward that fails as a whole (dead, overloaded, late) gives failed scores; those of the others stand.
    """

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = dict(handles)
        self._known: dict[str, RewardInfo] = {}
        self._asked_at = -float("inf")

    async def describe(self) -> list[RewardInfo]:
        """Every reward, at most 5 s old; one that does not answer is as last known, but not ready."""
        if time.monotonic() - self._asked_at > _FRESH_S or len(self._known) < len(self._handles):
            answers = await asyncio.gather(*(self._described(name) for name in self._handles))
            self._known = {info.id: info for info in answers}
            self._asked_at = time.monotonic()
        return list(self._known.values())

    async def score(
        self,
        images: Sequence[NDArray[np.uint8]],
        prompts: Sequence[str],
        *,
        rewards: Sequence[str],
        deadline_s: float,
    ) -> dict[str, list[Score]]:
        """As `Rewards.score`: the images are put into the object store once, for all rewards."""
        check_batch(images, prompts)
        check_known(rewards, self._handles)
        reference = ray.put(packed(images))
        scores = await asyncio.gather(
            *(self._scored(name, reference, list(prompts), deadline_s) for name in rewards)
        )
        return dict(zip(rewards, scores, strict=True))

    async def _described(self, name: str) -> RewardInfo:
        try:
            response = self._handles[name].describe.remote()
            info: RewardInfo = await _answer(name, response, _DESCRIBE_TIMEOUT_S)
        except RewardError as error:
            if name not in self._known:
                raise RewardNotReady(f"reward {name} does not answer yet: {error}") from error
            return self._known[name].model_copy(update={"ready": False})
        return info

    async def _scored(self, name: str, images: Any, prompts: list[str], deadline_s: float) -> list[Score]:
        try:
            response = self._handles[name].score.remote(images, prompts, deadline_s)
            scores: list[Score] = await _answer(name, response, deadline_s)
        except RewardError as error:
            return [Score.failed(error)] * len(prompts)
        return scores


async def _answer(name: str, response: Any, deadline_s: float) -> Any:
    """Await a handle's answer; handles have no deadline of their own and would wait for ever."""
    try:
        async with asyncio.timeout(deadline_s):
            return await response
    except (RayError, RayServeException) as error:
        raise _reward_error(name, error) from error
    except asyncio.CancelledError:
        response.cancel()
        raise
    except TimeoutError as error:
        response.cancel()
        raise DeadlineExceeded(f"{name} did not answer within {deadline_s:g} s") from error


def _reward_error(name: str, error: Exception) -> RewardError:
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, RewardError):
        return cause
    if isinstance(cause, BackPressureError):
        return Overloaded(f"too many requests wait for {name}")
    if isinstance(cause, DeploymentUnavailableError):
        return RewardNotReady(f"{name} is not running")
    if isinstance(cause, RayActorError | ActorUnavailableError | ObjectLostError):
        return ReplicaLost(f"a replica of {name} was lost ({type(cause).__name__})")
    return ReplicaFailed(f"{name} failed: {type(cause).__name__}: {first_line(str(cause))}")


def build(config: ServicesConfig) -> serve.Application:
    """The application: one deployment per reward, called like it, and the ingress before them."""
    rewards = {name: _deployment(name, reward) for name, reward in config.rewards.items()}
    http = config.http or Http()
    ingress = serve.deployment(
        name=_INGRESS,
        num_replicas=http.num_replicas,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": http.num_cpus},
    )
    return ingress(Ingress).bind(rewards, config, fingerprint(config))


def _deployment(name: str, reward: Reward) -> serve.Application:
    # No runtime_env means the job's own, working directory and all.
    actor = reward.model_dump(include={"num_cpus", "num_gpus", "runtime_env"}, exclude_none=True)
    scaling = reward.autoscaling and reward.autoscaling.model_dump()
    scale = {"autoscaling_config": scaling} if scaling else {"num_replicas": reward.num_replicas}
    deployment = serve.deployment(
        name=name,
        ray_actor_options=actor,
        user_config=reward.batch.model_dump(),
        max_constructor_retry_count=3,
        **reward.model_dump(include=_QUEUES | _HEALTH),
        **scale,
    )
    return deployment(RewardReplica).bind(name, reward)


def deploy(config: ServicesConfig, *, timeout_s: float = 120.0) -> None:
    """Serve the rewards on the connected Ray cluster and wait until every one has scored its golden sample.

    The same rewards, if they run already, are left alone; other ones are replaced.

    Raises:
        ConfigInvalid: the HTTP port is taken.
        RewardNotReady: a reward did not come up within `timeout_s` seconds; one line with cause and remedy.
    """
    before = serve.status()
    if _runs_already(config, before.applications.get(APPLICATION)):
        return
    if config.http is not None and not before.proxies:
        config.http.check_port()
    options = config.http.model_dump(include={"host", "port", "request_timeout_s"}) if config.http else None
    serve.start(proxy_location="HeadOnly" if options else "Disabled", http_options=options)
    target = serve.RunTarget(build(config), name=APPLICATION, route_prefix="/")
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    try:
        _wait_until_ready(timeout_s)
    except RewardNotReady:
        if APPLICATION not in before.applications:
            serve.delete(APPLICATION)
        raise


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """A connection to a running Ray cluster; without an address, to one that lives as long as the context.

    Ray is quiet within: its logs hold what its processes say, and would bury the one line that matters here.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    dashboard = None if address else False
    try:
        ray.init(
            address or "local", include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR
        )
    except (ConnectionError, ValueError, RayError) as error:
        raise ConfigInvalid(f"cannot connect to Ray at {address}: {first_line(str(error))}") from error
    try:
        yield
    finally:
        ray.shutdown()


def connect() -> ServeRewards:
    """The rewards that run on the connected Ray cluster; raises `RewardNotReady` when there are none."""
    application = serve.status().applications.get(APPLICATION)
    names = [name for name in application.deployments if name != _INGRESS] if application else []
    if not names:
        raise RewardNotReady("no rewards are served on this cluster; start them with `rewards serve CONFIG`")
    return ServeRewards({name: serve.get_deployment_handle(name, APPLICATION) for name in names})


def _runs_already(config: ServicesConfig, application: Any) -> bool:
    if application is None or application.status != "RUNNING":
        return False
    try:
        made_of = serve.get_deployment_handle(_INGRESS, APPLICATION).made_of.remote()
        return bool(made_of.result(timeout_s=_DESCRIBE_TIMEOUT_S) == fingerprint(config))
    except (RayError, RayServeException, TimeoutError):
        return False


def _wait_until_ready(timeout_s: float) -> None:
    ends = time.monotonic() + timeout_s
    while (application := serve.status().applications[APPLICATION]).status != "RUNNING":
        states = {
            name: (deployment.status.value, deployment.message)
            for name, deployment in application.deployments.items()
        }
        failure = failure_among(states, is_late=time.monotonic() > ends)
        if failure is not None:
            raise RewardNotReady(failure)
        time.sleep(_POLL_S)
