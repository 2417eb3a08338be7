"""ImageReward against golden values of its reference; batches, bad images, NaN, what cannot be loaded."""

import hashlib
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

from reward_services import ConfigInvalid
from reward_services.scorers.image_reward import ImageRewardScorer

GOLDEN = Path(__file__).parents[1] / "golden" / "imagereward"
PROMPTS = ["a photo of a red cube", "", "two green frogs", "a photo of a red cube"]
Draw = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def scorer() -> ImageRewardScorer:
    return ImageRewardScorer(str(GOLDEN))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy to be changed."""
    copy = tmp_path / "model"
    shutil.copytree(GOLDEN, copy, ignore=shutil.ignore_patterns("images"))
    return copy


def opened(name: str) -> Image.Image:
    image = Image.open(GOLDEN / "images" / name)
    image.load()
    return image


def test_golden_scores(scorer: ImageRewardScorer, expected: dict[str, Any]) -> None:
    images, prompts = [opened(name) for name in expected["images"]], expected["prompts"]
    scores = scorer.score([image for image in images for _ in prompts], prompts * len(images))
    values = np.array([score.value for score in scores]).reshape(len(images), len(prompts))
    assert {image.mode for image in images} == {"RGB", "L", "LA", "P"}
    np.testing.assert_allclose(values, expected["scores"], atol=1e-4, rtol=0)


def test_golden_inputs(scorer: ImageRewardScorer, expected: dict[str, Any]) -> None:
    for name, digest in zip(expected["images"], expected["pixels_sha256"], strict=True):
        assert hashlib.sha256(scorer.prepare(opened(name), "").pixels.tobytes()).hexdigest() == digest
    black = np.zeros((224, 224, 3), np.uint8)
    for prompt, ids in zip(expected["prompts"], expected["token_ids"], strict=True):
        assert list(scorer.prepare(black, prompt).token_ids) == ids
    assert max(len(ids) for ids in expected["token_ids"]) == 35


def test_blips_own_tokens_are_single_ones(scorer: ImageRewardScorer) -> None:
    black = np.zeros((224, 224, 3), np.uint8)
    assert scorer.prepare(black, "[DEC] [ENC]").token_ids == (101, 302, 303, 102)


def test_a_batch_gives_what_single_items_give(scorer: ImageRewardScorer, draw: Draw) -> None:
    images = draw(4, size=224)
    together = [score.value for score in scorer.score(images, PROMPTS)]
    alone = [scorer.score([image], [prompt])[0].value for image, prompt in zip(images, PROMPTS, strict=True)]
    assert len(set(together)) == 4
    assert together == pytest.approx(alone, abs=1e-4)


def test_an_image_with_several_prompts_is_encoded_once(scorer: ImageRewardScorer, draw: Draw) -> None:
    first, second = draw(2, size=224)
    images = [first, second, first.copy(), first]
    alone = [scorer.score([image], [prompt])[0].value for image, prompt in zip(images, PROMPTS, strict=True)]
    encoded: list[int] = []
    encoder: Any = scorer._network.blip["visual_encoder"]
    hook = encoder.register_forward_hook(lambda _, inputs, output: encoded.append(len(output)))
    together = [score.value for score in scorer.score(images, PROMPTS)]
    hook.remove()
    assert encoded == [2]
    assert together == pytest.approx(alone, abs=1e-4)


def test_a_bad_image_fails_alone(scorer: ImageRewardScorer, draw: Draw) -> None:
    images: list[Any] = draw(4, size=224)
    exact = [score.value for score in scorer.score(images, PROMPTS)]
    for bad in (images[0][..., 0], np.zeros((0, 0, 3), np.uint8), np.zeros((1, 2**20, 3), np.uint8)):
        scores = scorer.score([*images[:2], bad, *images[2:]], [*PROMPTS[:2], "a cat", *PROMPTS[2:]])
        assert scores[2].error is not None
        assert scores[2].error.type == "/problems/image-invalid"
        assert [score.value for score in scores if score.ok] == pytest.approx(exact, abs=1e-4)


def test_weights_that_are_nan_fail_instead_of_scoring(folder: Path, draw: Draw) -> None:
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    state["blip.visual_encoder.norm.bias"][0] = math.nan
    torch.save(state, folder / "ImageReward.pt")
    scores = ImageRewardScorer(str(folder)).score(draw(2, size=224), PROMPTS[:2])
    assert [score.error and score.error.type for score in scores] == ["/problems/score-not-finite"] * 2


def test_half_precision_is_close(scorer: ImageRewardScorer, draw: Draw) -> None:
    half = ImageRewardScorer(str(GOLDEN), dtype="bfloat16")
    images = draw(4, size=224)
    exact = [score.value for score in scorer.score(images, PROMPTS)]
    rounded = [score.value for score in half.score(images, PROMPTS)]
    assert rounded != exact
    assert rounded == pytest.approx(exact, abs=0.4)


def test_the_revision_follows_what_decides_the_scores(scorer: ImageRewardScorer, folder: Path) -> None:
    assert scorer.revision.startswith("sha256:")
    assert ImageRewardScorer(str(folder)).revision == scorer.revision
    assert ImageRewardScorer(str(folder), dtype="float16").revision != scorer.revision
    revisions = {scorer.revision}
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    state["mlp.layers.7.bias"] += 1
    torch.save(state, folder / "ImageReward.pt")
    revisions.add(ImageRewardScorer(str(folder)).revision)
    for name, old, new in (("med_config.json", "1e-12", "1e-6"), ("vocab.txt", "cube", "kube")):
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")
        revisions.add(ImageRewardScorer(str(folder)).revision)
    assert len(revisions) == 4


@pytest.mark.parametrize("name", ["ImageReward.pt", "med_config.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ConfigInvalid, match=name) as caught:
        ImageRewardScorer(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[PAD]\n[UNK]\n", r"vocab\.txt makes .* tokens, the network knows 304"),
        (b"\xff\xfe\n", "no text file"),
    ],
)
def test_another_vocabulary_is_refused(folder: Path, content: bytes, says: str) -> None:
    (folder / "vocab.txt").write_bytes(content)
    with pytest.raises(ConfigInvalid, match=says):
        ImageRewardScorer(str(folder))


def test_what_is_nowhere_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigInvalid, match="nowhere does not exist"):
        ImageRewardScorer(str(folder / "nowhere"))
    with pytest.raises(ConfigInvalid, match=r"'nobody/nothing' .* cannot be fetched from the hub"):
        ImageRewardScorer("nobody/nothing")
    (folder / "vocab.txt").unlink()
    with pytest.raises(ConfigInvalid, match=r"has no vocab\.txt.* put it there"):
        ImageRewardScorer(str(folder))
