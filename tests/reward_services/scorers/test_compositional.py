"""Several ImageRewards as one: the mean and its parts, one NaN, and models that do not go together."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reward_services import ConfigInvalid
from reward_services.scorers.compositional import CompositionalScorer
from reward_services.scorers.image_reward import ImageRewardScorer

GOLDEN = Path(__file__).parents[1] / "golden" / "imagereward"
POSITIONS = "blip.visual_encoder.pos_embed"
PROMPTS = ["a photo of a red cube", "two green frogs", "a photo of a red cube"]
Draw = Callable[..., list[Any]]


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> str:
    """A copy of the golden model with other weights."""
    shutil.copytree(GOLDEN, folder, ignore=shutil.ignore_patterns("images"))
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "ImageReward.pt")
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("compositional")
    other = changed(folder / "other", lambda state: state["mlp.layers.0.weight"].neg_())
    return {"attribute": str(GOLDEN), "spatial": other}


@pytest.fixture(scope="module")
def single(models: dict[str, str]) -> dict[str, ImageRewardScorer]:
    return {name: ImageRewardScorer(model) for name, model in models.items()}


def test_the_mean_and_its_parts(
    models: dict[str, str], single: dict[str, ImageRewardScorer], draw: Draw
) -> None:
    images: list[Any] = [Image.fromarray(image) for image in draw(3, size=150)]
    by_model = {name: scorer.score(images, PROMPTS) for name, scorer in single.items()}
    plain = CompositionalScorer(models).score(images, PROMPTS)
    weighted = CompositionalScorer(models, weights={"spatial": 6, "attribute": 2}).score(images, PROMPTS)
    for attribute, spatial, mean, weighed in zip(
        by_model["attribute"], by_model["spatial"], plain, weighted, strict=True
    ):
        assert attribute.value is not None
        assert spatial.value is not None
        assert abs(attribute.value - spatial.value) > 0.01
        assert mean.parts == pytest.approx({"attribute": attribute.value, "spatial": spatial.value}, abs=1e-5)
        assert mean.value == pytest.approx((attribute.value + spatial.value) / 2, abs=1e-5)
        assert weighed.parts == mean.parts
        assert weighed.value == pytest.approx(0.25 * attribute.value + 0.75 * spatial.value, abs=1e-5)


def test_a_bad_image_fails_alone(models: dict[str, str], draw: Draw) -> None:
    scorer = CompositionalScorer(models)
    images = draw(3, size=224)
    exact = [score.value for score in scorer.score(images, PROMPTS)]
    scores = scorer.score([images[0], images[0][..., 0], *images[1:]], [PROMPTS[0], "", *PROMPTS[1:]])
    assert [score.ok for score in scores] == [True, False, True, True]
    assert [score.value for score in scores if score.ok] == pytest.approx(exact, abs=1e-4)


def test_one_model_that_answers_nan_fails_the_score(tmp_path: Path, draw: Draw) -> None:
    broken = changed(tmp_path / "broken", lambda state: state["mlp.layers.7.bias"].fill_(math.nan))
    (score,) = CompositionalScorer({"good": str(GOLDEN), "bad": broken}).score(draw(1, size=224), ["a cat"])
    assert score.error is not None
    assert score.error.type == "/problems/score-not-finite"
    assert score.parts is None


def test_the_revision_follows_models_names_and_weights(models: dict[str, str], tmp_path: Path) -> None:
    scorer = CompositionalScorer(models)
    assert CompositionalScorer(models, weights=dict.fromkeys(models, 1)).revision == scorer.revision
    swapped = dict(zip(models, reversed(models.values()), strict=True))
    others = [
        CompositionalScorer(models, weights={"attribute": 1, "spatial": 2}),
        CompositionalScorer(models, dtype="float16"),
        CompositionalScorer(swapped),
    ]
    assert len({scorer.revision, *(other.revision for other in others)}) == 4


def test_models_for_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    def smaller(state: dict[str, torch.Tensor]) -> None:
        state[POSITIONS] = state[POSITIONS][:, : 1 + 7 * 7].clone()

    models = {"large": str(GOLDEN), "small": changed(tmp_path / "small", smaller)}
    with pytest.raises(ConfigInvalid, match=r"different sizes.*'large': 224, 'small': 112"):
        CompositionalScorer(models)


def test_a_bad_checkpoint_among_them_is_named(tmp_path: Path) -> None:
    broken = changed(tmp_path / "broken", lambda state: state.pop("mlp.layers.0.bias"))
    with pytest.raises(ConfigInvalid, match=r"broken/ImageReward\.pt .*lacks mlp\.layers\.0\.bias"):
        CompositionalScorer({"good": str(GOLDEN), "bad": broken})


def test_the_golden_sample_scores(models: dict[str, str]) -> None:
    scorer = CompositionalScorer(models)
    image, prompt = scorer.golden()
    assert scorer.score([image, np.asarray(image)], [prompt] * 2)[0].ok
