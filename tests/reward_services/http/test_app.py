"""The HTTP API in process, with real scorers: right answers in order, and a problem for everything else."""

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from reward_services import (
    Limits,
    Overloaded,
    Problem,
    ReplicaLost,
    RewardNotReady,
    Rewards,
    Score,
    ScoreRequest,
)
from reward_services.http.app import create_app
from reward_services.scorers.clip import ClipScorer
from reward_services.scorers.jpeg import JpegScorer
from reward_services.scorers.verifier import VerifierScorer

Draw = Callable[..., list[Any]]
Item = Callable[..., dict[str, Any]]
LIMITS = Limits(max_items=8, max_image_bytes=20_000, max_image_pixels=64 * 64, max_prompt_bytes=100)


@pytest.fixture(scope="module")
def rewards(rewards_here: Callable[..., Any], tiny_clip: Path) -> Any:
    return rewards_here(
        {"jpeg": JpegScorer(), "clip": ClipScorer(str(tiny_clip)), "verifier": VerifierScorer()}
    )


@pytest.fixture(scope="session")
def item(json_item: Item) -> Item:
    return json_item


@pytest.fixture
def call(rewards: Rewards) -> Callable[..., httpx.Response]:
    return caller(rewards)


def caller(rewards: Rewards, limits: Limits = LIMITS) -> Callable[..., httpx.Response]:
    """A blocking function that sends one request to the application."""
    app = create_app(rewards, limits=limits)

    async def send(method: str, path: str, **content: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **content)

    return lambda method, path, **content: asyncio.run(send(method, path, **content))


def problem_of(response: httpx.Response) -> Problem:
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.content)
    assert problem.status == response.status_code
    return problem


def scores_in(body: Any, reward: str) -> list[Score]:
    """As the client has them: each with the revision that the answer states."""
    revision = body["model_revisions"][reward]
    return [Score.model_validate(item["scores"][reward]).by(revision) for item in body["items"]]


def test_scores_are_those_of_the_scorers(
    call: Callable[..., httpx.Response], rewards: Any, draw: Draw, item: Item
) -> None:
    images, prompts = draw(4), ["a red circle", "cat", "a red circle", "two blue squares"]
    items = [
        item(image, prompt, id=f"p{n}") for n, (image, prompt) in enumerate(zip(images, prompts, strict=True))
    ]
    response = call("POST", "/v1/scores", json={"rewards": ["clip", "verifier"], "items": items})
    assert response.status_code == 200
    body = response.json()
    assert [(one["id"], one["index"]) for one in body["items"]] == [(f"p{n}", n) for n in range(4)]
    for name in ("clip", "verifier"):
        assert scores_in(body, name) == rewards.scorers[name].score(images, prompts)
    assert body["model_revisions"] == {name: rewards.scorers[name].revision for name in ("clip", "verifier")}
    assert set(body["timing_ms"]) == {"decode", "score"}


def test_one_bad_item_among_good_ones(
    call: Callable[..., httpx.Response], rewards: Any, draw: Draw, item: Item
) -> None:
    images = draw(6)
    items = [item(image) for image in images]
    items[1]["image"]["data"] = base64.b64encode(b"torn").decode()
    items[2]["image"]["media_type"] = "image/tiff"
    items[3] = item(Image.new("RGB", (65, 64)))
    items[4]["prompt"] = "red " * 26
    body = call("POST", "/v1/scores", json={"rewards": ["jpeg", "clip"], "items": items}).json()
    for name in ("jpeg", "clip"):
        scores = scores_in(body, name)
        statuses = [score.error.status if score.error else 200 for score in scores]
        assert statuses == [200, 422, 415, 413, 413, 200]
        exact = rewards.scorers[name].score([images[0], images[5]], ["a red circle"] * 2)
        assert [scores[0], scores[5]] == exact


def test_an_item_may_be_beyond_one_reward_only(
    call: Callable[..., httpx.Response], draw: Draw, item: Item
) -> None:
    items = [item(draw(1)[0], "an astronaut")]
    body = call("POST", "/v1/scores", json={"rewards": ["verifier", "jpeg"], "items": items}).json()
    scores = body["items"][0]["scores"]
    assert scores["verifier"]["error"]["type"] == "/problems/prompt-invalid"
    assert "value" not in scores["verifier"]
    assert scores["jpeg"]["value"] < 0


