"""Load on a running service: throughput and latency, by encoding of the images and number of callers.

The loop is closed: a caller sends its next request when it has the answer to the last, and retries nothing.
Images are made and encoded before the clock starts. One process is every caller: where the server answers
more than some hundred requests a second, start it several times. Neither torch nor Ray.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from reward_services.client import bearer
from reward_services.errors import DeadlineExceeded, RewardError, ServerUnreachable
from reward_services.exchange import Call, Reply, error_in, parsed
from reward_services.images import Attachment, attach
from reward_services.schema import (
    FormItem,
    FormRequest,
    ImageRef,
    PartRef,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
)

Encoding = Literal["raw", "png", "jpeg", "json"]
"""The bytes of arrays, PNG or JPEG files as parts of a form; PNG files in base64 within JSON."""

_PROMPT = "a red circle"
_PATH = "/v1/scores"
_BODIES = 4
_PERCENTILES = (50, 90, 95, 99)
_JPEG_QUALITY = 90
_GRAIN = 2
_LONGEST_S = 120.0
# After a failure, so that a server which refuses at once is not asked in a tight loop.
_PAUSE_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is sent in each cell, for `seconds`: pictures of `size` × `size` pixels, the same for a seed."""

    rewards: tuple[str, ...]
    encodings: tuple[Encoding, ...] = ("raw", "png", "jpeg", "json")
    callers: tuple[int, ...] = (1, 4, 16, 64)
    images_per_request: int = 16
    size: int = 224
    seconds: float = 5.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What came of one encoding and number of callers.

    `seconds` is the time until the last answer. `images` have a score by every reward. A request without an
    answer is in `failed_requests`, a score that an answer lacks in `failed_scores`, both by type of problem;
    `latency_ms` is of the answered requests: p50 to p99 and max, None without any.
    """

    encoding: Encoding
    callers: int
    seconds: float
    answered_requests: int
    images: int
    images_per_s: float
    request_bytes: int
    latency_ms: dict[str, float] | None
    failed_requests: dict[str, int]
    failed_scores: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Body:
    headers: dict[str, str]
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Sent:
    """One request: seconds, and its error or its answer's images and failures."""

    seconds: float
    error: str | None = None
    images: int = 0
    failed_scores: Counter[str] = field(default_factory=Counter)


def cells(url: str, plan: Plan, api_key: str | None = None) -> Iterator[Cell]:
    """Measure cell by cell, in the order of the plan; each is given as soon as it is measured."""
    headers = bearer(api_key)
    for encoding in plan.encodings:
        bodies = _bodies(encoding, plan)
        for callers in plan.callers:
            limits = httpx.Limits(max_connections=callers)
            client = httpx.AsyncClient(base_url=url, headers=headers, timeout=_LONGEST_S, limits=limits)
            seconds, sent = asyncio.run(_measured(client, bodies, callers, plan.seconds))
            yield _cell(encoding, callers, seconds, sent, len(bodies[0].content))


async def _measured(
    client: httpx.AsyncClient, bodies: Sequence[_Body], callers: int, seconds: float
) -> tuple[float, list[_Sent]]:
    """Seconds until the last answer, and what was sent; requests that open connections come before."""
    following = itertools.cycle(bodies)
    sent: list[_Sent] = []

    async def call_until(ends: float) -> None:
        while time.perf_counter() < ends:
            sent.append(await _send(client, next(following)))
            if sent[-1].error is not None:
                await asyncio.sleep(_PAUSE_S)

    async with client:
        await asyncio.gather(*(_send(client, next(following)) for _ in range(callers)))
        started = time.perf_counter()
        await asyncio.gather(*(call_until(started + seconds) for _ in range(callers)))
        return time.perf_counter() - started, sent


async def _send(client: httpx.AsyncClient, body: _Body) -> _Sent:
    started = time.perf_counter()
    try:
        response = await client.post(_PATH, content=body.content, headers=body.headers)
    except httpx.TimeoutException:
        return _Sent(time.perf_counter() - started, DeadlineExceeded.slug)
    except httpx.RequestError:
        return _Sent(time.perf_counter() - started, ServerUnreachable.slug)
    seconds = time.perf_counter() - started
    try:
        items = _answer(response).items
    except RewardError as error:
        return _Sent(seconds, error.slug)
    scores = [score for item in items for score in item.scores.values()]
    failed = Counter(score.error.type.rpartition("/")[2] for score in scores if score.error is not None)
    return _Sent(
        seconds, None, sum(all(score.ok for score in item.scores.values()) for item in items), failed
    )


