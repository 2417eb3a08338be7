"""The bench: what it counts is what the server saw, the same pictures in every encoding, failures by type."""

import asyncio
import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from reward_services import Limits, Overloaded, RewardInfo
from reward_services.bench import HEADING, Cell, Plan, cells, picture, row
from reward_services.config import Http
from reward_services.http.app import create_app
from reward_services.scorers.jpeg import JpegScorer
from tests.ports import free_port

Served = Callable[[Any], AbstractContextManager[str]]
PLAN = Plan(rewards=("jpeg",), encodings=("raw",), callers=(2,), images_per_request=3, size=16, seconds=0.3)


class Counting:
    """`Rewards` of one, jpeg, that takes `pause_s` and remembers the pictures of each call."""

    def __init__(self, pause_s: float = 0.0, error: Exception | None = None) -> None:
        self.calls: list[Sequence[Any]] = []
        self._pause_s, self._error = pause_s, error

    async def describe(self, rewards: Any = None) -> list[RewardInfo]:
        return [JpegScorer().describe("jpeg", max_items=64)]

    async def score(self, images: Any, prompts: Any, *, rewards: Any, deadline_s: float) -> Any:
        self.calls.append(images)
        await asyncio.sleep(self._pause_s)
        if self._error is not None:
            raise self._error
        return {"jpeg": JpegScorer().score(images, prompts)}


def measured(served: Served, rewards: Any, plan: Plan = PLAN, **settings: Any) -> list[Cell]:
    with served(create_app(rewards, **settings)) as url:
        return list(cells(url, plan))


def test_what_is_counted_is_what_the_server_saw(served: Served) -> None:
    """A cell of c callers sends c requests before its clock starts; all others are in its figures."""
    rewards = Counting()
    plan = Plan(rewards=("jpeg",), callers=(1, 4), images_per_request=3, size=16, seconds=0.2)
    found = measured(served, rewards, plan)
    assert [(cell.encoding, cell.callers) for cell in found] == [
        (encoding, callers) for encoding in ("raw", "png", "jpeg", "json") for callers in (1, 4)
    ]
    assert len(rewards.calls) == sum(cell.answered_requests + cell.callers for cell in found)
    for cell in found:
        assert cell.images == 3 * cell.answered_requests > 0
        assert cell.images_per_s == pytest.approx(cell.images / cell.seconds, rel=0.01)
        assert (cell.failed_requests, cell.failed_scores) == ({}, {})


def test_latency_and_throughput_of_a_server_that_takes_its_time(served: Served) -> None:
    """50 ms a request and 2 callers: at most 2 × 3 images in 50 ms, and no latency below that."""
    (cell,) = measured(served, Counting(pause_s=0.05))
    assert cell.latency_ms is not None
    assert list(cell.latency_ms) == ["p50", "p90", "p95", "p99", "max"]
    assert 50 <= cell.latency_ms["p50"] <= cell.latency_ms["p95"] <= cell.latency_ms["max"] < 10_000
    assert cell.images_per_s <= 2 * 3 / 0.05
    assert cell.seconds >= 0.3


def test_every_encoding_carries_the_same_pictures(served: Served) -> None:
    seen: list[list[Any]] = []
    for encoding in ("raw", "png", "json", "jpeg"):
        rewards = Counting()
        plan = Plan(
            rewards=("jpeg",), encodings=(encoding,), callers=(1,), images_per_request=2, seconds=0.05
        )
        (cell,) = measured(served, rewards, plan)
        seen.append(list(rewards.calls[0]))
        if encoding == "raw":
            assert 2 * 224 * 224 * 3 < cell.request_bytes < 2 * 224 * 224 * 3 + 2000
    for images in seen[1:3]:
        assert all(np.array_equal(one, other) for one, other in zip(seen[0], images, strict=True))
    close = [np.abs(one.astype(int) - other).mean() for one, other in zip(seen[0], seen[3], strict=True)]
    assert 0 < max(close) < 5
    assert not np.array_equal(*seen[0])


def test_a_refused_request_is_counted_by_type(served: Served) -> None:
    rewards = Counting(error=Overloaded("full"))
    (cell,) = measured(served, rewards)
    assert cell.failed_requests == {"overloaded": len(rewards.calls) - 2}
    assert (cell.answered_requests, cell.images, cell.latency_ms) == (0, 0, None)
    assert row(cell).endswith(f"  {len(rewards.calls) - 2} requests overloaded")


def test_a_failed_score_is_counted_by_type_and_its_image_is_not_scored(served: Served) -> None:
    (cell,) = measured(served, Counting(), limits=Limits(max_image_pixels=15 * 16))
    assert cell.failed_scores == {"too-large": 3 * cell.answered_requests}
    assert cell.images == 0
    assert cell.answered_requests > 0


def test_a_server_that_is_not_there() -> None:
    (cell,) = cells(f"http://127.0.0.1:{free_port()}", PLAN)
    assert set(cell.failed_requests) == {"server-unreachable"}


def test_its_key_is_sent(served: Served, tmp_path: Any) -> None:
    from reward_services.http.keys import new_key

    key, line = new_key("alice")
    (tmp_path / "keys.yaml").write_text(line, encoding="utf-8")
    app = create_app(Counting(), http=Http(keys=str(tmp_path / "keys.yaml")))
    with served(app) as url:
        (without,), (with_key,) = list(cells(url, PLAN)), list(cells(url, PLAN, key))
    assert set(without.failed_requests) == {"key-invalid"}
    assert with_key.failed_requests == {}


def test_a_picture_compresses_as_a_photograph_does() -> None:
    array = picture(224, np.random.default_rng(0))
    assert array.shape == (224, 224, 3)
    assert array.dtype == np.uint8
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    assert 0.2 < len(file.getvalue()) / array.nbytes < 0.5


def test_a_row_stands_under_its_heading() -> None:
    latency_ms = {"p50": 12.3, "p90": 20.0, "p95": 30.0, "p99": 40.0, "max": 50.0}
    cell = Cell(
        encoding="png",
        callers=16,
        seconds=5.0,
        answered_requests=100,
        images=1600,
        images_per_s=320.0,
        request_bytes=1_234_567,
        latency_ms=latency_ms,
        failed_requests={"overloaded": 2},
        failed_scores={"image-invalid": 5},
    )
    assert row(cell).split()[:8] == ["png", "16", "320.0", "100", "12.3", "30.0", "40.0", "1.23"]
    assert row(cell)[HEADING.index("failed") :] == "2 requests overloaded, 5 scores image-invalid"
