"""CLIPScore against golden values and transformers' own forward pass; what cannot be loaded says why."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceTrainer
from transformers import CLIPModel, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip.tokenization_siglip import SiglipTokenizer

from reward_services import ConfigInvalid
from reward_services.options import Preprocessing
from reward_services.scorers.clip import ClipScorer

Draw = Callable[..., list[Any]]
CONVENTIONS: list[Preprocessing] = ["openai", "transformers"]


@pytest.fixture(scope="module")
def expected(golden: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((golden / "expected.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def tiny(tiny_clip: Path) -> ClipScorer:
    return ClipScorer(str(tiny_clip))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_golden_scores(golden: Path, expected: dict[str, Any], convention: Preprocessing) -> None:
    scorer = ClipScorer(str(golden / "model"), preprocessing=convention)
    images = [Image.open(golden / "images" / name) for name in expected["images"]]
    pairs = [(image, prompt) for image in images for prompt in expected["prompts"]]
    scores = scorer.score([image for image, _ in pairs], [prompt for _, prompt in pairs])
    values = np.array([score.value for score in scores]).reshape(len(images), -1)
    np.testing.assert_allclose(values, expected[convention], atol=1e-3, rtol=0)


def test_the_conventions_differ_where_they_should(expected: dict[str, Any]) -> None:
    assert np.abs(np.array(expected["openai"]) - expected["transformers"]).max() > 1


def test_golden_tokens_keep_the_end_of_text(golden: Path, expected: dict[str, Any]) -> None:
    scorer = ClipScorer(str(golden / "model"))
    image = np.zeros((224, 224, 3), np.uint8)
    for prompt, ids in zip(expected["prompts"], expected["token_ids"], strict=True):
        assert list(scorer.prepare(image, prompt).token_ids) == ids
    assert max(len(ids) for ids in expected["token_ids"]) == 77


def test_equal_to_transformers(tiny: ClipScorer, tiny_clip: Path, draw: Draw) -> None:
    images, prompts = (
        draw(5),
        ["a red cube", "cat", "a red cube", "", "two blue spheres and a very long tail " * 9],
    )
    model: Any = CLIPModel.from_pretrained(tiny_clip)
    items = [tiny.prepare(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    for image, item, score in zip(images, items, tiny.score(images, prompts), strict=True):
        pixels = ((torch.from_numpy(image) / 255 - mean) / std).permute(2, 0, 1)[None]
        with torch.no_grad():
            logit = model(input_ids=torch.tensor([item.token_ids]), pixel_values=pixels).logits_per_image
            cosine = (logit / model.logit_scale.exp()).item()
        assert score.value == pytest.approx(100 * cosine, abs=1e-3)


def test_prompts_beyond_the_models_positions_are_cut(tiny: ClipScorer, draw: Draw) -> None:
    long = tiny.prepare(draw(1)[0], "cat " * 100).token_ids
    assert len(long) == 16
    assert long[-1] == tiny.prepare(draw(1)[0], "cat").token_ids[-1]


def test_an_image_of_the_models_size_skips_pillow_with_the_same_numbers(tiny: ClipScorer, draw: Draw) -> None:
    images, prompts = draw(8), ["a red cube"] * 8
    through_pillow = tiny.score([Image.fromarray(image) for image in images], prompts)
    assert tiny.score(images, prompts) == through_pillow
    assert tiny.prepare(images[0], "a").pixels is images[0]


def test_a_batch_gives_what_single_images_give(tiny: ClipScorer, draw: Draw) -> None:
    images, prompts = draw(6), ["cat", "a red cube", "a", "cat", "two dogs", ""]
    together = [score.value for score in tiny.score(images, prompts)]
    alone = [tiny.score([image], [prompt])[0].value for image, prompt in zip(images, prompts, strict=True)]
    assert together == pytest.approx(alone, abs=1e-4)


def test_repeated_prompts_are_encoded_once(tiny_clip: Path, draw: Draw) -> None:
    scorer = ClipScorer(str(tiny_clip))
    seen: list[int] = []
    scorer.texts.projection.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    scorer.score(draw(10), ["cat", "dog"] * 5)
    assert seen == [2]


def test_a_poisoned_image_fails_alone(tiny: ClipScorer, draw: Draw) -> None:
    images: list[Any] = draw(6)
    exact = [score.value for score in tiny.score(images, ["cat"] * 6)]
    for poison in (images[0][..., 0], np.zeros((0, 0, 3), np.uint8), np.zeros((1, 2**20, 3), np.uint8)):
        scores = tiny.score([*images[:2], poison, *images[2:]], ["cat"] * 7)
        assert scores[2].error is not None
        assert scores[2].error.type == "/problems/image-invalid"
        assert [score.value for score in scores if score.ok] == pytest.approx(exact, abs=1e-5)


def test_a_model_that_answers_nan_fails_instead_of_scoring(tiny_clip: Path, draw: Draw) -> None:
    scorer = ClipScorer(str(tiny_clip))
    scorer.images.projection.weight.fill_(math.nan)
    (score,) = scorer.score(draw(1), ["cat"])
    assert score.error is not None
    assert score.error.type == "/problems/score-not-finite"


def test_half_precision_is_close(tiny: ClipScorer, tiny_clip: Path, draw: Draw) -> None:
    half = ClipScorer(str(tiny_clip), dtype="bfloat16")
    images, prompts = draw(4), ["cat"] * 4
    exact = [score.value for score in tiny.score(images, prompts)]
    assert [score.value for score in half.score(images, prompts)] == pytest.approx(exact, abs=1.0)


def test_the_revision_follows_what_decides_the_scores(
    tiny: ClipScorer, tiny_clip: Path, tmp_path: Path
) -> None:
    assert tiny.revision.startswith("sha256:")
    assert ClipScorer(str(tiny_clip)).revision == tiny.revision
    assert ClipScorer(str(tiny_clip), preprocessing="transformers").revision != tiny.revision
    other = tmp_path / "clip"
    shutil.copytree(tiny_clip, other)
    assert ClipScorer(str(other)).revision == tiny.revision
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert ClipScorer(str(other)).revision != tiny.revision


def break_folder(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "no config":
        config.unlink()
    elif how == "no weights":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "torn weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "half of the weights":
        from safetensors.torch import load_file, save_file

        kept = {name: tensor for name, tensor in load_file(weights).items() if "text" not in name}
        save_file(kept, weights, metadata={"format": "pt"})
    elif how == "another model":
        config.write_text(json.dumps({"model_type": "siglip2"}))
    elif how == "no json":
        config.write_text("{")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no config", "has no config.json"),
        ("no weights", r"has no model\.safetensors"),
        ("torn weights", "cannot be read as weights"),
        ("half of the weights", r"lacks text_model\.\S+ and \d+ more"),
        ("another model", "does not describe a clip or siglip model"),
        ("no json", "is not JSON"),
    ],
)
def test_a_broken_folder_says_what_is_wrong(tiny_clip: Path, tmp_path: Path, how: str, says: str) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(tiny_clip, folder)
    break_folder(folder, how)
    with pytest.raises(ConfigInvalid, match=says) as caught:
        ClipScorer(str(folder))
    assert "\n" not in str(caught.value)


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"model folder .*nowhere does not exist"):
        ClipScorer(str(tmp_path / "nowhere"))


def test_a_model_that_is_nowhere_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigInvalid, match="is no folder and cannot be fetched from the hub"):
        ClipScorer("nobody/nothing")


@pytest.fixture(scope="module")
def tiny_siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SiglipModel of 32 pixels; its tokenizer is a sentencepiece model made here."""
    folder = tmp_path_factory.mktemp("tiny") / "siglip"
    folder.mkdir()
    corpus = folder / "corpus.txt"
    corpus.write_text("a photo of a red cube\ntwo blue spheres left of a cat\nsmall green cones\n" * 20)
    prefix = str(folder / "spiece")
    SentencePieceTrainer.train(
        f"--input={corpus} --model_prefix={prefix} --vocab_size=27 --minloglevel=2 "
        "--pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1"
    )
    tokenizer = SiglipTokenizer(prefix + ".model", model_max_length=16)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}, resample=2).save_pretrained(folder)
    width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    text = {**width, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "pad_token_id": 0}
    config = SiglipConfig(text_config=text, vision_config={**width, "image_size": 32, "patch_size": 8})
    torch.manual_seed(0)
    SiglipModel(config).save_pretrained(folder)
    return folder


