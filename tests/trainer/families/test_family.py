"""What holds for every kind of model: pictures, batches and files are diffusers' own, densities Bayes'."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FluxPipeline
from numpy.typing import NDArray
from torch import Tensor

from tests.tiny import IMAGE_SIZE, LATENT_SHAPE
from trainer.branches import Branches, grow, step_noise
from trainer.config import LoraConfig, ModelConfig, SamplingConfig
from trainer.diffusion import clean_and_noise, log_probability, step_distribution
from trainer.families import FAMILIES
from trainer.families.family import Conditioning
from trainer.policy import ModelError, Policy
from trainer.records import Prompt

NAMES = ("sd1", "sd2", "sdxl", "sd3", "sd3-without-t5", "sd35", "flux-dev", "flux-schnell")
EVERY = pytest.mark.parametrize("name", NAMES)
LORA = LoraConfig(rank=4, alpha=10.0)
PROMPTS = [Prompt(0, "a red circle"), Prompt(1, "two blue squares"), Prompt(2, "a green cross")]
SEEDS = [11, 12, 13]


def load(
    folder: Path, lora: LoraConfig | None = LORA, device: torch.device | None = None, **options: Any
) -> Policy:
    config = ModelConfig(path=str(folder), lora=lora, image_size=IMAGE_SIZE, **options)
    return Policy.load(config, device)


def place(module: torch.nn.Module) -> str:
    return next(module.parameters()).device.type


def plain(folder: Path) -> Any:
    """The pipeline as anybody loads it; DDPM models with the sampler that ours is without noise.

    diffusers itself loads Stable Diffusion 3 without T5 only when it is told so.
    """
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    absent = {name: None for name, entry in index.items() if entry == [None, None]}
    pipeline = DiffusionPipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    if "beta_schedule" in pipeline.scheduler.config:
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False
        )
    return pipeline


def drawn_by(pipeline: Any, noise: Tensor, steps: int, guidance: float, output_type: str = "np") -> Any:
    """What the pipeline itself makes of each prompt's first noise."""
    sizes = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    if isinstance(pipeline, FluxPipeline):
        noise = FluxPipeline._pack_latents(noise, len(noise), *noise.shape[1:])
        sizes["max_sequence_length"] = 512 if pipeline.transformer.config.guidance_embeds else 256
    return pipeline(
        [prompt.text for prompt in PROMPTS],
        latents=noise,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type=output_type,
        **sizes,
    ).images


def grown_by(
    policy: Policy,
    prompts: Sequence[Prompt] = PROMPTS,
    seeds: Sequence[int] = SEEDS,
    *,
    steps: int = 4,
    guidance: float = 3.0,
    eta: float = 0.0,
) -> Branches:
    noise = step_noise(policy.latent_shape, branches=1, steps=steps if eta else 0, seeds=seeds)
    return grow(policy, SamplingConfig(steps=steps, guidance=guidance, eta=eta), prompts, noise)


def first_noise() -> Tensor:
    return step_noise(LATENT_SHAPE, branches=1, steps=0, seeds=SEEDS)[0, :, 0]


def pictures(branches: Branches) -> NDArray[np.uint8]:
    return branches.previews[max(branches.previews)][:, 0]


def assert_same_pictures(found: NDArray[np.uint8], expected: NDArray[np.float32]) -> None:
    """Pictures differ by rounding to whole numbers only, and show something."""
    assert np.abs(found - 255 * expected).max() < 0.6
    assert found.std() > 5


def train(policy: Policy) -> None:
    timesteps, text = policy.schedule(4).timesteps_T[1:4], policy.encode([prompt.text for prompt in PROMPTS])
    optimizer = torch.optim.Adam(policy.parameters, lr=0.03)
    for _ in range(5):
        policy.predict(first_noise(), timesteps, text, 1.0).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_each_kind_is_known_by_the_class_in_its_index() -> None:
    assert list(FAMILIES) == [
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
    ]
    for name, family in FAMILIES.items():
        assert family.pipeline_class.__name__ == name


