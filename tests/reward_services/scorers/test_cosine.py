"""What every cosine reward promises: batches change nothing, bad pictures fail alone, NaN is a failure."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward_services.scorers.clip import ClipScorer
from reward_services.scorers.cosine import CosineScorer
from reward_services.scorers.hpsv2 import Hpsv2Scorer
from reward_services.scorers.pickscore import PickScoreScorer

Draw = Callable[..., list[Any]]
PROMPTS = ["a red cube", "cat", "a red cube", "", "two blue spheres and a very long tail " * 9]


@pytest.fixture(params=["clip", "pickscore", "hpsv2"])
def scorer(request: pytest.FixtureRequest, golden: Path) -> CosineScorer:
    clip, pick, hps = golden / "model", golden.parent / "pickscore", golden.parent / "hpsv2"
    if request.param == "clip":
        return ClipScorer(str(clip))
    if request.param == "pickscore":
        return PickScoreScorer(str(pick / "model"), processor=str(clip))
    return Hpsv2Scorer(str(hps), architecture=str(hps / "architecture"))


def values(scorer: CosineScorer, images: list[Any], prompts: list[str]) -> list[float | None]:
    return [score.value for score in scorer.score(images, prompts)]


def test_a_batch_gives_what_single_images_give(scorer: CosineScorer, draw: Draw) -> None:
    images = [*draw(3, size=48), *draw(2, size=224)]
    alone = [values(scorer, [image], [prompt])[0] for image, prompt in zip(images, PROMPTS, strict=True)]
    assert values(scorer, images, PROMPTS) == pytest.approx(alone, abs=1e-4)
    assert len(set(alone)) == len(alone)


def test_one_bad_image_among_63_good_fails_alone(scorer: CosineScorer, draw: Draw) -> None:
    images: list[Any] = draw(63, size=16)
    prompts = [PROMPTS[place % len(PROMPTS)] for place in range(64)]
    exact = values(scorer, images, [*prompts[:40], *prompts[41:]])
    torn = np.zeros((16, 0, 3), np.uint8)
    scores = scorer.score([*images[:40], torn, *images[40:]], prompts)
    assert scores[40].error is not None
    assert scores[40].error.type == "/problems/image-invalid"
    assert [score.value for score in scores if score.ok] == exact


@pytest.mark.parametrize("tower", ["images", "texts"])
def test_a_model_that_answers_nan_fails_instead_of_scoring(
    scorer: CosineScorer, tower: str, draw: Draw
) -> None:
    getattr(scorer, tower).projection.weight.fill_(math.nan)
    for score in scorer.score(draw(2), ["cat", "dog"]):
        assert score.error is not None
        assert score.error.type == "/problems/score-not-finite"


def test_the_prompt_matters(scorer: CosineScorer, draw: Draw) -> None:
    one, other = values(scorer, draw(1) * 2, ["a red cube", "two green frogs"])
    assert one != pytest.approx(other, abs=1e-4)
