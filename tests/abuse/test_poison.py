"""One bad image among 63 good ones: 63 exact scores and one typed failure, for every reward and encoding."""

import asyncio
import base64
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from reward_services import Limits, Score
from reward_services.http.app import create_app
from reward_services.images import Attachment, read
from reward_services.scorers import SCORERS
from reward_services.scorers.scorer import Scorer
from reward_services.scorers.verifier import VerifierScorer
from reward_services.shapes import captions, render
from tests import mean_pixel
from tests.abuse.hostile import JPEG, PNG, WEBP, saved
from tests.rewards_here import RewardsHere
from tests.tiny_detector import write_geneval

GOLDEN = Path(__file__).parents[1] / "reward_services" / "golden"
CLIP, IMAGE_REWARD = str(GOLDEN / "clip" / "model"), str(GOLDEN / "imagereward")
TORCH = {"torch_threads": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "aesthetic": {**TORCH, "model": str(GOLDEN / "aesthetic" / "model"), "head": str(GOLDEN / "aesthetic")},
    "clip": {**TORCH, "model": CLIP},
    "compositional": {**TORCH, "models": {"one": IMAGE_REWARD, "other": IMAGE_REWARD}},
    "custom": {"path": mean_pixel.__file__, "name": "score", "arguments": {}},
    "geneval": {**TORCH, "clip": CLIP},  # and a detector and tasks, which are made anew
    "hpsv2": {
        **TORCH,
        "model": str(GOLDEN / "hpsv2"),
        "architecture": str(GOLDEN / "hpsv2" / "architecture"),
    },
    "image_reward": {**TORCH, "model": IMAGE_REWARD},
    "jpeg": {"direction": "compressible"},
    "pickscore": {**TORCH, "model": str(GOLDEN / "pickscore" / "model"), "processor": CLIP},
    "verifier": {},
}
NEED_AN_ENGINE = {"mllm", "openai_judge"}
PROMPT, BAD, GOOD = "a small red circle", 40, 63
RAW = "application/octet-stream"
ENCODINGS = {"JSON PNG": PNG, "JSON JPEG": JPEG, "JSON WebP": WEBP, "form PNG": PNG, "form JPEG": JPEG}
ENCODINGS |= {"form WebP": WEBP, "form raw": RAW}

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def scorer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scorer[Any, Any]]:
    import torch

    threads, options = torch.get_num_threads(), OPTIONS[request.param]
    if request.param == "geneval":
        options = options | write_geneval(tmp_path_factory.mktemp("geneval"), PROMPT)
    yield SCORERS[request.param](**options)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pictures() -> list[Pixels]:
    """Of the shapes world, so that the verifier reads them too; no two alike."""
    scene = captions.parse(PROMPT)
    return [render.render(scene, np.random.default_rng(seed)) for seed in range(GOOD + 1)]


def test_no_reward_is_left_out() -> None:
    assert set(SCORERS) - NEED_AN_ENGINE == set(OPTIONS)


def encoded(picture: Pixels, media_type: str) -> Attachment:
    if media_type not in {PNG, JPEG, WEBP}:
        return Attachment(media_type, picture.tobytes(), (render.IMAGE_SIZE, render.IMAGE_SIZE, 3))
    return Attachment(media_type, saved(Image.fromarray(picture), media_type.removeprefix("image/")))


def body(images: Sequence[Attachment], prompts: Sequence[str], *, as_form: bool) -> dict[str, Any]:
    """What httpx sends."""
    if as_form:
        refs: list[Any] = [
            {"part": str(n)} | ({"shape": i.shape} if i.shape else {}) for n, i in enumerate(images)
        ]
    else:
        refs = [{"media_type": i.media_type, "data": base64.b64encode(i.content).decode()} for i in images]
    items = [{"prompt": prompt, "image": ref} for prompt, ref in zip(prompts, refs, strict=True)]
    asked = {"rewards": ["it"], "items": items}
    if not as_form:
        return {"json": asked}
    parts = {str(n): ("", image.content, image.media_type) for n, image in enumerate(images)}
    return {"files": {"request": (None, json.dumps(asked), "application/json"), **parts}}


def over_http(scorer: Scorer[Any, Any], **content: Any) -> list[dict[str, Any]]:
    """The scores of a request, as they are on the wire."""

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(RewardsHere({"it": scorer})))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/scores", **content)

    answer = asyncio.run(run())
    assert answer.status_code == 200, answer.text
    return [item["scores"]["it"] for item in answer.json()["items"]]


def on_the_wire(scores: Sequence[Score]) -> list[dict[str, Any]]:
    return [json.loads(score.model_dump_json()) for score in scores]


def nan(raw: float | tuple[float, ...]) -> float | tuple[float, ...]:
    return (math.nan,) * len(raw) if isinstance(raw, tuple) else math.nan


@pytest.fixture(scope="module")
def exact(scorer: Scorer[Any, Any], pictures: list[Pixels]) -> dict[str, list[dict[str, Any]]]:
    """The scores of the 63 good images without the bad one, by the media type in which they are sent."""
    good = pictures[:BAD] + pictures[BAD + 1 :]
    scores = {}
    for media_type in (PNG, JPEG, WEBP):
        images = [read(encoded(picture, media_type), Limits()) for picture in good]
        scores[media_type] = on_the_wire(scorer.score(images, [PROMPT] * GOOD))
        assert all("value" in score for score in scores[media_type])
    return {**scores, RAW: scores[PNG]}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_torn_image_fails_alone(
    scorer: Scorer[Any, Any], exact: Any, pictures: list[Pixels], encoding: str
) -> None:
    media_type = ENCODINGS[encoding]
    images = [encoded(picture, media_type) for picture in pictures]
    images[BAD] = Attachment(media_type, images[BAD].content[:-300], images[BAD].shape)
    scores = over_http(scorer, **body(images, [PROMPT] * len(images), as_form=encoding.startswith("form")))
    assert scores.pop(BAD)["error"]["type"] == "/problems/image-invalid"
    assert scores == exact[media_type]


class NanForOne(Scorer[Any, Any]):
    """A scorer whose model answers NaN for one picture."""

    def __init__(self, scorer: Scorer[Any, Any], picture: Pixels) -> None:
        self.revision = scorer.revision
        self._scorer, self._picture = scorer, picture
        self._marked: list[Any] = []

    def prepare(self, image: Any, prompt: str) -> Any:
        item = self._scorer.prepare(image, prompt)
        self._marked.extend([item] * np.array_equal(image, self._picture))
        return item

    def run(self, items: Sequence[Any]) -> list[Any]:
        raws = self._scorer.run(items)
        is_marked = [any(item is one for one in self._marked) for item in items]
        return [nan(raw) if marked else raw for raw, marked in zip(raws, is_marked, strict=True)]

    def finish(self, raw: Any) -> Score:
        return self._scorer.finish(raw)


def test_one_nan_of_a_model_fails_alone(scorer: Scorer[Any, Any], exact: Any, pictures: list[Pixels]) -> None:
    if isinstance(scorer, VerifierScorer):
        pytest.skip("rules have no NaN")
    images = [encoded(picture, RAW) for picture in pictures]
    prompts = [PROMPT] * len(images)
    scores = over_http(NanForOne(scorer, pictures[BAD]), **body(images, prompts, as_form=True))
    assert scores.pop(BAD)["error"]["type"] in {"/problems/score-not-finite", "/problems/scoring-failed"}
    values = [score["value"] for score in scores]
    # In a batch of 64 instead of 63 the last bits may differ.
    assert values == pytest.approx([score["value"] for score in exact[PNG]], rel=1e-5, abs=1e-5)
