"""The command line: arguments, exit codes, a line for an error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.captioned import picture, write_folder
from tests.contestants import write_contest
from tests.small_run import configured
from trainer import driver
from trainer.cli import main

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
    assert main([*command, "--seed", "-1"]) == 2
    assert "--seed must be 0 or more" in capsys.readouterr().err


def test_a_second_command_is_refused_before_it_starts_a_cluster(
    pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rewards.yaml").write_text("rewards: {jpeg: {scorer: jpeg}}", encoding="utf-8")
    own = (f"rewards.services={tmp_path}/rewards.yaml", "rewards.url=null", "rewards.judge=null")
    config = configured(tmp_path, pipelines["epsilon"], *own)
    settings = [part for one in own for part in ("--set", one)]
    with driver.locked(config.run_folder):
        assert main(["train", str(tmp_path / "settings.yaml"), *settings, "--address", "127.0.0.1:9"]) == 2
    assert "another command is at work" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["sample"], ["search", "--budget", "60"]])
def test_pictures_need_a_folder_before_any_is_drawn(
    pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    (tmp_path / "file").touch()
    arguments = [*command, str(pipelines["epsilon"]), "a red circle", "--out", str(tmp_path / "file")]
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith("file is no folder; choose another with --out FOLDER\n")


def test_a_plan_is_printed_before_anything_starts(
    pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, pipelines["epsilon"])
    config.run_folder.rmdir()
    command = ["plan", str(tmp_path / "settings.yaml"), "--seconds-per-evaluation", "0.1"]
    assert main([*command, "--images-per-second", "jpeg=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rewards"]["jpeg"]["replicas"] == 2
    assert not config.run_folder.exists()
    for wrong in ("jpeg", "jpeg=fast", "clip=3"):
        assert main([*command, "--images-per-second", wrong]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("sharpen: --images-per-second")


def test_strict_data_is_a_setting(
    pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configured(tmp_path, pipelines["epsilon"])
    bad = write_folder(tmp_path / "pictures", [{"text": " ", "image": picture("red")}])
    given = ["--set", "method=standard", "--set", f"data.source={bad}"]
    command = ["train", str(tmp_path / "settings.yaml"), "--strict-data"]
    assert main([*command, *given]) == 2
    assert "row 0: caption is missing or not text; repair it" in capsys.readouterr().err
    with (tmp_path / "held-out.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": ""}\n')
    assert main(command) == 2, "without pictures it holds for prompts alone"
    assert "held-out.jsonl, line 7: prompt is missing or not text; repair it" in capsys.readouterr().err


def test_an_earlier_search_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "search.json").write_text("{}", encoding="utf-8")
    assert main(["search", str(tmp_path), "a red circle", "--budget", "8", "--out", str(tmp_path)]) == 2
    said = f"sharpen: {tmp_path} holds an earlier search; choose another folder with --out\n"
    assert capsys.readouterr().err == said


def test_rewards_of_every_method_are_looked_for_before_a_comparison_starts(
    pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those of the methods that come last."""
    served = tmp_path / "rewards.yaml"
    served.write_text("rewards: {jpeg: {scorer: jpeg}}", encoding="utf-8")
    own = {"rewards.url": None, "rewards.services": str(served), "rewards.judge": None}
    methods = {"first": {}, "last": {"rewards.weights": {"jpg": 1.0}}}
    path = write_contest(tmp_path, pipelines["epsilon"], share=own, methods=methods, searches={})
    assert main(["compare", str(path)]) == 2
    told = capsys.readouterr()
    assert told.err == f"sharpen: rewards names 'jpg', which {served} does not serve; it serves jpeg\n"
    assert not (tmp_path / "compare").exists()
