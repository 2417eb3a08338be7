"""A policy predicts what its pipeline predicts, is trained, and is saved as plain diffusers loads it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from tests.tiny import IMAGE_SIZE, LATENT_SHAPE
from trainer.config import LoraConfig, ModelConfig
from trainer.policy import Policy

# Alpha differs from rank: whoever forgets it when loading gets other predictions.
LORA = LoraConfig(rank=4, alpha=10.0)
TRAINED = pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
TEXTS = ["a red circle", "two blue squares"]


def load(folder: Path | str, lora: LoraConfig | None = LORA, **options: Any) -> Policy:
    return Policy.load(ModelConfig(path=str(folder), lora=lora, **options))


def sample() -> tuple[Tensor, Tensor]:
    """Two noisy latents and their timesteps."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *LATENT_SHAPE, generator=generator), torch.tensor([999, 300])


def prediction(policy: Policy, guidance: float = 1.0) -> Tensor:
    with torch.no_grad():
        return policy.predict(*sample(), policy.encode(TEXTS), guidance)


def train_a_step(policy: Policy) -> None:
    optimizer = torch.optim.SGD(policy.parameters, lr=0.3)
    for _ in range(2):
        policy.predict(*sample(), policy.encode(TEXTS), 1.0).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def compiles_afresh() -> None:
    """What earlier tests had compiled is forgotten: otherwise it may be taken, whoever ran it."""
    torch.compiler.reset()


@pytest.fixture(scope="module")
def folder(pipelines: dict[str, Path]) -> Path:
    return pipelines["epsilon"]


def test_sizes_come_from_the_model(folder: Path) -> None:
    policy = load(folder)
    assert policy.latent_shape == LATENT_SHAPE
    assert policy.image_size == (IMAGE_SIZE, IMAGE_SIZE)


@TRAINED
def test_only_what_is_trained_has_gradients(folder: Path, lora: LoraConfig | None) -> None:
    policy = load(folder, lora)
    policy.predict(*sample(), policy.encode(TEXTS), 3.0).square().mean().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters)
    trained = sum(parameter.numel() for parameter in policy.parameters)
    every = sum(parameter.numel() for parameter in policy.denoiser.parameters())
    assert trained == every if lora is None else 0 < trained < every / 2


def test_rows_of_a_conditioning_can_be_repeated(folder: Path) -> None:
    text = load(folder).encode(["a red circle", "two blue squares", "a red circle"])
    assert torch.equal(text.hidden[0], text.hidden[2])
    taken = text.take(torch.tensor([1, 1, 0]))
    assert torch.equal(taken.pooled[:2], text.pooled[1].expand(2, -1))
    assert torch.equal(taken.hidden[2], text.hidden[0])


def test_a_text_is_encoded_once(folder: Path) -> None:
    policy = load(folder)
    encoded: list[int] = []
    policy._pipeline.text_encoder.register_forward_hook(lambda *_: encoded.append(1))
    policy.encode(TEXTS)
    first = len(encoded)
    policy.encode(TEXTS * 3)
    assert len(encoded) == first > 0


