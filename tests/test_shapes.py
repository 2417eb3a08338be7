"""The embedded default as it is shipped: small, loadable by the ecosystem alone, with modes to sharpen."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reward_services.config_file import load_config as load_services
from reward_services.scorers.clip import ClipScorer
from reward_services.shapes.captions import CATEGORIES, is_held_out, parse
from reward_services.shapes.verify import verify
from trainer.branches import grow, step_noise
from trainer.config import ModelConfig, SamplingConfig, load_config
from trainer.config.data import DataConfig
from trainer.data.prompts import read_prompts
from trainer.data.rows import Rows
from trainer.policy import Policy

ROOT = Path(__file__).parent.parent
SHAPES = ROOT / "deploy" / "shapes"


def test_weights_are_safetensors_below_16_mb() -> None:
    weights = [path for path in SHAPES.rglob("*") if path.suffix in {".safetensors", ".bin", ".pt", ".ckpt"}]
    assert {path.suffix for path in weights} == {".safetensors"}
    assert sum(path.stat().st_size for path in weights) < 16e6


def test_base_loads_and_samples_in_plain_diffusers() -> None:
    code = (
        "from diffusers import StableDiffusionXLPipeline\n"
        f"pipeline = StableDiffusionXLPipeline.from_pretrained({str(SHAPES / 'base')!r})\n"
        "image = pipeline('a red circle', num_inference_steps=4, guidance_scale=1.0, eta=1.0).images[0]\n"
        "import sys; assert 'trainer' not in sys.modules and image.size == (32, 32), image.size"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/", capture_output=True)


@pytest.mark.parametrize("name", ["clip", "preference-clip"])
def test_clips_load_in_plain_transformers(name: str) -> None:
    code = (
        "from transformers import CLIPModel, CLIPTokenizer, AutoImageProcessor\n"
        f"folder = {str(SHAPES / name)!r}\n"
        "CLIPModel.from_pretrained(folder, use_safetensors=True)\n"
        "AutoImageProcessor.from_pretrained(folder, use_fast=False)\n"
        "assert len(CLIPTokenizer.from_pretrained(folder)('a red circle').input_ids) == 5"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/", capture_output=True)


def test_prompts_of_the_two_files_share_no_combination() -> None:
    train, held_out = (read_prompts(SHAPES / "prompts" / f"{name}.jsonl") for name in ("train", "held-out"))
    assert not any(is_held_out(parse(prompt.text)) for prompt in train)
    assert all(is_held_out(parse(prompt.text)) for prompt in held_out)
    for prompts in (train, held_out):
        counts = [sum(prompt.extra["category"] == category for prompt in prompts) for category in CATEGORIES]
        assert len(set(counts)) == 1, "every category has the same share"


def test_captioned_pictures_are_right_and_none_is_held_out() -> None:
    rows = Rows(DataConfig(source=str(SHAPES / "pictures.parquet")))
    chosen = range(0, len(rows.usable), 8)
    pictures = [rows.read(rows.usable[place], (32, 32), "0")[0] for place in chosen]
    assert not any(is_held_out(parse(picture.prompt)) for picture in pictures)
    right = [verify(picture.image, picture.prompt).correct for picture in pictures]
    assert sum(right) > 0.97 * len(right)


def test_default_run_trains_on_learned_rewards_and_is_judged_by_the_verifier() -> None:
    config = load_config(ROOT / "deploy" / "shapes.yaml")
    services = load_services(ROOT / "deploy" / "rewards.yaml")
    assert config.rewards.judge == "verifier"
    assert all(services.rewards[name].scorer == "clip" for name in config.rewards.weights)
    assert config.evaluation.draws >= 512
    assert config.control is not None, "the default carries the figures of its no-reward control"


def test_preference_tells_right_pictures_from_wrong_ones_of_held_out_prompts() -> None:
    """Measured over more captions when it was made; deploy/shapes/README.md has the figures."""
    config = load_config(ROOT / "deploy" / "shapes.yaml")
    policy = Policy.load(ModelConfig(path=str(SHAPES / "base"), lora=None), trainable=False)
    scorer = ClipScorer(model=str(SHAPES / "preference-clip"))
    prompts = read_prompts(SHAPES / "prompts" / "held-out.jsonl")[:48]
    steps = config.sampling.steps
    noise = step_noise(policy.latent_shape, branches=4, steps=steps, seeds=range(len(prompts)))
    images = grow(policy, config.sampling, prompts, noise).previews[steps - 1]
    texts = [prompt.text for prompt in prompts for _ in range(4)]
    flat = images.reshape(-1, *images.shape[2:])
    right = np.array([verify(image, text).correct for image, text in zip(flat, texts, strict=True)])
    values = np.array([score.value for score in scorer.score(list(flat), texts)])
    auc = (values[right][:, None] > values[~right][None, :]).mean()
    best = right.reshape(-1, 4)[np.arange(len(prompts)), values.reshape(-1, 4).argmax(1)].mean()
    assert 0.08 < right.mean() < 0.85, "the base is right sometimes, so that there is something to sharpen"
    assert auc > 0.7
    assert best > right.mean() + 0.05


def test_the_preview_decoder_is_scored_as_the_bases_own() -> None:
    """On x0 estimates half way: branches of a prompt by their scores, less the mean of the prompt."""
    sampling, scorer = (
        SamplingConfig(steps=10, guidance=1.0),
        ClipScorer(model=str(SHAPES / "preference-clip")),
    )
    prompts = read_prompts(SHAPES / "prompts" / "held-out.jsonl")[:12]
    texts = [prompt.text for prompt in prompts for _ in range(8)]
    scores = []
    for decoder in (None, str(SHAPES / "preview-decoder")):
        model = ModelConfig(path=str(SHAPES / "base"), lora=None, preview_decoder=decoder)
        policy = Policy.load(model, trainable=False)
        noise = step_noise(policy.latent_shape, branches=8, steps=5, seeds=range(len(prompts)))
        pictures = grow(policy, sampling, prompts, noise, end=5).previews[4]
        values = [score.value for score in scorer.score(list(pictures.reshape(-1, 32, 32, 3)), texts)]
        of_branches = np.array(values).reshape(len(prompts), 8)
        scores.append((of_branches - of_branches.mean(1, keepdims=True)).ravel())
    assert np.corrcoef(*scores)[0, 1] > 0.95


@pytest.mark.parametrize(("name", "seeds"), [("measured.json", 3), ("measured-sft.json", 1)])
def test_what_is_quoted_was_measured_and_is_caused_by_the_reward(name: str, seeds: int) -> None:
    """Every seed gains, and stands above its no-reward control by more than chance."""
    measured = json.loads((SHAPES / name).read_text(encoding="utf-8"))
    assert {"date", "command"} < set(measured)
    assert len({run["seed"] for run in measured["runs"]}) == seeds
    for run in measured["runs"]:
        assert run["reward"]["accuracy_gain"] >= 0.10
        above = run["above_control"]
        assert above["pictures"] >= 512
        assert above["difference"] >= max(0.08, 3 * above["standard_error"])
        kept = run["reward"]["diversity_of_correct_after"] / run["reward"]["diversity_of_correct_before"]
        assert kept >= 0.7


def test_the_default_quotes_its_control() -> None:
    control = load_config(ROOT / "deploy" / "shapes.yaml").control
    measured = json.loads((SHAPES / "measured.json").read_text(encoding="utf-8"))["runs"][0]["control"]
    assert control is not None
    for name in ("accuracy_before", "accuracy_after", "reward_before", "reward_after"):
        assert getattr(control, name) == pytest.approx(measured[name], abs=0.006)
