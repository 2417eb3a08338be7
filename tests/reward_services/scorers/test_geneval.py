"""The reward: its own prompts only, one bad picture alone, revisions, and metadata that fits the detector."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward_services.config import REWARD
from reward_services.errors import ConfigInvalid
from reward_services.geneval.detector import Detector
from reward_services.scorers import SCORERS
from reward_services.scorers.geneval import GenevalScorer
from tests.tiny_detector import write_detector

Draw = Callable[..., list[Any]]
COUNTS = range(1, 5)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector"))


def written(folder: Path, *names: str) -> str:
    """Tasks of a number of objects of each class; of one also in red."""
    tasks = [
        {"prompt": f"{count} {name}", "tag": "two_object", "include": [{"class": name, "count": count}]}
        for name in names
        for count in COUNTS
    ]
    red = {"prompt": "red", "tag": "colors", "include": [{"class": names[0], "count": 1, "color": "red"}]}
    path = folder / "metadata.jsonl"
    path.write_text("\n".join(json.dumps(task) for task in [*tasks, red]), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def scorer(detector: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> GenevalScorer:
    metadata = written(tmp_path_factory.mktemp("tasks"), "bench", "clock", "computer mouse")
    return GenevalScorer(metadata, detector=str(detector), clip=str(tiny_clip))


def test_verdicts_are_of_what_the_detector_sees(scorer: GenevalScorer, detector: Path, draw: Draw) -> None:
    pictures = draw(4, size=48)
    eyes = Detector(detector)
    verdicts = []
    for picture in pictures:
        (found,) = eyes.find([eyes.prepare(picture)], [picture.shape[:2]])
        names: Sequence[str] = [one.class_name for one in found if one.confidence > 0.3]
        for name in ("bench", "clock", "computer mouse"):
            prompts = [f"{count} {name}" for count in COUNTS]
            expected = [float(names.count(name) >= count) for count in COUNTS]
            assert [score.value for score in scorer.score([picture] * len(prompts), prompts)] == expected
            verdicts += expected
    assert len(set(verdicts)) == 2


def test_colours_are_asked_for(scorer: GenevalScorer, draw: Draw) -> None:
    assert {score.value for score in scorer.score(draw(8, size=48), ["red"] * 8)} <= {0.0, 1.0}


def test_another_prompt_and_a_bad_picture_fail_alone(scorer: GenevalScorer, draw: Draw) -> None:
    pictures = [*draw(3, size=48), np.zeros((16, 0, 3), np.uint8)]
    scores = scorer.score(pictures, ["1 bench", "a photo of a cat", "1 clock", "1 clock"])
    problems = [score.error.type if score.error else None for score in scores]
    assert problems == [None, "/problems/prompt-invalid", None, "/problems/image-invalid"]


def test_an_object_as_thin_as_a_line_fails_its_own_picture_alone(scorer: GenevalScorer, draw: Draw) -> None:
    """Its colour would be named of it enlarged beyond all bounds."""
    line = np.full((200_000, 1, 3), 255, np.uint8)
    one, other = scorer.score([line, *draw(1, size=48)], ["red", "1 bench"])
    assert one.error is not None
    assert "too narrow" in str(one.error.detail)
    assert other.ok


def test_the_golden_sample_can_be_scored(scorer: GenevalScorer) -> None:
    picture, prompt = scorer.golden()
    assert scorer.score([picture], [prompt])[0].ok


def test_the_revision_is_that_of_models_and_tasks(
    scorer: GenevalScorer, detector: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    other = GenevalScorer(written(tmp_path, "clock"), detector=str(detector), clip=str(tiny_clip))
    assert other.revision != scorer.revision


def test_what_the_detector_cannot_see_is_refused(detector: Path, tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"asks for unicorn, which .* was not trained to see"):
        GenevalScorer(written(tmp_path, "unicorn"), detector=str(detector), clip=str(tiny_clip))


def test_a_configuration_builds_it(detector: Path, tiny_clip: Path, tmp_path: Path) -> None:
    options = {"metadata": written(tmp_path, "clock"), "detector": str(detector), "clip": str(tiny_clip)}
    reward = REWARD.validate_python({"scorer": "geneval", "options": options})
    assert isinstance(SCORERS[reward.scorer](**reward.options.model_dump()), GenevalScorer)
