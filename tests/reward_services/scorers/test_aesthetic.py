"""The aesthetic predictor against golden values; heads of another shape are refused."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from reward_services import ConfigInvalid
from reward_services.options import Preprocessing
from reward_services.scorers.aesthetic import AestheticScorer

Draw = Callable[..., list[Any]]
HEAD = "sac+logos+ava1-l14-linearMSE.pth"


@pytest.fixture(scope="module")
def data(golden: Path) -> Path:
    return golden.parent / "aesthetic"


@pytest.fixture(scope="module")
def clip(data: Path) -> str:
    return str(data / "model")


@pytest.fixture
def scorer(clip: str, data: Path) -> AestheticScorer:
    return AestheticScorer(clip, head=str(data))


@pytest.mark.parametrize("convention", get_args(Preprocessing))
def test_golden_scores(clip: str, data: Path, convention: Preprocessing) -> None:
    expected = json.loads((data / "expected.json").read_text(encoding="utf-8"))
    scorer = AestheticScorer(clip, head=str(data), preprocessing=convention)
    images = [Image.open(data / "images" / name) for name in expected["images"]]
    values = [score.value for score in scorer.score(images, [""] * len(images))]
    np.testing.assert_allclose(np.array(values), expected[convention], atol=1e-4, rtol=0)


def test_the_prompt_plays_no_part(scorer: AestheticScorer, draw: Draw) -> None:
    one, other = scorer.score(draw(1) * 2, ["cat", "dog"])
    assert one == other
    assert scorer.describe("aesthetic", max_items=1).modality == ("image",)


def test_a_batch_gives_what_single_images_give(scorer: AestheticScorer, draw: Draw) -> None:
    images = [*draw(3, size=48), *draw(2, size=224)]
    alone = [scorer.score([image], [""])[0].value for image in images]
    together = [score.value for score in scorer.score(images, [""] * 5)]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len(set(alone)) == len(alone)


def test_one_bad_image_among_63_good_fails_alone(scorer: AestheticScorer, draw: Draw) -> None:
    images: list[Any] = draw(63, size=16)
    exact = [score.value for score in scorer.score(images, [""] * 63)]
    scores = scorer.score([*images[:40], images[0][..., 0], *images[40:]], [""] * 64)
    assert scores[40].error is not None
    assert scores[40].error.type == "/problems/image-invalid"
    assert [score.value for score in scores if score.ok] == exact


@pytest.mark.parametrize("part", ["clip", "head"])
def test_a_model_that_answers_nan_fails_instead_of_scoring(
    scorer: AestheticScorer, part: str, draw: Draw
) -> None:
    weight = scorer.images.projection.weight if part == "clip" else scorer.head[0].weight
    assert isinstance(weight, torch.Tensor)
    weight.fill_(math.nan)
    (score,) = scorer.score(draw(1), [""])
    assert score.error is not None
    assert score.error.type == "/problems/score-not-finite"


def write_head(folder: Path, data: Path, change: Any) -> str:
    torch.save(change(torch.load(data / HEAD, weights_only=True)), folder / HEAD)
    return str(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda head: {key: value for key, value in head.items() if key != "layers.6.bias"},
            r"lacks layers\.6\.bias$",
        ),
        (lambda head: {**head, "layers.8.bias": torch.zeros(1)}, r"has no use for layers\.8\.bias$"),
        (
            lambda head: {f"model.{key}": value for key, value in head.items()},
            r"has no use for model\.layers\.0\.weight and 9 more$",
        ),
        # The head of ViT-L/14 on a CLIP with other features.
        (
            lambda head: {**head, "layers.0.weight": torch.zeros(1024, 768)},
            r"layers\.0\.weight has shape \[1024, 768\], not \[1024, 64\]$",
        ),
    ],
)
def test_a_head_that_does_not_fit_names_the_key(
    clip: str, data: Path, tmp_path: Path, change: Any, says: str
) -> None:
    with pytest.raises(ConfigInvalid, match=says):
        AestheticScorer(clip, head=write_head(tmp_path, data, change))


def test_a_head_in_safetensors(
    scorer: AestheticScorer, clip: str, data: Path, tmp_path: Path, draw: Draw
) -> None:
    save_file(dict(torch.load(data / HEAD, weights_only=True)), tmp_path / "head.safetensors")
    same = AestheticScorer(clip, head=str(tmp_path), head_file="head.safetensors")
    exact = [score.value for score in scorer.score(draw(2), [""] * 2)]
    assert [score.value for score in same.score(draw(2), [""] * 2)] == exact


def test_a_missing_head_says_where(clip: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"has no sac\+logos"):
        AestheticScorer(clip, head=str(tmp_path))
    with pytest.raises(ConfigInvalid, match="correct `head`"):
        AestheticScorer(clip, head=str(tmp_path / "nowhere"))


def test_the_revision_follows_weights_and_convention(
    scorer: AestheticScorer, clip: str, data: Path, tmp_path: Path
) -> None:
    shutil.copyfile(data / HEAD, tmp_path / HEAD)
    assert AestheticScorer(clip, head=str(tmp_path)).revision == scorer.revision
    assert AestheticScorer(clip, head=str(data), preprocessing="transformers").revision != scorer.revision
    changed = write_head(tmp_path, data, lambda head: {**head, "layers.7.bias": torch.ones(1)})
    assert AestheticScorer(clip, head=changed).revision != scorer.revision