@EVERY
@pytest.mark.parametrize(("steps", "guidance"), [(1, 3.0), (4, 1.0), (10, 3.0)])
def test_without_noise_pictures_are_the_pipelines_own(
    families: dict[str, Path], name: str, steps: int, guidance: float
) -> None:
    grown = grown_by(load(families[name], None), steps=steps, guidance=guidance)
    assert_same_pictures(pictures(grown), drawn_by(plain(families[name]), first_noise(), steps, guidance))


@EVERY
def test_log_probabilities_are_those_of_the_posterior(families: dict[str, Path], name: str) -> None:
    """Of ancestral sampling: Bayes' rule for the noising chain, in double precision."""
    policy, steps = load(families[name]), 5
    grown, schedule = grown_by(policy, steps=steps, eta=1.0), policy.schedule(steps)
    for j in range(steps - 1):
        state, after = grown.states[j, :, 0], grown.states[j + 1, :, 0]
        with torch.no_grad():
            output = policy.predict(state, schedule.timesteps_T[j].expand(3), grown.text, 3.0)
        level, next_level = schedule.levels_T[j], schedule.next_levels_T[j]
        clean, eps = clean_and_noise(state, output, level, schedule.prediction_type)
        found = log_probability(after, *step_distribution(clean, eps, level, next_level, 1.0))
        a, b, a_, b_ = (x.double() for x in (level.signal, level.noise, next_level.signal, next_level.noise))
        ratio = a / a_
        noising = b**2 - ratio**2 * b_**2
        precision = 1 / b_**2 + ratio**2 / noising
        mean = (a_ * clean.double() / b_**2 + ratio * state.double() / noising) / precision
        density = torch.distributions.Normal(mean, precision**-0.5).log_prob(after.double())
        torch.testing.assert_close(found.double(), density.flatten(1).sum(1), atol=0.02, rtol=1e-4)


@EVERY
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_batch_is_its_rows(families: dict[str, Path], name: str, eta: float) -> None:
    policy = load(families[name])
    together = grown_by(policy, eta=eta)
    alone = [grown_by(policy, [prompt], [seed], eta=eta) for prompt, seed in zip(PROMPTS, SEEDS)]
    states = torch.cat([one.states for one in alone], dim=1)
    torch.testing.assert_close(states, together.states, atol=1e-4, rtol=1e-4)


@EVERY
@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_what_is_saved_draws_the_same_in_plain_diffusers(
    families: dict[str, Path], tmp_path: Path, name: str, lora: LoraConfig | None
) -> None:
    policy = load(families[name], lora)
    before = pictures(grown_by(policy))
    train(policy)
    after = pictures(grown_by(policy))
    assert np.abs(after.astype(int) - before).max() > 5
    policy.save(tmp_path / "saved")
    pipeline = plain(families[name] if lora else tmp_path / "saved")
    if lora:
        assert [path.name for path in (tmp_path / "saved").iterdir()] == ["pytorch_lora_weights.safetensors"]
        pipeline.load_lora_weights(tmp_path / "saved")
    assert_same_pictures(after, drawn_by(pipeline, first_noise(), 4, 3.0))
    with policy.reference():
        assert np.abs(pictures(grown_by(policy)).astype(int) - before).max() <= 1


@EVERY
def test_half_precision_draws_nearly_the_same(families: dict[str, Path], name: str) -> None:
    half = pictures(grown_by(load(families[name], dtype="bfloat16")))
    exact = pictures(grown_by(load(families[name])))
    assert np.abs(half.astype(int) - exact).mean() < 10


@EVERY
def test_what_is_not_trained_visits_the_device_to_be_used(families: dict[str, Path], name: str) -> None:
    """The device here is one that holds no numbers: who is on it can be seen, and that nobody comes back."""
    policy = load(families[name], offload=True, device=torch.device("meta"))
    encoder, vae = policy._pipeline.text_encoder, policy._pipeline.vae
    assert (place(policy.denoiser), place(encoder), place(vae)) == ("meta", "cpu", "cpu")
    with pytest.raises(NotImplementedError, match="meta"):
        policy.encode(["a red circle"])
    assert (place(encoder), place(vae)) == ("meta", "cpu")
    with pytest.raises(
        NotImplementedError, match=r"use torch.nn.Module.to_empty\(\)"
    ):  # Module.to("cpu") says it
        policy.decode(torch.zeros(1, *LATENT_SHAPE, device="meta"))
    assert np.array_equal(
        pictures(grown_by(load(families[name], offload=True))), pictures(grown_by(load(families[name])))
    )


