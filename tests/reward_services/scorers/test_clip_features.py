"""The halves of a CLIP: unit features, prompts encoded once; a folder that does not fit names the key."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from reward_services import ConfigInvalid
from reward_services.scorers.clip_features import ImageTower, TextTower, load_clip, read_architecture

Weights = dict[str, torch.Tensor]
Change = Callable[[Weights], Weights]


@pytest.fixture
def folder(tiny_clip: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "clip"
    shutil.copytree(tiny_clip, copied)
    return copied


def rewrite(folder: Path, change: Change) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def without(key: str) -> Change:
    return lambda weights: {name: weight for name, weight in weights.items() if name != key}


def prefixed(prefix: str) -> Change:
    return lambda weights: {f"{prefix}.{name}": weight for name, weight in weights.items()}


def replaced(key: str, *shape: int) -> Change:
    return lambda weights: {**weights, key: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("logit_scale"), "lacks logit_scale$"),
        (without("text_model.final_layer_norm.bias"), r"lacks text_model\.final_layer_norm\.bias$"),
        (prefixed("module"), r"has no use for module\.\S+ and \d+ more$"),
        # transformers' own loading would take this prefix off without a word.
        (prefixed("clip"), r"has no use for clip\.\S+ and \d+ more$"),
        (replaced("extra.weight", 2), r"has no use for extra\.weight$"),
        (
            replaced("visual_projection.weight", 3, 3),
            r"visual_projection\.weight has shape \[3, 3\], not \[16, 32\]$",
        ),
    ],
)
def test_weights_that_do_not_fit_name_the_key(folder: Path, change: Change, says: str) -> None:
    rewrite(folder, change)
    with pytest.raises(ConfigInvalid, match=f"weights of {folder} do not fit: .*{says}"):
        load_clip(folder)


def test_every_weight_is_the_files(folder: Path) -> None:
    model, weights = load_clip(folder), load_file(folder / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())


def test_the_index_buffers_of_old_checkpoints_are_no_strangers(folder: Path) -> None:
    key = "text_model.embeddings.position_ids"
    rewrite(folder, lambda weights: {**weights, key: torch.arange(16)[None]})
    assert key not in load_clip(folder).state_dict()


def test_half_precision_files_are_read_into_float32(folder: Path) -> None:
    rewrite(folder, lambda weights: {name: weight.half() for name, weight in weights.items()})
    assert {weight.dtype for weight in load_clip(folder).state_dict().values()} == {torch.float32}


def test_shards_are_read_and_a_missing_one_is_named(folder: Path) -> None:
    whole = load_clip(folder).state_dict()
    CLIPModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="60KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert all(torch.equal(weight, whole[name]) for name, weight in load_clip(folder).state_dict().items())
    shards[0].unlink()
    with pytest.raises(ConfigInvalid, match=f"has no {shards[0].name}"):
        load_clip(folder)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "siglip"}, "does not describe a clip model"),
        ({"model_type": "clip", "vision_config": {"hidden_size": "wide"}}, "cannot be used"),
        ({"model_type": "clip", "vision_config": {"hidden_act": "none"}}, "cannot be used"),
        ({"model_type": "clip", "projection_dim": None}, "cannot be used"),
    ],
)
def test_a_config_that_describes_no_clip(folder: Path, config: dict[str, Any], says: str) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigInvalid, match=says) as caught:
        read_architecture(folder)
    assert "\n" not in str(caught.value)


def test_features_have_unit_length(folder: Path, draw: Callable[..., list[Any]]) -> None:
    model = load_clip(folder)
    images, texts = ImageTower(model, folder), TextTower(model, folder)
    for features in (images.features(draw(3)), texts.features([texts.token_ids("cat"), (602, 603)])):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))


def test_floats_of_0_to_1_are_the_same_picture(folder: Path, draw: Callable[..., list[Any]]) -> None:
    images = ImageTower(load_clip(folder), folder)
    floats = [(picture / 255).astype("float32") for picture in draw(2)]
    torch.testing.assert_close(images.features(floats), images.features(draw(2)))


def test_the_normalisation_is_the_folders(folder: Path, draw: Callable[..., list[Any]]) -> None:
    stated = ImageTower(load_clip(folder), folder).features(draw(1))
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    assert not torch.allclose(ImageTower(load_clip(folder), folder).features(draw(1)), stated, atol=1e-3)
    path.unlink()
    torch.testing.assert_close(ImageTower(load_clip(folder), folder).features(draw(1)), stated)


def test_prompts_are_cleaned_before_they_are_cut(folder: Path) -> None:
    texts = TextTower(load_clip(folder), folder, clean=lambda prompt: prompt.replace("dog", "cat"))
    assert texts.token_ids("dog") == texts.token_ids("cat")


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 100
    (folder / "config.json").write_text(json.dumps(config))
    rewrite(folder, replaced("text_model.embeddings.token_embedding.weight", 100, 32))
    with pytest.raises(ConfigInvalid, match="has 604 tokens, the model 100"):
        TextTower(load_clip(folder), folder)


def test_a_folder_without_a_tokenizer_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="holds no tokenizer that can be read") as caught:
        TextTower(load_clip(folder), tmp_path)
    assert "\n" not in str(caught.value)
