"""RAY. `Rewards` over Serve handles: one `ray.put` a call, fanned out to each reward's deployment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from reward_services.diagnosis import first_line
from reward_services.errors import (
    DeadlineExceeded,
    Overloaded,
    ReplicaFailed,
    ReplicaLost,
    RewardError,
    RewardNotReady,
    RewardUnavailable,
)
from reward_services.images import packed
from reward_services.rewards import check_batch, check_known, told_s
from reward_services.schema import RewardInfo, Score

_FRESH_S, _STALE_S, _MISSED_S, _DESCRIBE_TIMEOUT_S = 5.0, 15.0, 1.0, 2.0


class ServeRewards:
    """`Rewards` by Serve handles. It can be sent to other processes of the cluster.

    A reward that fails as a whole (dead, overloaded, late) gives failed scores; those of the others stand.
    """

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = dict(handles)
        self._known: dict[str, RewardInfo] = {}
        self._missed: dict[str, RewardError] = {}
        self._asked_at = -float("inf")
        self._asking: asyncio.Task[None] | None = None
        self._asleep: set[str] = set()
        self._looking: asyncio.Task[set[str]] | None = None

    def __reduce__(self) -> tuple[type[ServeRewards], tuple[dict[str, DeploymentHandle[Any]]]]:
        return ServeRewards, (self._handles,)

    async def describe(self, rewards: Collection[str] | None = None) -> list[RewardInfo]:
        """Every reward or these, at most 15 s old; one that does not answer is as last known, but not ready.

        A reward that has scaled to zero is as last known: asking would wake it. However many call, they are
        asked once at a time, and after 5 s in the background: every scoring request comes through here.

        Raises:
            RewardUnknown: one of these is not served.
            RewardNotReady: one of them has never answered; callers who do not ask for it do not wait for it.
        """
        names = list(self._handles if rewards is None else rewards)
        check_known(names, self._handles)
        age_s = time.monotonic() - self._asked_at
        asked_again_s = _FRESH_S if len(self._known) == len(self._handles) else _MISSED_S
        if age_s > asked_again_s and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask())
        if self._asking is not None and (age_s > _STALE_S or not self._known.keys() >= set(names)):
            await asyncio.shield(self._asking)
        for name in names:
            if name not in self._known:
                raise RewardNotReady(f"reward {name} does not answer yet: {self._missed[name]}")
        return [self._known[name] for name in names]

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
        began = time.monotonic()
        reference = _put(images)
        left_s = max(deadline_s - (time.monotonic() - began), 0.001)
        scores = await asyncio.gather(
            *(self._scored(name, reference, list(prompts), left_s) for name in rewards)
        )
        return dict(zip(rewards, scores, strict=True))

    async def _ask(self) -> None:
        await self._look_who_sleeps()
        awake = [name for name in self._handles if name not in self._known or name not in self._asleep]
        answers = await asyncio.gather(*(self._described(name) for name in awake))
        self._known |= {info.id: info for info in answers if isinstance(info, RewardInfo)}
        self._missed = {n: one for n, one in zip(awake, answers, strict=True) if isinstance(one, RewardError)}
        self._asked_at = time.monotonic()

    async def _look_who_sleeps(self) -> None:
        """Serve's controller says so; while it is gone, as with the head, replicas answer without it."""
        if self._looking is None or self._looking.done():
            applications = {handle.app_name for handle in self._handles.values()}
            self._looking = asyncio.create_task(asyncio.to_thread(_asleep, applications))
        await asyncio.wait([self._looking], timeout=_DESCRIBE_TIMEOUT_S)
        if self._looking.done() and self._looking.exception() is None:
            self._asleep = self._looking.result()

    async def _described(self, name: str) -> RewardInfo | RewardError:
        """What a reward says of itself; its error where it does not answer and never has."""
        try:
            response = self._handles[name].describe.remote()
            info: RewardInfo = await _answer(name, response, _DESCRIBE_TIMEOUT_S)
        except RewardError as error:
            known = self._known.get(name)
            return known.model_copy(update={"ready": False}) if known else error
        return info

    async def _scored(self, name: str, images: Any, prompts: list[str], deadline_s: float) -> list[Score]:
        try:
            response = self._handles[name].score.remote(images, prompts, told_s(deadline_s))
            scores: list[Score] = await _answer(name, response, deadline_s)
        except RewardError as error:
            return [Score.failed(error)] * len(prompts)
        return scores


def _put(images: Sequence[NDArray[np.uint8]]) -> Any:
    """The images in the object store; while it and the disk behind it are full, that may pass."""
    try:
        return ray.put(packed(images))
    except RayError as error:
        raise RewardUnavailable(
            f"Ray's object store does not take the images: {first_line(str(error))}; make room there"
        ) from error


def _asleep(names: Collection[str]) -> set[str]:
    """Rewards of these applications that are well and have no replica."""
    served = [one for name, one in serve.status().applications.items() if name in names]
    deployments = [named for application in served for named in application.deployments.items()]
    return {name for name, one in deployments if one.status == "HEALTHY" and not one.replica_states}


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
    if isinstance(cause, RayActorError | ObjectLostError):
        return ReplicaLost(f"a replica of {name} was lost ({type(cause).__name__})")
    return ReplicaFailed(f"{name} failed: {type(cause).__name__}: {first_line(str(cause))}")