@EVERY
def test_adapters_go_where_attention_is(families: dict[str, Path], name: str) -> None:
    policy = load(families[name])
    found = {key.split(".lora_")[0] for key, _ in policy.denoiser.named_parameters() if ".lora_" in key}
    expected = {
        key.removesuffix(".base_layer.weight")
        for key, _ in policy.denoiser.named_parameters()
        if key.endswith(".base_layer.weight")
    }
    wanted = {
        key
        for key, module in load(families[name], None).denoiser.named_modules()
        if isinstance(module, torch.nn.Linear) and re.search(r"\.attn\d?\.", key)
    }
    assert found == expected == wanted != set()


@EVERY
def test_gradients_are_the_same_when_activations_are_computed_again(
    families: dict[str, Path], name: str
) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        policy = load(families[name], gradient_checkpointing=checkpointing)
        text, timesteps = policy.encode(["a red circle"] * 3), policy.schedule(4).timesteps_T[:3]
        policy.predict(first_noise(), timesteps, text, 3.0).square().mean().backward()
        gradients.append([parameter.grad for parameter in policy.parameters])
    torch.testing.assert_close(*gradients)


@EVERY
def test_evaluations_are_counted_as_they_happen(families: dict[str, Path], name: str) -> None:
    policy, evaluated = load(families[name]), []
    policy.denoiser.register_forward_pre_hook(
        lambda _, inputs, named: evaluated.append(len(inputs[0] if inputs else named["hidden_states"])),
        with_kwargs=True,
    )
    for guidance in (1.0, 3.0):
        evaluated.clear()
        grown = grown_by(policy, guidance=guidance)
        assert grown.unet_evaluations == sum(evaluated) == 3 * 4 * policy.evaluations(guidance)


def test_a_picture_size_that_cannot_be_drawn_is_refused(families: dict[str, Path]) -> None:
    for name, step in (("sdxl", 2), ("sd3", 4), ("flux-dev", 4)):
        config = ModelConfig(path=str(families[name]), image_size=5 * step - 1)
        with pytest.raises(
            ModelError, match=f"image_size is {5 * step - 1}; .* draws multiples of {step} pix"
        ):
            Policy.load(config)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux-dev"])
def test_pictures_can_have_another_size(families: dict[str, Path], name: str) -> None:
    policy = Policy.load(ModelConfig(path=str(families[name]), image_size=24))
    assert policy.latent_shape == (LATENT_SHAPE[0], 12, 12)
    assert policy.image_size == (24, 24)
    assert pictures(grown_by(policy)).shape == (3, 24, 24, 3)


def test_rows_of_a_conditioning() -> None:
    sizes = torch.arange(18).reshape(3, 6)
    text = Conditioning(torch.arange(6.0).reshape(3, 1, 2), torch.arange(3.0)[:, None], sizes)
    taken = text.take(torch.tensor([2, 2, 0]))
    assert taken.hidden[:, 0].tolist() == [[4, 5], [4, 5], [0, 1]]
    assert taken.pooled[:, 0].tolist() == [2, 2, 0]
    assert taken.sizes[:, 0].tolist() == [12, 12, 0]
    both = Conditioning.joined([taken, text])
    assert both.pooled[:, 0].tolist() == [2, 2, 0, 0, 1, 2]
    assert torch.equal(both.hidden[3:], text.hidden)
    assert both.sizes[:, 5].tolist() == [17, 17, 5, 5, 11, 17]
    other = text.of_sizes(sizes + 1)
    assert torch.equal(other.hidden, text.hidden)
    assert other.sizes[0].tolist() == [1, 2, 3, 4, 5, 6]
    elsewhere = text.to(torch.device("meta"))
    assert elsewhere.pooled.is_meta
    assert elsewhere.sizes.is_meta