def _answer(response: httpx.Response) -> ScoreResponse:
    reply = Reply(str(response.url), response.status_code, "", response.content)
    error = error_in(reply)
    if error is not None:
        raise error
    return parsed(ScoreResponse, reply)


def _cell(
    encoding: Encoding, callers: int, seconds: float, sent: Sequence[_Sent], request_bytes: int
) -> Cell:
    answered = [1000 * one.seconds for one in sent if one.error is None]
    images = sum(one.images for one in sent)
    latency_ms = None
    if answered:
        percentiles = np.percentile(answered, _PERCENTILES)
        latency_ms = {f"p{of}": round(float(ms), 3) for of, ms in zip(_PERCENTILES, percentiles, strict=True)}
        latency_ms["max"] = round(max(answered), 3)
    return Cell(
        encoding=encoding,
        callers=callers,
        seconds=round(seconds, 3),
        answered_requests=len(answered),
        images=images,
        images_per_s=round(images / seconds, 3),
        request_bytes=request_bytes,
        latency_ms=latency_ms,
        failed_requests=dict(Counter(one.error for one in sent if one.error is not None)),
        failed_scores=dict(sum((one.failed_scores for one in sent), Counter())),
    )


def _bodies(encoding: Encoding, plan: Plan) -> list[_Body]:
    rng = np.random.default_rng(plan.seed)
    return [
        _body(encoding, [picture(plan.size, rng) for _ in range(plan.images_per_request)], plan.rewards)
        for _ in range(_BODIES)
    ]


def _body(encoding: Encoding, pictures: Sequence[NDArray[np.uint8]], rewards: tuple[str, ...]) -> _Body:
    if encoding == "json":
        items = tuple(
            ScoreItem(
                prompt=_PROMPT, image=ImageRef(media_type="image/png", data=base64.b64encode(file).decode())
            )
            for file in (_file(picture, "png") for picture in pictures)
        )
        request = ScoreRequest(rewards=rewards, items=items)
        return _Body({"content-type": "application/json"}, request.model_dump_json().encode())
    parts = tuple(_part(encoding, picture) for picture in pictures)
    form = FormRequest(
        rewards=rewards,
        items=tuple(
            FormItem(prompt=_PROMPT, image=PartRef(part=str(number), shape=part.shape))
            for number, part in enumerate(parts)
        ),
    )
    call = Call("POST", _PATH, form, parts)
    return _Body(call.headers, call.body(_LONGEST_S) or b"")


def _part(encoding: Encoding, picture: NDArray[np.uint8]) -> Attachment:
    return attach(picture if encoding == "raw" else _file(picture, encoding))


def _file(picture: NDArray[np.uint8], encoding: Encoding) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, encoding, quality=_JPEG_QUALITY)
    return buffer.getvalue()


def picture(size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A (size, size, 3) picture: a gradient, shapes on it, and a little grain.

    It compresses about as a photograph does, as PNG to a third: noise would not, and a drawing far better.
    """
    one, other = rng.integers(0, 256, (2, 3))
    across, down = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    tilt = rng.uniform()
    mixture = (tilt * across + (1 - tilt) * down)[..., None]
    image = Image.fromarray((one + (other - one) * mixture).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for shape in (draw.ellipse, draw.rectangle, draw.ellipse):
        (left, right), (top, bottom) = np.sort(rng.integers(0, size, (2, 2)), axis=1)
        shape((int(left), int(top), int(right), int(bottom)), fill=tuple(rng.integers(0, 256, 3).tolist()))
    grain = rng.integers(-_GRAIN, _GRAIN + 1, (size, size, 3))
    return np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)


HEADING = (
    f"{'encoding':<9}{'callers':>8}{'images/s':>10}{'requests':>10}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}"
    f"{'MB sent':>9}  failed"
)
"""The line above the lines of `row`; MB sent is of one request."""


def row(cell: Cell) -> str:
    """A cell as a line of the table, failures by type at its end."""
    times = [f"{cell.latency_ms[name]:.1f}" if cell.latency_ms else "-" for name in ("p50", "p95", "p99")]
    failed = [f"{count} requests {what}" for what, count in cell.failed_requests.items()]
    failed += [f"{count} scores {what}" for what, count in cell.failed_scores.items()]
    return (
        f"{cell.encoding:<9}{cell.callers:>8}{cell.images_per_s:>10.1f}{cell.answered_requests:>10}"
        f"{''.join(f'{time_ms:>9}' for time_ms in times)}{cell.request_bytes / 1e6:>9.2f}"
        f"  {', '.join(failed) or '-'}"
    )
