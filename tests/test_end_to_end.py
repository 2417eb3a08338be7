"""The commands as a person meets them: bad input is a line that says what to do and leaves nothing behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from diffusers import FluxPipeline
from PIL import Image

from tests.small_run import settings
from tests.tiny import write_clip, write_pipeline
from tests.tiny_families import write_flux
from trainer.cli import main

ROOT = Path(__file__).parents[1]
PATIENCE_S = 400


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("end_to_end") / "pipeline", "epsilon")


@pytest.fixture
def configured(tmp_path: Path, pipeline: Path) -> Path:
    """A configuration that would train, in a folder of its own."""
    values = settings(tmp_path, pipeline)
    light = {"scorer": "jpeg", "num_cpus": 0.1}
    rewards = {"jpeg": light, "large": {**light, "options": {"direction": "incompressible"}}}
    (tmp_path / "rewards.yaml").write_text(yaml.safe_dump({"rewards": rewards}), encoding="utf-8")
    services = {"services": str(tmp_path / "rewards.yaml"), "url": None, "ready_timeout_s": PATIENCE_S}
    values["rewards"] |= services
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return tmp_path / "settings.yaml"


def sharpen(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S, env=os.environ
    )


def empty_prompts(config: Path) -> str:
    (config.parent / "train.jsonl").write_text("\n", encoding="utf-8")
    return ""


def latin_prompts(config: Path) -> str:
    (config.parent / "train.jsonl").write_bytes('{"prompt": "a café"}'.encode("latin-1"))
    return ""


def no_pipeline(config: Path) -> str:
    return f"model.path={config.parent}"


def no_reward_model(config: Path) -> None:
    rewards = {
        "jpeg": {"scorer": "clip", "num_cpus": 0.1, "options": {"model": "./nowhere"}},
        "large": {"scorer": "jpeg", "num_cpus": 0.1},
    }
    (config.parent / "rewards.yaml").write_text(yaml.safe_dump({"rewards": rewards}), encoding="utf-8")


def other_run(config: Path) -> str:
    run = config.parent / "run"
    run.mkdir()
    (run / "config.yaml").write_text(config.read_text(encoding="utf-8"), encoding="utf-8")
    (run / "metrics.jsonl").write_text('{"update": 1}\n', encoding="utf-8")
    return "seed=77"


def setting(override: str) -> Callable[[Path], str]:
    return lambda config: override


BAD_INPUT = {
    "unknown key": (
        setting("sampling.stepz=3"),
        'unknown key "sampling.stepz"; did you mean "sampling.steps"?',
    ),
    "no value": (setting("updates"), "write it as key=value"),
    "no prompts": (setting("prompts.train=nowhere.txt"), "cannot be read (No such file or directory); check"),
    "empty prompts": (empty_prompts, "holds no prompt; write one a line"),
    "prompts not UTF-8": (latin_prompts, "line 1: is not UTF-8; save the file as UTF-8"),
    "no pipeline": (no_pipeline, "has no model_index.json; model.path must be a folder that diffusers'"),
    "no model": (setting("model.path=./nowhere"), "does not exist; give a folder that diffusers'"),
    "no rewards file": (setting("rewards.services=nowhere.yaml"), "nowhere.yaml: No such file or directory"),
    "unknown reward": (setting("rewards.weights={clop: 1}"), "names 'clop', which"),
    "no cluster": (setting("rewards.judge=large"), "no Ray cluster answers at 127.0.0.1:1"),
    "other run": (other_run, "holds a run with other settings (seed); resume it with its own (sharpen train"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_a_line_and_leaves_nothing(
    configured: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, says = BAD_INPUT[name]
    override = spoil(configured)
    before = sorted(configured.parent.rglob("*"))
    changes = ["--set", override] if override else []
    address = ["--address", "127.0.0.1:1"] if name == "no cluster" else []
    assert main(["train", str(configured), *changes, *address]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sharpen: ")
    assert says in line
    assert sorted(configured.parent.rglob("*")) == before


def test_a_reward_that_never_comes_up_is_a_line_and_leaves_nothing(configured: Path) -> None:
    no_reward_model(configured)
    before = sorted(configured.parent.rglob("*"))
    result = sharpen("train", str(configured))
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("sharpen: reward jpeg never became ready: model folder ")
    assert sorted(configured.parent.rglob("*")) == before


@pytest.mark.slow
def test_a_flow_matching_model_is_sharpened(configured: Path, tmp_path: Path) -> None:
    """FLUX from the command line: stochastic steps, adapters on its transformer, a size of ours."""
    flux, run = write_flux(tmp_path / "flux", guided=True), tmp_path / "run"
    changes = (f"model.path={flux}", "model.lora={rank: 2}", "model.image_size=16", "updates=2")
    result = sharpen("train", str(configured), *(part for change in changes for part in ("--set", change)))
    assert result.returncode == 0, result.stderr
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["updates"] == 2
    # Guidance is an input of its transformer: 4 prompts, 3 branches, 3 steps; 2 optimizer steps on 2 states
    # of 2 branches, policy and reference. No prediction takes two evaluations.
    assert summary["unet_evaluations"] == 2 * (4 * 3 * 3 + 2 * 4 * 2 * 2 * 2)
    pipeline = FluxPipeline.from_pretrained(flux)
    pipeline.load_lora_weights(run / "lora")
    assert any(
        weight.abs().max() > 0 for name, weight in pipeline.transformer.named_parameters() if "lora_B" in name
    )
    result = sharpen("sample", str(run), "a red circle", "--pictures", "1", "--out", str(tmp_path / "drawn"))
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "drawn" / "00-0.png") as picture:
        assert picture.size == (16, 16)


def test_samples_are_drawn_again_from_their_seed(pipeline: Path, tmp_path: Path) -> None:
    command = ("sample", str(pipeline), "a red circle", "--steps", "2", "--pictures", "2", "--seed", "3")
    drawn = sharpen(*command, "--out", str(tmp_path / "a"))
    assert (drawn.returncode, drawn.stderr) == (0, "")
    names = ["00-3.png", "00-4.png"]
    assert drawn.stdout.splitlines() == [str(tmp_path / "a" / name) for name in names]
    assert main([*command, "--out", str(tmp_path / "b")]) == 0
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_model_is_evaluated(
    pipeline: Path, configured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip")
    result = sharpen(
        "evaluate", str(pipeline), "--config", str(configured), "--set", f"evaluation.features={clip}"
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    figures = json.loads(result.stdout)
    assert (figures["pictures"], figures["judge_failures"], figures["guidance"]) == (8, 0, 1.5)
    assert 0 <= figures["accuracy"] <= 1
    assert set(figures["scores"]) == {"jpeg", "large"}
    assert figures["diversity"] > 0
    for arguments, says in (
        ((str(pipeline),), "is no run folder; say with --config"),
        ((str(tmp_path), "--config", str(configured)), "has no model_index.json"),
    ):
        assert main(["evaluate", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
