"""open_clip's weights under transformers' names, its cleaning of prompts; golden HPSv2 scores say more."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from reward_services import ConfigInvalid
from reward_services.scorers.clip_features import read_architecture
from reward_services.scorers.open_clip import cleaned, clip_weights
from reward_services.scorers.weights import read_weights

Shapes = Mapping[str, torch.Size]
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def shapes(golden: Path) -> Shapes:
    return read_architecture(golden.parent / "hpsv2" / "architecture").shapes


@pytest.fixture
def stored(golden: Path) -> Weights:
    return read_weights(golden.parent / "hpsv2" / "HPS_v2_compressed.pt")


def test_every_weight_of_the_model_is_there_in_its_shape(stored: Weights, shapes: Shapes) -> None:
    converted = clip_weights(stored, shapes, Path("here"))
    assert {name: weight.shape for name, weight in converted.items()} == shapes
    assert sum(weight.numel() for weight in converted.values()) == sum(
        weight.numel() for weight in stored.values()
    )


def test_joint_matrices_are_cut_and_projections_turned(stored: Weights, shapes: Shapes) -> None:
    converted = clip_weights(stored, shapes, Path("here"))
    joint = stored["visual.transformer.resblocks.1.attn.in_proj_weight"]
    for third, part in enumerate("qkv"):
        name = f"vision_model.encoder.layers.1.self_attn.{part}_proj.weight"
        assert torch.equal(converted[name], joint[third * 64 : (third + 1) * 64])
    assert torch.equal(converted["text_projection.weight"], stored["text_projection"].T)
    # A query bias of the text half, so that it is not mistaken for the vision half's.
    assert torch.equal(
        converted["text_model.encoder.layers.0.self_attn.q_proj.bias"],
        stored["transformer.resblocks.0.attn.in_proj_bias"][:16],
    )


@pytest.mark.parametrize(
    "key",
    ["logit_scale", "visual.conv1.weight", "transformer.resblocks.1.attn.in_proj_bias", "ln_final.weight"],
)
def test_a_missing_key_is_named_as_the_file_would(stored: Weights, shapes: Shapes, key: str) -> None:
    del stored[key]
    with pytest.raises(ConfigInvalid, match=f"weights of here do not fit: it lacks {key}$"):
        clip_weights(stored, shapes, Path("here"))


def test_more_layers_than_the_architecture_has_are_named(stored: Weights, shapes: Shapes) -> None:
    stored["transformer.resblocks.2.ln_1.weight"] = torch.ones(16)
    with pytest.raises(ConfigInvalid, match=r"has no use for transformer\.resblocks\.2\.ln_1\.weight$"):
        clip_weights(stored, shapes, Path("here"))


@pytest.mark.parametrize(
    ("key", "shape"),
    [("text_projection", (32, 16)), ("transformer.resblocks.0.attn.in_proj_weight", (16, 16))],
)
def test_a_wrong_shape_is_named(stored: Weights, shapes: Shapes, key: str, shape: tuple[int, ...]) -> None:
    stored[key] = torch.zeros(shape)
    with pytest.raises(ConfigInvalid, match=f"{key} has shape"):
        clip_weights(stored, shapes, Path("here"))


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("“quoted”", '"quoted"'),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("schÃ¶n", "schön"),
        ("  two  words ", "two  words"),
        ("", ""),
    ],
)
def test_prompts_are_cleaned(prompt: str, read: str) -> None:
    assert cleaned(prompt) == read