def test_nothing_decodable_is_still_an_answer(call: Callable[..., httpx.Response]) -> None:
    bad = {"prompt": "a", "image": {"media_type": "image/png", "data": "AAAA"}}
    response = call("POST", "/v1/scores", json={"rewards": ["jpeg"], "items": [bad]})
    assert response.status_code == 200
    assert response.json()["items"][0]["scores"]["jpeg"]["error"]["status"] == 422


@pytest.mark.parametrize(
    ("content", "status", "slug"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "request-malformed"),
        ({"content": b"\x80\x04K\x01."}, 415, "media-type-unsupported"),
        ({}, 415, "media-type-unsupported"),
        ({"json": {"rewards": ["jpeg"]}}, 422, "request-invalid"),
        ({"json": {"rewards": ["jpeg"], "items": [{"prompt": "a"}]}}, 422, "request-invalid"),
        ({"json": {"rewards": ["jpeg"], "items": [], "url": "http://a"}}, 422, "request-invalid"),
        ({"json": {"rewards": ["jpg"], "items": ["*"]}}, 404, "reward-unknown"),
        ({"json": {"rewards": ["jpeg"], "items": ["*"] * 9}}, 413, "too-large"),
    ],
)
def test_wrong_requests_are_problems(
    call: Callable[..., httpx.Response], item: Item, content: dict[str, Any], status: int, slug: str
) -> None:
    if "items" in content.get("json", {}):
        good = item(np.zeros((8, 8, 3), np.uint8))
        items = [good if one == "*" else one for one in content["json"]["items"]]
        content = {"json": {**content["json"], "items": items}}
    problem = problem_of(call("POST", "/v1/scores", **content))
    assert (problem.status, problem.type) == (status, f"/problems/{slug}")


def test_a_validation_problem_points_and_does_not_repeat_the_input(
    call: Callable[..., httpx.Response],
) -> None:
    secret = "a prompt that nobody else should read"
    response = call(
        "POST", "/v1/scores", json={"rewards": ["jpeg"], "items": [{"prompt": secret, "image": secret}]}
    )
    problem = problem_of(response)
    assert problem.errors is not None
    assert [field.pointer for field in problem.errors] == ["/items/0/image"]
    assert secret not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v2", 404), ("GET", "/v1/scores", 405), ("POST", "/livez", 405), ("PUT", "/v1/scores", 405)],
)
def test_wrong_routes_are_problems(
    call: Callable[..., httpx.Response], method: str, path: str, status: int
) -> None:
    assert problem_of(call(method, path)).status == status


def test_rewards_are_listed_with_the_limits(call: Callable[..., httpx.Response]) -> None:
    body = call("GET", "/v1/rewards").json()
    assert [info["id"] for info in body["data"]] == ["jpeg", "clip", "verifier"]
    assert body["data"][1]["range"] == [-100.0, 100.0]
    assert body["limits"]["max_items"] == 8
    assert call("GET", "/v1/rewards/clip").json() == body["data"][1]
    assert "did you mean 'clip'" in (problem_of(call("GET", "/v1/rewards/clop")).detail or "")


def test_probes_and_documentation(call: Callable[..., httpx.Response]) -> None:
    assert call("GET", "/livez").status_code == 200
    assert call("GET", "/readyz").status_code == 200
    assert "/v1/scores" in call("GET", "/openapi.json").json()["paths"]
    explained = call("GET", "/problems/too-large").json()
    assert (explained["status"], explained["retryable"]) == (413, False)
    assert problem_of(call("GET", "/problems/nonsense")).status == 404


class Failing:
    """Rewards that are known, and fail in a way of one's choice."""

    def __init__(self, error: Exception, *, when: str) -> None:
        self._error, self._when = error, when

    async def describe(self, rewards: Any = None) -> list[Any]:
        if self._when == "describe":
            raise self._error
        from reward_services import RewardInfo

        info = {"id": "jpeg", "revision": "1", "range": (None, None), "higher_is_better": True}
        more = {"deterministic": True, "modality": ("image",), "max_items": 1, "ready": self._when != "ready"}
        return [RewardInfo.model_validate(info | more)]

    async def score(self, images: Any, prompts: Any, *, rewards: Any, deadline_s: float) -> Any:
        if self._when == "score":
            raise self._error
        from reward_services import RewardError

        assert isinstance(self._error, RewardError)
        return {name: [Score.failed(self._error)] * len(prompts) for name in rewards}


