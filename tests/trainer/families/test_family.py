"""What holds for every kind of model: pictures, batches and files are diffusers' own, densities Bayes'."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.drawing import (
    LORA,
    PROMPTS,
    SEEDS,
    assert_same_pictures,
    drawn_by,
    first_noise,
    grown_by,
    load,
    pictures,
    plain,
    train,
)
from tests.tiny import LATENT_SHAPE
from trainer.config import LoraConfig, ModelConfig
from trainer.diffusion import clean_and_noise, log_probability, step_distribution
from trainer.families import FAMILIES
from trainer.families.family import Conditioning, ModelError
from trainer.policy import Policy

NAMES = ("sd1", "sd2", "sdxl", "sd3", "sd3-without-t5", "sd35", "flux-dev", "flux-schnell")
EVERY = pytest.mark.parametrize("name", NAMES)


def place(module: torch.nn.Module) -> str:
    return next(module.parameters()).device.type


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
@pytest.mark.parametrize(("steps", "guidance"), [(1, 3.0), (4, 1.0), (4, 0.0), (4, 0.5), (10, 3.0)])
def test_without_noise_pictures_are_the_pipelines_own(
    families: dict[str, Path], name: str, steps: int, guidance: float
) -> None:
    grown = grown_by(load(families[name], None), steps=steps, guidance=guidance)
    assert_same_pictures(pictures(grown), drawn_by(plain(families[name]), first_noise(), steps, guidance))


@EVERY
def test_a_prompt_is_cut_off_where_its_end_changes_nothing(families: dict[str, Path], name: str) -> None:
    policy = load(families[name], None)

    def changes(words: str) -> bool:
        red, blue = policy.encode([f"{words} red", f"{words} blue"]).hidden
        return not red.equal(blue)

    texts = [" ".join(["a"] * count) for count in range(600)]
    whole = next(count for count in range(600) if policy.cut_off([f"{texts[count]} red"])) - 1
    assert policy.cut_off([f"{texts[whole]} red", f"{texts[whole + 1]} red", f"{texts[599]} red"]) == 2
    assert changes(texts[whole])
    assert not changes(texts[whole + 1])


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


@pytest.mark.filterwarnings("default:.*upcast_vae:FutureWarning")  # diffusers warns of diffusers' own
@pytest.mark.filterwarnings("default:Mismatch dtype between input and weight")  # autocast leaves norms alone
@pytest.mark.parametrize(("dtype", "mean", "most"), [("bfloat16", 2, 10), ("float16", 0.5, 2)])
@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux-dev"])
def test_what_was_trained_in_half_precision_is_saved_in_float32(
    families: dict[str, Path], tmp_path: Path, name: str, dtype: str, mean: float, most: float
) -> None:
    """Plain diffusers draws with it in either format, without being told of one or told."""
    policy, half = load(families[name], None, dtype=dtype), getattr(torch, dtype)
    train(policy)
    drawn = pictures(grown_by(policy))
    policy.save(tmp_path)
    pipeline = plain(tmp_path)
    saved = getattr(pipeline, policy._family.denoiser).parameters()
    assert all(torch.equal(one, other) for one, other in zip(saved, policy.parameters, strict=True))
    for noise in (first_noise(), first_noise().to(half)):
        found = drawn_by(pipeline, noise, 4, 3.0)
        differences = np.abs(255 * found - drawn)
        assert (differences.mean() < mean) & (differences.max() < most)
        pipeline.to(half)
    assert policy._pipeline.text_encoder.dtype == half
    assert np.array_equal(pictures(grown_by(policy)), drawn)


def test_a_tokenizer_is_saved_as_the_model_has_it(families: dict[str, Path], tmp_path: Path) -> None:
    """Another release of transformers reads other files than the one that loaded it would write."""
    model = shutil.copytree(families["sdxl"], tmp_path / "model")
    (model / "tokenizer_2" / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    load(model, None).save(tmp_path / "saved")
    for name in ("tokenizer", "tokenizer_2"):
        own, saved = (
            {file.name: file.read_bytes() for file in (folder / name).iterdir()}
            for folder in (model, tmp_path / "saved")
        )
        assert own == saved


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
    for guidance in (0.0, 1.0, 3.0):
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
