"""PickScore against golden values; its weights and its processor lie in two places."""

import json
import math
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from reward_services import ConfigInvalid
from reward_services.options import Preprocessing
from reward_services.scorers.pickscore import PickScoreScorer


@pytest.fixture(scope="module")
def data(golden: Path) -> Path:
    return golden.parent / "pickscore"


@pytest.fixture(scope="module")
def processor(golden: Path) -> str:
    return str(golden / "model")


@pytest.mark.parametrize("convention", get_args(Preprocessing))
def test_golden_scores(data: Path, processor: str, convention: Preprocessing) -> None:
    expected = json.loads((data / "expected.json").read_text(encoding="utf-8"))
    scorer = PickScoreScorer(str(data / "model"), processor=processor, preprocessing=convention)
    images = [Image.open(data / "images" / name) for name in expected["images"]]
    pairs = [(image, prompt) for image in images for prompt in expected["prompts"]]
    scores = scorer.score([image for image, _ in pairs], [prompt for _, prompt in pairs])
    values = np.array([score.value for score in scores]).reshape(len(images), -1)
    np.testing.assert_allclose(values, expected[convention], atol=1e-3, rtol=0)


def test_the_model_cards_transform_is_the_default(data: Path, processor: str) -> None:
    model = str(data / "model")
    default = PickScoreScorer(model, processor=processor).revision
    assert PickScoreScorer(model, processor=processor, preprocessing="transformers").revision == default
    assert PickScoreScorer(model, processor=processor, preprocessing="openai").revision != default


@pytest.fixture
def changed(data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(data / "model", folder)
    return folder


def set_scale(folder: Path, scale: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {key: weight for key, weight in weights.items() if key != "logit_scale"}
    found = {} if scale is None else {"logit_scale": scale}
    save_file({**kept, **found}, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_scale_is_the_checkpoints(data: Path, processor: str, changed: Path, draw: Any) -> None:
    original = PickScoreScorer(str(data / "model"), processor=processor)
    set_scale(changed, torch.tensor(math.log(48.75)))
    halved = PickScoreScorer(str(changed), processor=processor)
    (whole,), (half,) = original.score(draw(1), ["cat"]), halved.score(draw(1), ["cat"])
    assert whole.value is not None
    assert half.value == pytest.approx(whole.value / 2, abs=1e-4)
    assert halved.revision != original.revision


def test_a_scale_that_is_no_number_fails_instead_of_scoring(processor: str, changed: Path, draw: Any) -> None:
    set_scale(changed, torch.tensor(1000.0))
    (score,) = PickScoreScorer(str(changed), processor=processor).score(draw(1), ["cat"])
    assert score.error is not None
    assert score.error.type == "/problems/score-not-finite"


@pytest.mark.parametrize(
    ("scale", "says"),
    [(None, "lacks logit_scale$"), (torch.zeros(1), r"logit_scale has shape \[1\], not \[\]$")],
)
def test_a_checkpoint_without_its_scale_is_refused(
    processor: str, changed: Path, scale: torch.Tensor | None, says: str
) -> None:
    set_scale(changed, scale)
    with pytest.raises(ConfigInvalid, match=says):
        PickScoreScorer(str(changed), processor=processor)


def test_a_processor_that_is_nowhere_names_its_option(data: Path) -> None:
    with pytest.raises(ConfigInvalid, match="correct `processor`"):
        PickScoreScorer(str(data / "model"), processor="./nowhere")


def test_the_revision_follows_the_processor(data: Path, processor: str, tmp_path: Path) -> None:
    other = tmp_path / "processor"
    shutil.copytree(processor, other)
    before = PickScoreScorer(str(data / "model"), processor=str(other)).revision
    assert before == PickScoreScorer(str(data / "model"), processor=processor).revision
    (other / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    assert PickScoreScorer(str(data / "model"), processor=str(other)).revision != before
