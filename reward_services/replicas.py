"""RAY. What runs in Serve's processes: a replica of a reward, and of the HTTP endpoint before them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve

from reward_services.config import REWARD, Http, Reward, ServicesConfig
from reward_services.errors import ConfigInvalid, DeadlineExceeded
from reward_services.handles import ServeRewards
from reward_services.http.app import create_app
from reward_services.instruments import Instruments
from reward_services.judges import JUDGES
from reward_services.judges.judge import Judge
from reward_services.merging import IMAGES_A_CALL, MergedRewards
from reward_services.observed import Observed
from reward_services.pipeline import Call, Pipeline
from reward_services.schema import RewardInfo, Score
from reward_services.scorers import SCORERS
from reward_services.scorers.scorer import Scorer


def _count_images(calls: list[Call]) -> int:
    """The size of a batch. An exception in here would hang the replica (ray#66140): nothing here raises."""
    return sum(len(call.prompts) for call in calls)


def _sees_reserved_gpus() -> bool:
    """Whether this replica has reserved a GPU; else it is to see none, before CUDA looks for them.

    Ray hides them or not, by how its nodes were started: a model would compute on a GPU that others reserved.
    """
    if not ray.is_initialized():  # made by hand, of no cluster: asking would start one
        return True
    reserved = bool(ray.get_runtime_context().get_accelerator_ids().get("GPU"))
    if not reserved:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return reserved


class RewardReplica:
    """One replica of one reward: any scorer, batched across callers, with a health check that scores.

    Serve calls `reconfigure` before the first request, and on a running replica when its settings change.
    """

    _scorer: Scorer[Any, Any]
    _pipeline: Pipeline

    def __init__(self, name: str) -> None:
        self._name = name
        self._made_of: Any = None
        self._has_gpu = _sees_reserved_gpus()
        self._observed = Observed(name, Instruments())

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take on batching and, where it is another, the model; the one before scores until that is ready.

        Raises:
            ConfigInvalid: the scorer cannot be made, or the reference of its scores not read.
            ReplicaFailed: it cannot score its golden sample.
        """
        reward = REWARD.validate_python(user_config["reward"])
        device = getattr(reward.options, "device", "auto")
        if device.startswith("cuda") and not self._has_gpu:
            raise ConfigInvalid(
                f"options.device is {device} and no GPU is reserved: set num_gpus to 1, or a part such as 0.2"
            )
        made_of = (reward.scorer, reward.options, user_config["files"])
        if made_of != self._made_of:
            build = partial(SCORERS[reward.scorer], **reward.options.model_dump())
            scorer = await asyncio.to_thread(build)
            pipeline = await asyncio.to_thread(Pipeline, scorer, self._observed)
            self._scorer, self._pipeline, self._made_of = scorer, pipeline, made_of
        self._batch = reward.batch
        batched: Any = self._score_batch
        batched.set_max_batch_size(self._batch.max_images)
        batched.set_batch_wait_timeout_s(self._batch.wait_ms / 1000)
        _watch(self._observed, await self.describe(), reward)

    async def check_health(self) -> None:
        """Called by Serve; a replica that raises here three times in a row is replaced."""
        await self._pipeline.check()

    async def describe(self) -> RewardInfo:
        """What is served here."""
        return self._scorer.describe(self._name, max_items=self._batch.max_images)

    async def score(
        self, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str], deadline_s: float
    ) -> list[Score]:
        """One score per image, in order and of one revision; what has none in time has failed."""
        call = Call(images, prompts, expires=time.monotonic() + deadline_s)
        with self._observed.holding(len(prompts)):
            while True:
                parts = call.split(self._batch.max_images)
                answers = await asyncio.gather(*map(self._in_time, parts))
                scores = [score for answer in answers for score in answer]
                if len({score.revision for score in scores if score.ok}) < 2:
                    return scores

    async def _in_time(self, part: Call) -> list[Score]:
        """The scores from its batch; a batch still under way when the time is up goes on, for nobody."""
        batched: Any = self._score_batch
        answer: asyncio.Task[list[Score]] = asyncio.create_task(batched(part))
        try:
            await asyncio.wait([answer], timeout=max(part.expires - time.monotonic(), 0.0))
        except asyncio.CancelledError:
            answer.cancel()
            raise
        if answer.done():
            return answer.result()
        answer.add_done_callback(_forget)
        late = Score.failed(DeadlineExceeded("the deadline passed before the reward was done"))
        return [late] * len(part.prompts)

    @serve.batch(max_concurrent_batches=2, batch_size_fn=_count_images)
    async def _score_batch(self, calls: list[Call]) -> list[list[Score]]:
        return await self._pipeline.score(calls)


class JudgeReplica:
    """One replica of one judge: its model batches by itself, only the images under way are bounded here."""

    _judge: Judge

    def __init__(self, name: str) -> None:
        self._name = name
        self._made_of: Any = None
        _sees_reserved_gpus()
        self._observed = Observed(name, Instruments())

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take on the bound and, where it is another, the judge.

        The one before ends first, since a GPU does not hold two engines; what it has under way has failed.

        Raises:
            ConfigInvalid: the judge cannot be made.
            ReplicaFailed: it cannot score its golden sample.
        """
        reward = REWARD.validate_python(user_config["reward"])
        made_of = (reward.scorer, reward.options, user_config["files"])
        if made_of != self._made_of:
            if self._made_of is not None:
                await self._judge.close()
            self._made_of = None
            self._judge = await JUDGES[reward.scorer](**reward.options.model_dump())
            await self._judge.prove()
            self._made_of = made_of
        self._max_images = reward.batch.max_images
        self._places = asyncio.Semaphore(self._max_images)
        _watch(self._observed, await self.describe(), reward)

    async def check_health(self) -> None:
        """Called by Serve; a replica that raises here three times in a row is replaced."""
        await self._judge.check()

    async def describe(self) -> RewardInfo:
        """What is served here."""
        return self._judge.describe(self._name, max_items=self._max_images)

    async def score(
        self, images: Sequence[NDArray[np.uint8]], prompts: Sequence[str], deadline_s: float
    ) -> list[Score]:
        """One score per image, in order and of one revision; what is not answered in time has failed."""
        judge, places, came = self._judge, self._places, time.monotonic()
        expires = came + deadline_s

        async def scored(image: NDArray[np.uint8], prompt: str) -> Score:
            try:
                async with asyncio.timeout(expires - time.monotonic()), places:
                    return await judge.score(image, prompt, expires=expires)
            except TimeoutError:
                return Score.failed(DeadlineExceeded("the deadline passed before the judge came to it"))

        with self._observed.holding(len(prompts)):
            scores = await asyncio.gather(*map(scored, images, prompts))
        self._observed.took("total", time.monotonic() - came)
        self._observed.scored(scores)
        return scores


def _forget(answer: asyncio.Task[list[Score]]) -> None:
    """Asks for the error, so that nobody reports one that nobody asked for."""
    if not answer.cancelled():
        answer.exception()


def _watch(observed: Observed, info: RewardInfo, reward: Reward) -> None:
    observed.serve(info, dtype=getattr(reward.options, "dtype", "none"), options=reward.observe)


@serve.ingress()
class Ingress:
    """The HTTP application in a replica: it decodes, and passes arrays on to the rewards' handles."""

    def __init__(self, handles: Mapping[str, Any], config: ServicesConfig, made_of: str) -> None:
        logging.getLogger("reward_services").handlers = logging.getLogger("ray.serve").handlers
        logging.getLogger("reward_services").setLevel(logging.INFO)
        http = config.http or Http()
        calls = max(1, http.images_at_once // IMAGES_A_CALL)
        rewards = MergedRewards(ServeRewards(handles), calls_at_once=calls)
        self._app = create_app(rewards, names=list(handles), limits=config.limits, http=http, echo_ids=False)
        self._made_of = made_of

    def __serve_build_asgi_app__(self) -> Any:
        return self._app

    async def made_of(self) -> str:
        """The fingerprint of the configuration that is served."""
        return self._made_of
