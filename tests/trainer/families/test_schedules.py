"""Levels are those of the model's own scheduler; one of another kind is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from tests.drawing import assert_same_pictures, drawn_by, first_noise, grown_by, load, pictures, plain
from tests.tiny import unet
from trainer.config import ModelConfig
from trainer.families.family import ModelError
from trainer.families.schedules import ddpm_schedule, flow_schedule
from trainer.policy import Policy


def pipeline_of(folder: Path) -> Any:
    return DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("steps", [1, 10, 40])
def test_ddpm_levels_are_ddims(families: dict[str, Path], name: str, steps: int) -> None:
    pipeline = pipeline_of(families[name])
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    schedule = ddpm_schedule(pipeline, steps)
    assert schedule.timesteps_T.tolist() == scheduler.timesteps.tolist()
    torch.testing.assert_close(schedule.levels_T.signal**2, scheduler.alphas_cumprod[schedule.timesteps_T])
    assert schedule.prediction_type == scheduler.config.prediction_type
    # None of these was trained to end at alpha_bar = 1.
    assert schedule.next_levels_T.signal[-1] == scheduler.alphas_cumprod[0].sqrt()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers', of numpy
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("steps", [7, 28, 30, 40])
def test_ddpm_levels_are_eulers_at_any_number_of_steps(
    families: dict[str, Path], name: str, steps: int
) -> None:
    """Euler's method in noise / signal is DDIM; at last it leaves no noise, and DDIM the model's least."""
    pipeline = pipeline_of(families[name])
    scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    schedule = ddpm_schedule(pipeline, steps)
    assert schedule.timesteps_T.tolist() == scheduler.timesteps.tolist()
    for levels, sigmas in (
        (schedule.levels_T, scheduler.sigmas[:-1]),
        (schedule.next_levels_T[:-1], scheduler.sigmas[1:-1]),
    ):
        torch.testing.assert_close(levels.noise / levels.signal, sigmas)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("steps", [28, 30])
def test_where_steps_are_uneven_diffusers_ddim_differs_little(
    families: dict[str, Path], name: str, steps: int
) -> None:
    """It takes each for 1000 // steps timesteps, so that some end a timestep before the next begins."""
    drawn = pictures(grown_by(load(families[name], None), steps=steps))
    differences = np.abs(drawn - 255 * drawn_by(plain(families[name]), first_noise(), steps, 3.0))
    assert 0.6 < differences.max() < 5
    assert differences.mean() < 0.5


@pytest.mark.parametrize("sampling", [{}, {"eta": 1.0}, {"solver": "dpmpp_2m"}])
def test_a_model_that_starts_without_signal_draws_what_diffusers_does(
    families: dict[str, Path], tmp_path: Path, sampling: dict[str, Any]
) -> None:
    """Of zero terminal SNR (arXiv 2305.08891): log(signal / noise) begins at minus infinity."""
    folder = shutil.copytree(families["sd2"], tmp_path / "model")
    DDIMScheduler.from_config(
        DDIMScheduler.load_config(folder / "scheduler"),
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    ).save_pretrained(folder / "scheduler")
    policy = load(folder, None)
    assert policy.schedule(4).levels_T.signal[0] == 0
    grown = grown_by(policy, **sampling)
    assert grown.states.isfinite().all()
    assert grown.clean.isfinite().all()
    if not sampling:
        assert_same_pictures(pictures(grown), drawn_by(plain(folder), first_noise(), 4, 3.0))
    assert pictures(grown).std() > 5


def test_a_distilled_unet_is_refused(families: dict[str, Path]) -> None:
    pipeline = pipeline_of(families["sd1"])
    pipeline.unet = unet(cross_attention_dim=16, addition_embed_type=None, time_cond_proj_dim=8)
    with pytest.raises(ModelError, match=r"is distilled .*; give the model it was made from"):
        ddpm_schedule(pipeline, 4)


@pytest.mark.parametrize("steps", [1, 4, 7, 28])
def test_flow_levels_are_eulers(families: dict[str, Path], steps: int) -> None:
    pipeline = pipeline_of(families["sd3"])
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    schedule = flow_schedule(pipeline, steps, tokens=16)
    assert torch.equal(schedule.timesteps_T, scheduler.timesteps)
    assert torch.equal(schedule.levels_T.noise, scheduler.sigmas[:-1])
    assert torch.equal(schedule.next_levels_T.noise, scheduler.sigmas[1:])
    assert schedule.prediction_type == "flow"


@pytest.mark.parametrize(("tokens", "shift"), [(256, 0.5), (4096, 1.15), (1024, 0.63)])
def test_larger_pictures_start_from_more_noise(families: dict[str, Path], tokens: int, shift: float) -> None:
    """sigma = e^m / (e^m + 1 / t - 1), m linear in the number of patches: 0.5 at 256, 1.15 at 4096."""
    times = [1.0, 0.75, 0.5, 0.25]
    schedule = flow_schedule(pipeline_of(families["flux-dev"]), 4, tokens=tokens, sigmas=times)
    expected = [np.exp(shift) / (np.exp(shift) + 1 / time - 1) for time in times]
    assert schedule.levels_T.noise.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "scheduler", "message"),
    [
        (
            "sdxl",
            EDMEulerScheduler(),
            "has a EDMEulerScheduler, whose noise levels are not DDPM's; give a model",
        ),
        (
            "sd1",
            DDIMScheduler(prediction_type="sample", clip_sample=False, steps_offset=1),
            "predicts 'sample'; supported are epsilon, v_prediction",
        ),
        (
            "sd1",
            DDIMScheduler(rescale_betas_zero_snr=True, clip_sample=False, steps_offset=1),
            "predicts noise, .* says nothing of a picture: .* set rescale_betas_zero_snr to false, or",
        ),
        ("sd3", UniPCMultistepScheduler(), "has a UniPCMultistepScheduler; supported is FlowMatchEuler"),
    ],
)
def test_levels_of_another_kind_are_refused(
    families: dict[str, Path], tmp_path: Path, name: str, scheduler: Any, message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(families[name], folder)
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(ModelError, match=message) as error:
        Policy.load(ModelConfig(path=str(folder)))
    assert str(folder) in str(error.value)
