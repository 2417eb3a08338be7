"""A vision-language model behind an OpenAI-compatible endpoint: GPT-4o, vLLM's server, and many others."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import os
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reward_services.client import bearer, exchanged
from reward_services.diagnosis import first_line
from reward_services.errors import (
    BadAnswer,
    ConfigInvalid,
    DeadlineExceeded,
    Overloaded,
    RewardError,
    ScoringFailed,
    ServerUnreachable,
)
from reward_services.exchange import Reply, Send, exchange
from reward_services.images import from_array
from reward_services.judges.rubric import Question
from reward_services.options import Answers

_TOP = 20  # the most that OpenAI's API lists
_LEAST_MASS = 0.9
_JSON_TOKENS = 64
_RETRIES = 8
_RETRYABLE_4XX = (408, 409, 425)


class _Read(BaseModel):
    """The parts of an answer that matter; an endpoint may add others."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Likely(_Read):
    token: str
    logprob: float


class _Place(_Read):
    top_logprobs: tuple[_Likely, ...]


class _Logprobs(_Read):
    content: tuple[_Place, ...] | None = None


class _Said(_Read):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Read):
    message: _Said
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Completion(_Read):
    choices: tuple[_Choice, ...] = Field(min_length=1)


class _Level(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    level: str


class EndpointModel:
    """Asks over HTTP. 429, 5xx and lost connections are retried until the deadline; Retry-After is honoured.

    Args:
        model: the endpoint's name for the model.
        base_url: such as https://api.openai.com/v1.
        api_key_env: the environment variable that holds the key; None sends none.
        answers: how levels get their probabilities. `logprobs`: as the 20 likeliest tokens have them; levels
            that are not there have none, and together they must have nine tenths. `choice`: the same, of a
            token that vLLM's `structured_outputs` holds to the levels. `json`: one level is certain, named by
            strict JSON schema.

    Raises:
        ConfigInvalid: the variable is not set, or holds no key.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        api_key_env: str | None,
        answers: Answers,
    ) -> None:
        key = os.environ.get(api_key_env, "") if api_key_env else ""
        if api_key_env and not key:
            raise ConfigInvalid(
                f"the environment variable {api_key_env} is not set where the judge runs; put the key in it"
            )
        self.revision = f"{base_url}/{model}/{answers}"
        self._model, self._answers = model, answers
        # Relative URLs join the base only if it ends in a slash.
        base = base_url.rstrip("/") + "/"
        self._http = httpx.AsyncClient(base_url=base, headers=bearer(key), timeout=None)

    async def probabilities(
        self, image: NDArray[np.uint8], question: Question, *, expires: float
    ) -> dict[str, float]:
        """As `Model.probabilities`.

        Raises:
            ScoringFailed: the model refused, or said something else than a level.
            BadAnswer: the endpoint refused the request, or does not answer as OpenAI's API does.
            RewardUnavailable: no answer in time, though it was asked for as often as allowed.
        """
        url = await asyncio.to_thread(_data_uri, image)
        chat = question.messages({"type": "image_url", "image_url": {"url": url}})
        body = {"model": self._model, "messages": chat, "temperature": 0, **self._form(question.levels)}
        reply = await self._reply(json.dumps(body).encode(), expires)
        try:
            choice = _Completion.model_validate_json(reply.content).choices[0]
        except ValidationError as error:
            raise BadAnswer(f"{reply.url} does not answer as OpenAI's API does; check base_url") from error
        if choice.message.refusal:
            raise ScoringFailed(f"the judge refused: {first_line(choice.message.refusal)}")
        read = _told if self._answers == "json" else _weighed
        return read(choice, question.levels)

    async def check(self) -> None:
        """Nothing: a new replica would ask the same endpoint, and every question may cost money."""

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def _form(self, levels: Iterable[str]) -> dict[str, Any]:
        """What the request says of the answer."""
        if self._answers == "json":
            return {"max_completion_tokens": _JSON_TOKENS, "response_format": _schema(list(levels))}
        likely = {"max_completion_tokens": 1, "logprobs": True, "top_logprobs": _TOP}
        held = {"structured_outputs": {"choice": list(levels)}} if self._answers == "choice" else {}
        return likely | held

    async def _reply(self, body: bytes, expires: float) -> Reply:
        steps = exchange(max(expires - time.monotonic(), 0.0), _RETRIES)
        return await exchanged(steps, partial(self._sent, body))

    async def _sent(self, body: bytes, step: Send) -> Reply | RewardError:
        try:
            async with asyncio.timeout(step.left_s):
                response = await self._http.post(
                    "chat/completions", content=body, headers={"content-type": "application/json"}
                )
        except TimeoutError:
            return DeadlineExceeded(f"the judge's endpoint did not answer within {step.left_s:.1f} s")
        except httpx.RequestError as error:
            return ServerUnreachable(f"cannot reach the judge's endpoint ({error or type(error).__name__})")
        return _reply(response)


def _reply(response: httpx.Response) -> Reply | RewardError:
    """A good answer, or the error that its status comes to."""
    status, after = response.status_code, response.headers.get("retry-after", "")
    says = f"the judge's endpoint answers {status}: {first_line(response.text)}"
    if status == 429:
        return Overloaded(says, retry_after_s=_seconds(after))
    if status >= 500 or status in _RETRYABLE_4XX:
        return ServerUnreachable(says, retry_after_s=_seconds(after))
    if status != 200:
        return BadAnswer(f"{says}; check model, base_url and key")
    return Reply(str(response.url), status, after, response.content)


def _seconds(retry_after: str) -> float | None:
    """Retry-After in seconds; None where it is a date or absent."""
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        return None


def _weighed(choice: _Choice, levels: Iterable[str]) -> dict[str, float]:
    """Each level's probability among the likeliest tokens of the answer's first place."""
    places = (choice.logprobs and choice.logprobs.content) or ()
    if not places:
        raise ScoringFailed("the endpoint gave no log-probabilities; set `answers: json`")
    found = dict.fromkeys(levels, 0.0)
    for likely in places[0].top_logprobs:
        if likely.token.strip() in found:
            found[likely.token.strip()] += math.exp(min(likely.logprob, 0.0))
    mass = sum(found.values())
    if not mass >= _LEAST_MASS:  # NaN too
        raise ScoringFailed(f"only {mass:.2f} of the answer's probability is on the rubric's levels")
    return found


def _told(choice: _Choice, levels: Iterable[str]) -> dict[str, float]:
    """The level that the JSON names has all probability."""
    try:
        level = _Level.model_validate_json(choice.message.content or "").level
    except ValidationError as error:
        raise ScoringFailed(f"the judge did not answer in JSON as asked ({choice.finish_reason})") from error
    found = {one: float(one == level) for one in levels}
    if level not in found:
        raise ScoringFailed(f"the judge answered {first_line(level)!r}, which is no level of the rubric")
    return found


def _schema(levels: list[str]) -> dict[str, Any]:
    level = {"type": "string", "enum": levels}
    schema = {"type": "object", "properties": {"level": level}, "required": ["level"]}
    strict = {"name": "judgement", "strict": True, "schema": schema | {"additionalProperties": False}}
    return {"type": "json_schema", "json_schema": strict}


def _data_uri(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    from_array(image).save(buffer, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
