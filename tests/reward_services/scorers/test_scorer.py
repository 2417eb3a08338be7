"""What `score` promises for every scorer: order, one result per image, and that the bad ones fail alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward_services import ImageInvalid, RequestInvalid, RewardError, Score
from reward_services.images import check_array
from reward_services.scorers import SCORERS
from reward_services.scorers.scorer import Pixels, Scorer, finite_score
from tests import mean_pixel
from tests.tiny_detector import write_geneval


class Brightness(Scorer[np.ndarray[Any, np.dtype[np.uint8]], float]):
    """The mean pixel; like a model it cannot take some inputs: it dies of 255 and answers NaN to 254."""

    revision = "1"

    def __init__(self) -> None:
        self.runs: list[int] = []

    def prepare(self, image: Pixels, prompt: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        check_array(image)
        return np.asarray(image)

    def run(self, items: Sequence[np.ndarray[Any, np.dtype[np.uint8]]]) -> list[float]:
        self.runs.append(len(items))
        if any(item.max() == 255 for item in items):
            raise RuntimeError("device-side assert triggered\nand a long explanation")
        return [float("nan") if item.max() == 254 else float(item.mean()) for item in items]

    def finish(self, raw: float) -> Score:
        return finite_score(raw)


def flat(*values: int) -> list[Pixels]:
    return [np.full((4, 4, 3), value, np.uint8) for value in values]


def slugs(scores: list[Score]) -> list[str | float | None]:
    return [score.value if score.error is None else score.error.type.split("/")[-1] for score in scores]


def test_scores_come_in_order() -> None:
    scorer = Brightness()
    assert slugs(scorer.score(flat(3, 1, 2), ["", "", ""])) == [3.0, 1.0, 2.0]
    assert scorer.runs == [3]


def test_an_image_that_cannot_be_prepared_fails_alone() -> None:
    images: list[Any] = flat(3, 1, 2)
    images[1] = images[1][..., 0]
    assert slugs(Brightness().score(images, [""] * 3)) == [3.0, "image-invalid", 2.0]


def test_not_a_number_is_a_failure() -> None:
    assert slugs(Brightness().score(flat(3, 254, 2), [""] * 3)) == [3.0, "score-not-finite", 2.0]


@pytest.mark.parametrize("culprit", [0, 3, 6])
def test_what_kills_the_model_is_isolated(culprit: int) -> None:
    values = [1, 2, 3, 4, 5, 6, 7]
    values[culprit] = 255
    scorer = Brightness()
    scores = slugs(scorer.score(flat(*values), [""] * 7))
    assert scores[culprit] == "scoring-failed"
    assert scores[:culprit] + scores[culprit + 1 :] == [float(value) for value in values if value != 255]
    assert len(scorer.runs) <= 7, "halving, not one by one"


def test_the_message_of_a_failure_is_one_line() -> None:
    (score,) = Brightness().score(flat(255), [""])
    assert score.error is not None
    assert score.error.detail == "RuntimeError: device-side assert triggered"


def test_no_image_at_all() -> None:
    scorer = Brightness()
    assert scorer.score([], []) == []
    assert scorer.runs == []


def test_one_prompt_per_image() -> None:
    with pytest.raises(RequestInvalid):
        Brightness().score(flat(1, 2), [""])


def test_errors_keep_their_places_between_the_stages() -> None:
    scorer = Brightness()
    error = ImageInvalid("torn")
    admitted: list[Any] = [*scorer.admit(flat(1), [""]), error]
    assert isinstance(admitted[1], RewardError)
    assert slugs(scorer.complete(admitted)) == [1.0, "image-invalid"]


@pytest.fixture
def options(golden: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What each scorer needs to be built from the golden data."""
    clip, look, pick, hps, liking = (
        golden.parent / name for name in ("clip/model", "aesthetic", "pickscore", "hpsv2", "imagereward")
    )
    return {
        "aesthetic": {"model": str(look / "model"), "head": str(look), "torch_threads": 1},
        "clip": {"model": str(clip), "torch_threads": 1},
        "compositional": {"models": {"one": str(liking)}, "torch_threads": 1},
        "custom": {"path": mean_pixel.__file__, "name": "score", "arguments": {"scale": 0.5}},
        "geneval": {"clip": str(clip), "torch_threads": 1, **write_geneval(tmp_path, "a bench")},
        "hpsv2": {"model": str(hps), "architecture": str(hps / "architecture"), "torch_threads": 1},
        "image_reward": {"model": str(liking), "torch_threads": 1},
        "jpeg": {"direction": "compressible"},
        "pickscore": {"model": str(pick / "model"), "processor": str(clip), "torch_threads": 1},
        "verifier": {},
    }


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_by_name_scores_its_golden_sample(name: str, options: dict[str, dict[str, Any]]) -> None:
    scorer = SCORERS[name](**options[name])
    image, prompt = scorer.golden()
    (score,) = scorer.score([image], [prompt])
    assert score.ok
    assert scorer.score([image], [prompt]) == [score]
