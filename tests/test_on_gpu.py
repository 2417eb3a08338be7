"""On a GPU an update is what it is on a CPU, and every way to run a model runs there. Skipped without one."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.small_run import CPU, configured, started
from tests.tiny import write_pipeline
from tests.tiny_families import write_flux, write_sd, write_sd3
from trainer.config import TrainConfig
from trainer.loop import advance, train
from trainer.metrics import MetricsLog, read_metrics
from trainer.run import Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
GPU = torch.device("cuda")
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "sd1": lambda folder: write_sd(folder, "epsilon"),
    "sd2": lambda folder: write_sd(folder, "v_prediction"),
    "sdxl": lambda folder: write_pipeline(folder, "epsilon"),
    "sd3": write_sd3,
    "flux-dev": lambda folder: write_flux(folder, guided=True),
}
METHODS = ("sft_sharpening", "rlhf_sharpening", "diffusion_dpo", "d3po", "ddpo", "grpo", "diffusion_nft")


def updated(config: TrainConfig, device: torch.device) -> Run:
    """A run after one update."""
    run = started(config, device=device)
    with MetricsLog(run.folder.path) as log:
        advance(run, log)
    return run


@pytest.mark.parametrize("lora", ["null", "{rank: 4}"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gradient_is_that_of_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, lora: str
) -> None:
    """Adam's first moment after one step is a share of the gradient; its step would be of that the sign.

    Winners are drawn, so that a pixel that is rounded otherwise chooses no other.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    folder = FAMILIES[family](tmp_path / "model")
    changed = (
        "selection.by=random",
        "model.image_size=16",
        f"model.lora={lora}",
        "optimizer.steps_per_update=1",
    )
    here, there = (
        moments_of(updated(configured(tmp_path / device.type, folder, *changed), device))
        for device in (CPU, GPU)
    )
    assert there.is_cuda
    assert here.norm() > 0
    assert (here - there.cpu()).norm() < 1e-2 * here.norm()


def moments_of(run: Run) -> torch.Tensor:
    """Adam's first moment of all that is trained, in a row."""
    of_parameters = run.learner.state_dict()["optimizer"]["state"].values()
    return torch.cat([of_parameter["exp_avg"].flatten() for of_parameter in of_parameters])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("lora", ["null", "{rank: 4}"])
def test_every_method_learns_there(tmp_path: Path, method: str, lora: str) -> None:
    config = configured(
        tmp_path, write_pipeline(tmp_path / "model", "epsilon"), f"method={method}", f"model.lora={lora}"
    )
    said = _said_of(updated(config, GPU))
    assert math.isfinite(said["loss"])
    assert said["grad_norm"] > 0


@pytest.mark.parametrize(
    "options",
    [
        ["model.dtype=bfloat16"],
        ["model.dtype=bfloat16", "model.lora=null"],
        ["model.dtype=float16", "model.decoded_at_a_time=1"],
        ["model.dtype=float16", "model.lora=null"],
        [
            "model.dtype=bfloat16",
            "model.gradient_checkpointing=true",
            "model.decoded_at_a_time=1",
            "model.tiled=true",
        ],
        ["model.offload=true"],
        ["model.states_with_gradients=1"],
        pytest.param(
            ["model.compile=true", "model.dtype=bfloat16"],
            marks=pytest.mark.filterwarnings("default"),  # torch's compiler warns of torch's own
        ),
        ["sampling.solver=dpmpp_2m", "selection.effective_branches=2"],
        ["sampling.steps=4", "branching.start=1", "branching.end=3"],
        ["sampling.steps=4", "branching.previews=[1, -1]", "branching.stop={after: 1, keep: 2}"],
    ],
    ids=" ".join,
)
def test_every_way_to_run_a_model_runs_there(tmp_path: Path, options: list[str]) -> None:
    """Two updates: the second meets the weights of the first."""
    folder = write_pipeline(tmp_path / "model", "epsilon")
    run = updated(configured(tmp_path, folder, "model.lora={rank: 4}", *options), GPU)
    with MetricsLog(run.folder.path, resumed_update=1) as log:
        advance(run, log)
    said = _said_of(run)
    assert math.isfinite(said["loss"])
    assert said["grad_norm"] > 0


def test_a_run_is_evaluated_saved_and_resumed_there(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "model", "epsilon")
    changed = ("selection.by=random", "model.lora={rank: 4}")
    unbroken = started(configured(tmp_path / "unbroken", folder, *changed), device=GPU)
    assert train(unbroken)
    config = configured(tmp_path / "broken", folder, *changed)
    updated(config, GPU).checkpoint()
    second = started(config, device=GPU)
    assert second.update == 1
    assert train(second)
    # Sums have no fixed order there, and Adam makes much of it where a gradient is nearly nothing.
    begun, one, other = (
        torch.cat([parameter.detach().flatten() for parameter in run.policy.parameters])
        for run in (started(configured(tmp_path / "begun", folder, *changed), device=GPU), unbroken, second)
    )
    assert (one - other).norm() < 0.2 * (one - begun).norm()


def _said_of(run: Run) -> dict[str, float]:
    """What the log says of the newest update."""
    return read_metrics(run.folder.path / "metrics.jsonl")[-1]
