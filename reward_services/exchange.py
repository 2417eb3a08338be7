"""What a client says and what it makes of the answers, without I/O: requests, retries, results."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from reward_services.errors import (
    BadAnswer,
    DeadlineExceeded,
    PromptInvalid,
    RequestInvalid,
    RewardError,
    error_from,
)
from reward_services.images import Attachment, Picture, attach
from reward_services.schema import (
    FormItem,
    FormRequest,
    PartRef,
    Problem,
    Score,
    ScoreOptions,
    ScoreResponse,
)

_ITEMS_PER_REQUEST, _BYTES_PER_REQUEST = 64, 32 * 2**20
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 8.0

Answer = TypeVar("Answer", bound=BaseModel)
Attached = Attachment | RewardError


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request; a scoring request carries its deadline, so its body is made anew for each attempt.

    `parts` are the images that the items of `request` name, in order.
    """

    method: str
    path: str
    request: FormRequest | None = None
    parts: tuple[Attachment, ...] = field(default=(), repr=False)
    _boundary: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def headers(self) -> dict[str, str]:
        """What the request says of its body."""
        return {"content-type": f"multipart/form-data; boundary={self._boundary}"} if self.request else {}

    def body(self, left_s: float) -> bytes | None:
        """The multipart body, with so many seconds as its deadline."""
        if self.request is None:
            return None
        options = ScoreOptions(deadline_ms=max(1, round(1000 * left_s)))
        request = self.request.model_copy(update={"options": options}).model_dump_json().encode()
        pieces = [self._opening("request", "application/json"), request]
        for item, part in zip(self.request.items, self.parts, strict=True):
            pieces += [self._opening(item.image.part, part.media_type), part.content]
        return b"".join([*pieces, f"\r\n--{self._boundary}--\r\n".encode()])

    def _opening(self, name: str, media_type: str) -> bytes:
        disposition = f'content-disposition: form-data; name="{name}"'
        return f"\r\n--{self._boundary}\r\n{disposition}\r\ncontent-type: {media_type}\r\n\r\n".encode()


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP response, as far as it matters here."""

    url: str
    status: int
    retry_after: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request now; it may take `left_s` seconds."""

    left_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for so many seconds."""

    seconds: float


Outcome = Reply | RewardError | None
"""What came of a step: a reply, an error of the transport, or nothing of a pause."""


def exchange(deadline_s: float, retries: int) -> Generator[Send | Pause, Outcome, Reply]:
    """The steps to a good reply: yields what to do, is sent what came of it, returns the reply.

    Raises:
        RewardError: what cannot be retried, or the last failure when attempts or time are used up.
    """
    ends = time.monotonic() + deadline_s
    for attempt in range(retries + 1):
        began = time.monotonic()
        outcome = yield Send(max(ends - began, 0.001))
        error = error_in(outcome)
        if error is None:
            assert isinstance(outcome, Reply)
            return outcome
        pause = _pause_s(attempt, error.retry_after_s)
        if attempt == retries or not _may_pass(error, began=began, again=time.monotonic() + pause, ends=ends):
            raise error
        yield Pause(pause)
    raise AssertionError("the last attempt returns or raises")


def _may_pass(error: RewardError, *, began: float, again: float, ends: float) -> bool:
    """Whether to ask again at `again` what was asked at `began`: what was late, only with more time to it."""
    needs_s = again - began if isinstance(error, DeadlineExceeded) else 0.0
    return error.retryable and ends - again > needs_s


def _pause_s(attempt: int, asked_s: float | None = None) -> float:
    """What the server asks for, else exponential; jitter keeps callers from returning together."""
    pause = asked_s or min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S)
    return pause * random.uniform(1.0, 1.5)


def error_in(outcome: Outcome) -> RewardError | None:
    """The error that an outcome is or carries; None for a good reply."""
    if not isinstance(outcome, Reply):
        return outcome
    if 200 <= outcome.status < 300:
        return None
    retry_after_s = float(outcome.retry_after) if outcome.retry_after.isdigit() else None
    try:
        problem = Problem.model_validate_json(outcome.content)
    except ValidationError:
        title = f"{outcome.url} answers with HTTP {outcome.status}"
        if outcome.status < 400 or outcome.status in (404, 405, 501):  # no such path or method there
            return BadAnswer(f"{title}; is this a reward server?")
        problem = Problem(title=title, status=outcome.status)
    return error_from(problem, retry_after_s=retry_after_s)


def parsed(model: type[Answer], reply: Reply) -> Answer:
    """A reply as the type that it should be; raises `BadAnswer` when it is not."""
    try:
        return model.model_validate_json(reply.content)
    except ValidationError as error:
        raise BadAnswer(f"{reply.url} does not answer as a reward server does; check the URL") from error


@dataclass(frozen=True, slots=True)
class Ask:
    """Send these requests now and wait for a reply to each, or its error; it may take `left_s` seconds."""

    calls: Sequence[Call]
    left_s: float


def scoring(
    images: Sequence[Attached],
    prompts: Sequence[str],
    rewards: Sequence[str],
    *,
    deadline_s: float,
    retries: int,
) -> Generator[Ask | Pause, Sequence[Reply | RewardError] | None, dict[str, list[Score]]]:
    """The steps to every score: an item whose failure may pass is asked about again, without the others.

    A replica that dies takes only part of a request with it. What still fails when attempts or time are used
    up is returned as the failure that it is.

    Raises:
        RewardError: in the first attempt a request failed for good, or all of them failed.
        BadAnswer: a reply does not answer each item of its call with each reward.
    """
    ends = time.monotonic() + deadline_s
    images = [_sendable(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    scores: dict[str, list[Score]] = {}
    left = list(range(len(images)))
    for attempt in range(retries + 1):
        asked = [images[index] for index in left]
        calls = list(score_calls(asked, [prompts[index] for index in left], rewards))
        began = time.monotonic()
        replies = (yield Ask(calls, max(ends - began, 0.001))) or ()
        refusal = _refusal(replies)
        if refusal is not None and scores:
            break
        if refusal is not None:
            raise refusal
        found = merged(asked, rewards, calls, replies)
        scores = scores or {reward: list(of_reward) for reward, of_reward in found.items()}
        for reward, of_reward in found.items():
            for index, score in zip(left, of_reward, strict=True):
                scores[reward][index] = score
        pause_s = _pause_s(attempt)
        may_pass = partial(_may_pass, began=began, again=time.monotonic() + pause_s, ends=ends)
        errors = {index: [scores[reward][index].error for reward in rewards] for index in left}
        left = [index for index in left if any(one and may_pass(error_from(one)) for one in errors[index])]
        if not left or attempt == retries:
            break
        yield Pause(pause_s)
    return scores


def _refusal(replies: Sequence[Reply | RewardError]) -> RewardError | None:
    """Why nothing is to be had: an error that would come again, or the first where all have failed."""
    errors = [reply for reply in replies if isinstance(reply, RewardError)]
    lasting = [error for error in errors if not error.retryable]
    return next(iter(lasting or (errors if len(errors) == len(replies) else ())), None)


def attached(pictures: Sequence[Picture]) -> list[Attached]:
    """Every picture for the wire; one that cannot be sent is its error, in its place."""
    return [_attached_one(picture) for picture in pictures]


def _attached_one(picture: Picture) -> Attached:
    try:
        return attach(picture)
    except RewardError as error:
        return error


def _sendable(image: Attached, prompt: str) -> Attached:
    """The image, or why its prompt cannot go with it: Python's strings may hold halves of characters."""
    try:
        prompt.encode()
    except (AttributeError, UnicodeEncodeError):
        return PromptInvalid("a prompt is text of whole characters")
    return image


