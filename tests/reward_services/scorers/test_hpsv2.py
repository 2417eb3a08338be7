"""HPSv2 against golden values of its own package, which resizes, pads and cleans its own way."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reward_services import ConfigInvalid
from reward_services.scorers.hpsv2 import Hpsv2Scorer


@pytest.fixture(scope="module")
def data(golden: Path) -> Path:
    return golden.parent / "hpsv2"


@pytest.fixture(scope="module")
def expected(data: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((data / "expected.json").read_text(encoding="utf-8"))
    return loaded


def scorer_of(folder: Path, **chosen: Any) -> Hpsv2Scorer:
    return Hpsv2Scorer(str(folder), architecture=str(folder / "architecture"), **chosen)


@pytest.mark.parametrize(("antialias", "column"), [(True, "antialiased"), (False, "not_antialiased")])
def test_golden_scores(data: Path, expected: dict[str, Any], antialias: bool, column: str) -> None:
    images = [Image.open(data / "images" / name) for name in expected["images"]]
    pairs = [(image, prompt) for image in images for prompt in expected["prompts"]]
    scorer = scorer_of(data, antialias=antialias)
    scores = scorer.score([image for image, _ in pairs], [prompt for _, prompt in pairs])
    values = np.array([score.value for score in scores]).reshape(len(images), -1)
    np.testing.assert_allclose(values, expected[column], atol=1e-5, rtol=0)


def test_golden_tokens(data: Path, expected: dict[str, Any]) -> None:
    scorer = scorer_of(data)
    for prompt, ids in zip(expected["prompts"], expected["token_ids"], strict=True):
        assert list(scorer.texts.token_ids(prompt)) == ids
    assert max(len(ids) for ids in expected["token_ids"]) == 77


def test_the_reference_and_its_default_is_antialiased(data: Path) -> None:
    assert scorer_of(data).revision == scorer_of(data, antialias=True).revision
    assert scorer_of(data).revision != scorer_of(data, antialias=False).revision


@pytest.fixture
def changed(data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "hpsv2"
    shutil.copytree(data, folder, ignore=shutil.ignore_patterns("images"))
    return folder


def rewrite(folder: Path, change: Any) -> None:
    path = folder / "HPS_v2_compressed.pt"
    weights = torch.load(path, weights_only=True)["state_dict"]
    torch.save({"state_dict": change(weights)}, path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: {**weights, "visual.proj": torch.zeros(3, 3)}, r"visual\.proj has shape \[3, 3\]"),
        (
            lambda weights: {key: value for key, value in weights.items() if key != "ln_final.bias"},
            r"lacks ln_final\.bias$",
        ),
        (
            lambda weights: {f"module.{key}": value for key, value in weights.items()},
            r"has no use for module\.\S+ and \d+ more$",
        ),
        (
            lambda weights: {**weights, "score_predictor.weight": torch.zeros(1)},
            "has no use for score_predictor",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_key(changed: Path, change: Any, says: str) -> None:
    rewrite(changed, change)
    with pytest.raises(ConfigInvalid, match=says):
        scorer_of(changed)


def test_the_revision_follows_the_weights(data: Path, changed: Path) -> None:
    assert scorer_of(changed).revision == scorer_of(data).revision
    rewrite(changed, lambda weights: {**weights, "logit_scale": weights["logit_scale"] + 1})
    assert scorer_of(changed).revision != scorer_of(data).revision


def test_another_version_is_another_file(data: Path, changed: Path) -> None:
    (changed / "HPS_v2_compressed.pt").rename(changed / "HPS_v2.1_compressed.pt")
    assert scorer_of(changed, checkpoint="HPS_v2.1_compressed.pt").revision != scorer_of(data).revision
    with pytest.raises(ConfigInvalid, match=r"has no HPS_v2_compressed\.pt"):
        scorer_of(changed)


def test_an_architecture_that_is_nowhere_names_its_option(data: Path) -> None:
    with pytest.raises(ConfigInvalid, match="correct `architecture`"):
        Hpsv2Scorer(str(data), architecture="./nowhere")
