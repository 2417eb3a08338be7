"""The command line: arguments, exit codes, a line for an error, paths that hold in other working folders."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_run import configured
from trainer.cli import _absolute, main
from trainer.config import load_config

ROOT = Path(__file__).parents[2]


def test_help_and_bad_arguments_load_neither_torch_nor_ray() -> None:
    code = (
        "import sys\nfrom trainer.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as end: print(end.code)\n"
        "print(*{'torch', 'ray', 'diffusers'} & set(sys.modules))"
    )
    for arguments, status in ((["--help"], "0"), (["train"], "2"), (["train", "nowhere.yaml"], "")):
        command = [sys.executable, "-c", code, *arguments]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-2 if status else 0 :][0] == (status or "")
        assert result.stdout.splitlines()[-1] == ""


def test_an_error_is_a_line_and_a_traceback_on_demand(
    pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configured(tmp_path, pipelines["epsilon"])
    arguments = ["train", str(tmp_path / "settings.yaml"), "--set", "sampling.step=4"]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sharpen: ")
    assert line.endswith('unknown key "sampling.step"; did you mean "sampling.steps"?')
    with pytest.raises(ValueError, match="unknown key"):
        main(["--traceback", *arguments])


def test_sample_writes_pictures(
    pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sample", str(pipelines["epsilon"]), "a red circle", "--out", str(tmp_path / "out")]
    assert main([*command, "--pictures", "2", "--steps", "2", "--seed", "7"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "out" / "00-7.png"),
        str(tmp_path / "out" / "00-8.png"),
    ]
    assert main([*command, "--pictures", "0"]) == 2


def test_paths_hold_in_another_working_directory(
    pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(tmp_path, pipelines["epsilon"])
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    overrides = ["run_folder=runs/a", "model.path=model", "prompts.train=train.jsonl", "rewards.url=null"]
    overrides += ["rewards.services=rewards.yaml", "evaluation.features=model"]
    config = _absolute(load_config(Path("settings.yaml"), overrides))
    assert config.run_folder == tmp_path / "runs" / "a"
    assert config.prompts.train == tmp_path / "train.jsonl"
    assert config.rewards.services == tmp_path / "rewards.yaml"
    assert config.model.path == config.evaluation.features == str(tmp_path / "model")
    hub = _absolute(
        load_config(Path("settings.yaml"), ["model.path=stabilityai/sdxl", "prompts.held_out=null"])
    )
    assert (hub.model.path, hub.prompts.held_out) == ("stabilityai/sdxl", None)
    assert (hub.rewards.services, hub.evaluation.features) == (None, None)