def score_calls(images: Sequence[Attached], prompts: Sequence[str], rewards: Sequence[str]) -> Iterator[Call]:
    """The requests that score every image which can be sent, in order."""
    chosen: list[tuple[Attachment, str]] = []
    for image, prompt in zip(images, prompts, strict=True):
        if isinstance(image, RewardError):
            continue
        size = sum(len(one.content) for one, _ in chosen) + len(image.content)
        if chosen and (len(chosen) == _ITEMS_PER_REQUEST or size > _BYTES_PER_REQUEST):
            yield _score_call(chosen, rewards)
            chosen = []
        chosen.append((image, prompt))
    if chosen:
        yield _score_call(chosen, rewards)


def _score_call(chosen: Sequence[tuple[Attachment, str]], rewards: Sequence[str]) -> Call:
    items = tuple(
        FormItem(prompt=prompt, image=PartRef(part=str(number), shape=image.shape))
        for number, (image, prompt) in enumerate(chosen)
    )
    try:
        request = FormRequest(rewards=tuple(rewards), items=items)
    except ValidationError as error:
        raise RequestInvalid(f"rewards {list(rewards)}: {error.errors()[0]['msg']}") from error
    return Call("POST", "/v1/scores", request, tuple(image for image, _ in chosen))


def merged(
    images: Sequence[Attached],
    rewards: Sequence[str],
    calls: Sequence[Call],
    replies: Sequence[Reply | RewardError],
) -> dict[str, list[Score]]:
    """Scores by reward, in the order of the images; one that was not sent or not answered failed everywhere.

    Raises:
        BadAnswer: a reply does not answer each item of its call with each reward.
    """
    answered: list[dict[str, Score]] = []
    for call, reply in zip(calls, replies, strict=True):
        asked = len(call.request.items) if call.request else 0
        if isinstance(reply, RewardError):
            answered += [dict.fromkeys(rewards, Score.failed(reply))] * asked
            continue
        answer = parsed(ScoreResponse, reply)
        said = [set(answer.model_revisions), *(set(item.scores) for item in answer.items)]
        if len(answer.items) != asked or any(names != set(rewards) for names in said):
            raise BadAnswer(f"{reply.url} did not answer every image with every reward")
        by = answer.model_revisions
        answered += [
            {name: score.by(by[name]) for name, score in item.scores.items()} for item in answer.items
        ]
    remaining = iter(answered)
    per_image = [
        dict.fromkeys(rewards, Score.failed(image)) if isinstance(image, RewardError) else next(remaining)
        for image in images
    ]
    return {reward: [scores[reward] for scores in per_image] for reward in rewards}