def test_readyz_names_what_is_not_ready() -> None:
    problem = problem_of(caller(Failing(RewardNotReady(), when="ready"))("GET", "/readyz"))
    assert (problem.status, problem.detail) == (503, "not ready: jpeg")
    response = caller(Failing(RewardNotReady("starting"), when="describe"))("GET", "/v1/rewards")
    assert problem_of(response).status == 503
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("error", [ReplicaLost("gone"), Overloaded("full", retry_after_s=3.0)])
def test_a_request_of_which_nothing_could_be_scored_fails_as_a_whole(
    error: Any, draw: Draw, item: Item
) -> None:
    request = {"rewards": ["jpeg"], "items": [item(picture) for picture in draw(2)]}
    response = caller(Failing(error, when="each item"))("POST", "/v1/scores", json=request)
    assert problem_of(response).type.endswith(error.slug)
    assert "retry-after" in response.headers


def test_a_bug_is_a_problem_without_its_traceback(draw: Draw, item: Item) -> None:
    request = {"rewards": ["jpeg"], "items": [item(draw(1)[0])]}
    broken = caller(Failing(KeyError("internal name"), when="score"))
    response = broken("POST", "/v1/scores", json=request)
    assert problem_of(response).status == 500
    assert "internal name" not in response.text


def test_form_and_json_give_the_same_scores(
    call: Callable[..., httpx.Response], rewards: Any, draw: Draw, item: Item
) -> None:
    """A PNG part, a JPEG part, a raw part; one too large and one torn fail alone."""
    images = draw(3)
    request = {
        "rewards": ["clip", "jpeg"],
        "items": [
            {"prompt": "a", "image": {"part": "png"}},
            {"prompt": "b", "image": {"part": "raw", "shape": [32, 32, 3]}},
            {"prompt": "c", "image": {"part": "large", "shape": [65, 65, 3]}},
            {"prompt": "d", "image": {"part": "torn"}},
            {"prompt": "e", "image": {"part": "png"}},
        ],
    }
    files: Any = {
        "request": (None, json.dumps(request), "application/json"),
        "png": ("a.png", base64.b64decode(item(images[0])["image"]["data"]), "image/png"),
        "raw": ("b", images[1].tobytes(), "application/octet-stream"),
        "large": ("c", bytes(65 * 65 * 3), "application/octet-stream"),
        "torn": ("d.webp", b"torn", "image/webp"),
    }
    answered = call("POST", "/v1/scores", files=files).json()
    for name in ("clip", "jpeg"):
        scores = scores_in(answered, name)
        assert [score.error.status if score.error else 200 for score in scores] == [200, 200, 413, 422, 200]
        exact = rewards.scorers[name].score([images[0], images[1], images[0]], ["a", "b", "e"])
        assert [scores[0], scores[1], scores[4]] == exact


def test_the_id_of_a_request_is_echoed_and_in_its_problems(call: Callable[..., httpx.Response]) -> None:
    sent = {"x-request-id": "run-7"}
    assert call("GET", "/livez", headers=sent).headers["x-request-id"] == "run-7"
    for method, path in (("GET", "/v2"), ("GET", "/v1/rewards/clop"), ("POST", "/v1/scores")):
        response = call(method, path, headers=sent)
        assert response.headers["x-request-id"] == problem_of(response).request_id == "run-7"
    broken = caller(Failing(KeyError("internal"), when="describe"))("GET", "/v1/rewards", headers=sent)
    assert broken.headers["x-request-id"] == problem_of(broken).request_id == "run-7"


def test_a_route_with_a_typed_body_has_the_same_problems(rewards: Rewards) -> None:
    """Routes that let FastAPI read their body: its errors are problems too, with a pointer."""

    async def run() -> httpx.Response:
        app = create_app(rewards)

        @app.post("/typed")
        async def typed(request: ScoreRequest) -> None: ...

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/typed", json={"rewards": ["jpeg"], "items": [{"prompt": "secret"}]})

    problem = problem_of(asyncio.run(run()))
    assert problem.errors is not None
    assert problem.errors[0].pointer == "/items/0/image"
