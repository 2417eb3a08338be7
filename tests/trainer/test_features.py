"""Image features are the model's own, one row a picture."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from trainer.config import ConfigError
from trainer.evaluation import diversity
from trainer.features import ImageFeatures, check_features


def pictures(count: int, size: int = 32) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    rng = np.random.default_rng(0)
    return [rng.integers(256, size=(size, size, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def features(clip_folder: Path) -> ImageFeatures:
    return ImageFeatures(str(clip_folder))


def test_a_row_of_floats_for_each_picture(features: ImageFeatures) -> None:
    rows = features(pictures(35))
    assert rows.shape == (35, 24)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert len(np.unique(rows, axis=0)) == 35


def test_features_are_those_of_the_whole_clip(features: ImageFeatures, clip_folder: Path) -> None:
    images = pictures(3)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        model = CLIPModel.from_pretrained(clip_folder).eval()
        expected = model.visual_projection(model.vision_model(pixels).pooler_output)
    np.testing.assert_allclose(features(images), expected.numpy(), atol=1e-4)


def test_pictures_of_other_sizes_are_resized(features: ImageFeatures) -> None:
    assert features(pictures(2, size=50)).shape == (2, 24)
    assert features([]).shape == (0, 24)


def test_diversity_of_equal_pictures_is_none(features: ImageFeatures) -> None:
    first, second = pictures(2)
    assert diversity(features([first, first]), "aa") == pytest.approx(0, abs=1e-5)
    assert (diversity(features([first, second]), "aa") or 0) > 1e-4


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    """Its weights have other names: transformers would warn, and draw some at random."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"holds a model of kind siglip; give as evaluation.features a CLIP"
    ):
        check_features(str(tmp_path))


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_that_is_no_model_is_refused_in_a_line(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "clip"
    if there:
        folder.mkdir()
    with pytest.raises(ConfigError, match=r"^cannot load .*/clip'; give as evaluation.features .*\)$"):
        ImageFeatures(str(folder))