def test_the_prediction_is_that_of_the_unet(folder: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    hidden, _, pooled, _ = pipeline.encode_prompt(TEXTS, device="cpu")
    time_ids = torch.tensor([[IMAGE_SIZE, IMAGE_SIZE, 0, 0, IMAGE_SIZE, IMAGE_SIZE]] * 2)
    added = {"text_embeds": pooled, "time_ids": time_ids}
    with torch.no_grad():
        expected = pipeline.unet(*sample(), hidden, added_cond_kwargs=added).sample
    torch.testing.assert_close(prediction(load(folder)), expected)


def test_guidance_goes_from_the_empty_prompt_through_the_prompt(folder: Path) -> None:
    policy = load(folder)
    full, nothing = prediction(policy), torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        empty = policy.predict(*sample(), policy._family.encode_empty(policy.device).take(nothing), 1.0)
    assert not torch.allclose(empty, full, atol=1e-4)
    torch.testing.assert_close(prediction(policy, 3.0), empty + 3 * (full - empty), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
def test_a_scale_of_one_or_less_is_no_guidance(folder: Path, guidance: float) -> None:
    """As in diffusers, where models that do without are published with a scale of 0."""
    policy = load(folder)
    assert policy.evaluations(guidance) == 1
    assert torch.equal(prediction(policy, guidance), prediction(policy, 1.0))


@TRAINED
def test_the_reference_is_the_model_as_it_was_loaded(folder: Path, lora: LoraConfig | None) -> None:
    policy = load(folder, lora)
    before = prediction(policy)
    torch.testing.assert_close(before, prediction(load(folder, None)))
    train_a_step(policy)
    after = prediction(policy)
    assert (after - before).abs().max() > 1e-3
    with policy.reference():
        torch.testing.assert_close(prediction(policy), before)
    with pytest.raises(KeyError), policy.reference():
        raise KeyError
    torch.testing.assert_close(prediction(policy), after)


def test_a_saved_lora_can_be_put_on_to_sample(folder: Path, tmp_path: Path) -> None:
    policy = load(folder)
    train_a_step(policy)
    policy.save(tmp_path / "lora")
    config = ModelConfig(path=str(folder), lora=LORA)
    sampled = Policy.load(config, trainable=False, adapter=tmp_path / "lora")
    torch.testing.assert_close(prediction(sampled), prediction(policy), atol=1e-5, rtol=1e-5)
    assert sampled.parameters == []


@TRAINED
def test_what_is_only_sampled_from_has_nothing_to_train(folder: Path, lora: LoraConfig | None) -> None:
    policy = Policy.load(ModelConfig(path=str(folder), lora=lora), trainable=False)
    assert policy.parameters == []
    torch.testing.assert_close(prediction(policy), prediction(load(folder)))


@TRAINED
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_and_trains_float32_weights(
    folder: Path, lora: LoraConfig | None, dtype: str
) -> None:
    policy = load(folder, lora, dtype=dtype)
    assert {parameter.dtype for parameter in policy.parameters} == {torch.float32}
    found, exact = prediction(policy), prediction(load(folder, lora))
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.05
    with policy.reference():
        torch.testing.assert_close(prediction(policy), found, atol=0.05, rtol=0.05)
    train_a_step(policy)
    assert (prediction(policy) - found).abs().max() > 1e-3
    assert policy.decode(sample()[0].to(policy.device)).shape == (2, IMAGE_SIZE, IMAGE_SIZE, 3)


@TRAINED
@pytest.mark.parametrize("saving", [{"gradient_checkpointing": True}, {"states_with_gradients": 1}])
def test_what_saves_memory_changes_no_gradient(
    folder: Path, lora: LoraConfig | None, saving: dict[str, Any]
) -> None:
    gradients = []
    for options in ({}, saving):
        torch.manual_seed(0)
        policy = load(folder, lora, **options)
        policy.replayed(*sample(), policy.encode(TEXTS), 2.0).square().mean().backward()
        gradients.append([parameter.grad for parameter in policy.parameters])
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_activations_of_so_many_states_exist_at_a_time(folder: Path) -> None:
    """The last one's are gone before those of another are computed again."""
    policy = load(folder, lora=None, states_with_gradients=1)
    sizes: list[int] = []
    policy.denoiser.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    early = policy.denoiser.get_submodule("down_blocks.0.resnets.0")
    early.register_full_backward_hook(lambda *_: sizes.append(-1))  # the backward pass of one is nearly over
    predicted = policy.replayed(*sample(), policy.encode(TEXTS), 1.0)
    assert sizes == [1, 1]
    predicted.square().mean().backward()
    assert sizes == [1, 1, -1, 1, -1]
    with torch.no_grad():  # compared with what was said with gradients, in the same batches
        assert torch.equal(policy.replayed(*sample(), policy.encode(TEXTS), 1.0), predicted)
    assert sizes[5:] == [1, 1]
    prediction(policy)
    assert sizes[7:] == [2]


@pytest.mark.usefixtures("compiles_afresh")
@pytest.mark.filterwarnings("default")  # torch's compiler warns of torch's own
@pytest.mark.parametrize(("name", "blocks"), [("sd1", 4), ("sdxl", 4), ("sd3", 2), ("flux-dev", 2)])
def test_compiled_blocks_change_neither_prediction_nor_gradient(
    families: dict[str, Path], name: str, blocks: int
) -> None:
    """Traced and differentiated as for any backend, then run by torch: its own takes minutes."""
    found: list[list[Tensor]] = []
    for compiled in (False, True):
        policy = load(families[name], None, image_size=IMAGE_SIZE, compile=compiled)
        count = sum(module._compiled_call_impl is not None for module in policy.denoiser.modules())
        assert count == (blocks if compiled else 0)
        with torch._dynamo.config.patch(debug_backend_override=">=0:aot_eager"):
            predicted = policy.predict(*sample(), policy.encode(TEXTS), 3.0)
            predicted.square().mean().backward()
            with policy.reference():
                unmoved = prediction(policy, 3.0)
        gradients = [parameter.grad for parameter in policy.parameters if parameter.grad is not None]
        assert len(gradients) == len(policy.parameters)
        found.append([predicted.detach(), unmoved, *gradients])
    torch.testing.assert_close(*found)


@pytest.mark.usefixtures("compiles_afresh")
@pytest.mark.filterwarnings("default")  # torch's compiler warns of torch's own
@pytest.mark.parametrize("name", ["sd35", pytest.param("flux-dev", marks=pytest.mark.slow)])
def test_blocks_stay_compiled_whatever_is_asked_of_them(families: dict[str, Path], name: str) -> None:
    policy = load(families[name], image_size=IMAGE_SIZE, compile=True)
    noise, times = sample()
    text = policy.encode(TEXTS)
    with torch._dynamo.config.patch(debug_backend_override=">=0:eager", fail_on_recompile_limit_hit=True):
        for rows in (torch.tensor([0, 1]), torch.tensor([0, 1, 1]), torch.tensor([1])):
            asked = noise[rows], times[rows], text.take(rows), 3.0
            policy.predict(*asked).square().mean().backward()
            with torch.no_grad(), policy.reference():
                policy.predict(*asked)
            with torch.no_grad(), policy.sampling():
                policy.predict(*asked)


@pytest.mark.slow
@pytest.mark.usefixtures("compiles_afresh")
@pytest.mark.filterwarnings("default")  # torch's compiler warns of torch's own
@TRAINED
def test_compiling_changes_no_prediction(folder: Path, tmp_path: Path, lora: LoraConfig | None) -> None:
    torch.manual_seed(0)
    compiled = load(folder, lora, compile=True)
    assert any(module._compiled_call_impl for module in compiled.denoiser.modules())
    torch.testing.assert_close(prediction(compiled), prediction(load(folder, None)), atol=1e-5, rtol=1e-5)
    train_a_step(compiled)
    after = prediction(compiled)
    with compiled.reference():
        assert (prediction(compiled) - after).abs().max() > 1e-3
    compiled.save(tmp_path / "saved")
    torch.manual_seed(0)
    plain = load(folder, lora)
    train_a_step(plain)
    torch.testing.assert_close(prediction(plain), after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "upcast", "runs_in"),
    [
        ("float16", True, torch.float32),
        ("float16", False, torch.float16),
        ("bfloat16", True, torch.bfloat16),
    ],
)
def test_an_autoencoder_that_overflows_in_float16_runs_in_float32(
    folder: Path, tmp_path: Path, dtype: str, upcast: bool, runs_in: torch.dtype
) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((model / "vae" / "config.json").read_text("utf-8"))
    (model / "vae" / "config.json").write_text(json.dumps({**config, "force_upcast": upcast}), "utf-8")
    policy = load(model, dtype=dtype)
    assert {parameter.dtype for parameter in policy._pipeline.vae.parameters()} == {runs_in}
    assert policy.decode(sample()[0]).std() > 1


def test_decoding_is_that_of_the_pipeline(folder: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    latents = 3 * sample()[0]
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    expected = (pipeline.image_processor.postprocess(decoded, output_type="np") * 255).round()
    pictures = load(folder).decode(latents)
    assert pictures.dtype == "uint8"
    assert abs(pictures - expected).max() <= 1
    assert pictures.std() > 1


def test_pictures_may_be_decoded_in_parts(folder: Path) -> None:
    latents = sample()[0].repeat(1, 1, 2, 2)  # larger than the tiles this model was made for
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    with torch.no_grad():
        decoded = pipeline.vae.tiled_decode(latents / pipeline.vae.config.scaling_factor).sample
    expected = (pipeline.image_processor.postprocess(decoded, output_type="np") * 255).round()
    ways: tuple[dict[str, Any], ...] = ({}, {"decoded_at_a_time": 1}, {"tiled": True})
    whole, sliced, tiled = (load(folder, **way).decode(latents).astype(int) for way in ways)
    assert abs(sliced - whole).max() <= 1
    assert abs(tiled - expected).max() <= 1 < abs(tiled - whole).max()