def test_a_siglip_is_equal_to_transformers(tiny_siglip: Path, draw: Draw) -> None:
    """Pictures of any shape are stretched; prompts are padded to all positions, longer ones cut."""
    wide = np.concatenate(draw(3, size=40), axis=1)
    images = [*draw(2), wide, Image.fromarray(draw(1, size=50)[0])]
    prompts = ["a red cube", "", "a red cube", "two blue spheres left of a cat " * 9]
    model: Any = SiglipModel.from_pretrained(tiny_siglip)
    tokenizer, transform = (
        SiglipTokenizer.from_pretrained(tiny_siglip),
        SiglipImageProcessorPil.from_pretrained(tiny_siglip),
    )
    ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    pixels = transform(
        [Image.fromarray(np.asarray(image)) for image in images], return_tensors="pt"
    ).pixel_values
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image.diagonal()
    cosines = (logits - model.logit_bias) / model.logit_scale.exp()
    scores = ClipScorer(str(tiny_siglip)).score(images, prompts)
    expected = (100 * cosines).tolist()
    assert [score.value for score in scores] == pytest.approx(expected, abs=1e-3)
    assert len({round(value, 2) for value in expected}) == 4


def test_a_siglip_says_what_is_wrong(tiny_siglip: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="holds a SigLIP; leave out `preprocessing`"):
        ClipScorer(str(tiny_siglip), preprocessing="openai")
    broken = tmp_path / "broken"
    shutil.copytree(tiny_siglip, broken)
    weights = load_file(broken / "model.safetensors")
    del weights["vision_model.head.probe"]
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(ConfigInvalid, match=r"lacks vision_model\.head\.probe"):
        ClipScorer(str(broken))
