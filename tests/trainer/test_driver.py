"""Before a run: mistakes are found and nothing is written. While it runs: Ctrl-C, and why it ended."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.captioned import picture, rows, write_folder
from tests.small_run import CPU, ScoringHere, configured
from trainer.config import ConfigError, DataConfig, TrainConfig, load_config, save_config
from trainer.data.files import DataError
from trainer.data.prompts import PromptFileError
from trainer.driver import RunFailed, absolute_paths, begin, check, check_place, conclude, locked, watch
from trainer.families.family import ModelError
from trainer.loop import run
from trainer.ranks import Ranks
from trainer.run_folder import RunFolder


@pytest.fixture
def config(pipelines: dict[str, Path], tmp_path: Path) -> TrainConfig:
    made = configured(tmp_path, pipelines["epsilon"])
    made.run_folder.rmdir()
    return made


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("model.path=./nowhere", ModelError, "does not exist"),
        ("model.path=tests", ModelError, "has no model_index.json"),
        ("prompts.train=nowhere.txt", PromptFileError, "cannot be read"),
        ("prompts.held_out=nowhere.txt", PromptFileError, "cannot be read"),
        ("method=standard data.source=nowhere", DataError, "is no folder, .tar"),
        ("method=diffusion_dpo data.source=deploy/shapes/pictures.parquet", DataError, "1 pictures a row, 2"),
        ("evaluation.features=tests", ConfigError, "give as evaluation.features a CLIP folder"),
        ("model.image_size=15", ModelError, "draws multiples of 2 pixels"),
        ("model.lora={target_modules:[to_qq]}", ConfigError, "no layer's name ends in 'to_qq'"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    pipelines: dict[str, Path], tmp_path: Path, override: str, error: type[Exception], message: str
) -> None:
    config = configured(tmp_path, pipelines["epsilon"], *override.split())
    config.run_folder.rmdir()
    with pytest.raises(error, match=message):
        check(config)
    assert not config.run_folder.exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("settings.yaml", "settings.yaml is no folder; choose another with --set run_folder=PATH"),
        ("settings.yaml/run", "settings.yaml is no folder"),
    ],
)
def test_a_run_folder_that_cannot_be_made_is_found_before_rewards_start(
    config: TrainConfig, tmp_path: Path, place: str, message: str
) -> None:
    with pytest.raises(RunFailed, match=message):
        check(config.model_copy(update={"run_folder": tmp_path / place}))


def test_a_gain_is_of_two_prompts_or_more(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Its error is between prompts; without a judge there is none."""
    config = configured(tmp_path, pipelines["epsilon"])
    (tmp_path / "held-out.jsonl").write_text('{"prompt": "a red circle"}\n' * 2, encoding="utf-8")
    with pytest.raises(PromptFileError, match=r"holds one prompt, .*; add others, or leave out re"):
        check(config)
    check(with_settings(config, "rewards.judge=null"))


def test_a_part_of_the_model_that_is_missing_is_found_without_its_weights(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    model = shutil.copytree(pipelines["epsilon"], tmp_path / "model")
    for weights in model.rglob("*.safetensors"):
        weights.unlink()
    config = configured(tmp_path, model)
    config.run_folder.rmdir()
    check(config)
    (model / "vae" / "config.json").unlink()
    other = config.model_copy(update={"model": config.model.model_copy(update={"tiled": True})})
    with pytest.raises(ModelError, match=r"cannot load model\.path .*no file named config\.json"):
        check(other)


def test_a_missing_library_of_the_optimizer_is_found_before_anything_starts(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)  # as if it were not installed
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        check(with_settings(config, "optimizer.moments=8-bit"))


def test_prompts_that_are_read_in_part_are_told(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    train = Path(str(config.prompts.train))
    with train.open("a", encoding="utf-8") as file:
        file.write(f'{{"prompt": "{"red " * 100}"}}\n')
    check(config)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"1 of 7 prompts of {train} are longer than the model's text encoders read")


def test_rows_that_are_left_out_are_told_before_anything_starts(
    pipelines: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each source, and one for all the runs of a comparison that share it.

    Prompts that a run has no use for are not looked at.
    """
    bad = write_folder(tmp_path / "pictures", [*rows(2), {"text": " ", "image": picture("red")}])
    own = configured(tmp_path, pipelines["epsilon"])
    given = configured(tmp_path, pipelines["epsilon"], "method=standard", f"data.source={bad}")
    for name in ("train", "held-out"):
        with (tmp_path / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write("no prompt\n")
    unused = given.prompts.model_copy(update={"train": "nowhere.txt"})
    for config in (own, given.model_copy(update={"prompts": unused})):
        check(config)
        check(config.model_copy(update={"seed": 9}))
    found = capsys.readouterr().err.splitlines()
    refuses = "--strict-data refuses them"
    unparsed = "1 whose text is not JSON (first: line 7)"
    uncaptioned = "1 whose caption is missing or not text (first: row 2)"
    assert found == [
        f"1 of 7 rows of {tmp_path}/train.jsonl are left out: {unparsed}; {refuses}",
        f"1 of 7 rows of {tmp_path}/held-out.jsonl are left out: {unparsed}; {refuses}",
        f"1 of 3 rows of {bad} are left out: {uncaptioned}; {refuses}",
    ]


def test_the_same_command_goes_on_and_another_is_refused(config: TrainConfig) -> None:
    folder = check(config)
    assert not folder.path.exists()
    begin(config, folder)
    folder.request_stop()
    folder.give_up("earlier trouble")
    begin(config, check(config))
    assert (folder.stop_requested, folder.failure) == (False, None)
    check(with_settings(config, "seed=9", "model.lora={rank: 2}"))  # no update was made: nothing is lost
    made_an_update(folder)
    goes_on = ("ranks.workers=2", "watch.gap=9", "updates=7", "optimizer.lr=1e-5", "model.offload=true")
    check(with_settings(config, *goes_on))
    refused = r"other settings \(loss.beta, seed\); resume it with its own \(sharpen train"
    with pytest.raises(RunFailed, match=refused):
        check(with_settings(config, "seed=9", "loss.beta=3", "updates=7"))


def test_a_finished_run_can_be_lengthened(config: TrainConfig) -> None:
    folder = check(config)
    begin(config, folder)
    made_an_update(folder)
    folder.write_summary({})
    with pytest.raises(
        RunFailed, match="holds a finished run; lengthen it with --set updates=N, remove it, or"
    ):
        check(config)
    with pytest.raises(RunFailed, match="finished run"):
        check(with_settings(config, "optimizer.lr=1e-5"))
    longer = with_settings(config, "updates=5")
    begin(longer, check(longer))
    assert not folder.is_finished


def test_a_run_goes_on_where_it_was_moved_to(config: TrainConfig, tmp_path: Path) -> None:
    """Its settings name the folder it was in: there another run would begin."""
    begin(config, check(config))
    made_an_update(RunFolder(config.run_folder))
    check_place(config.run_folder / "config.yaml", config)
    settings = config.run_folder.rename(tmp_path / "moved") / "config.yaml"
    with pytest.raises(RunFailed, match=rf"to go on .* where it lies, add .*={settings.parent}$"):
        check_place(settings, load_config(settings))
    for name in ("moved", "another"):
        there = load_config(settings, [f"run_folder={tmp_path / name}"])
        check_place(settings, there)
        check(there)


def with_settings(config: TrainConfig, *overrides: str) -> TrainConfig:
    path = config.run_folder.parent / "with.yaml"
    save_config(config, path)
    return load_config(path, overrides)


def made_an_update(folder: RunFolder) -> None:
    (folder.path / "metrics.jsonl").write_text('{"update": 1}\n', encoding="utf-8")


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_folder_is_for_one_command_at_a_time(config: TrainConfig) -> None:
    folder = config.run_folder
    holding = (
        f"from pathlib import Path; from trainer.driver import locked\nwith locked(Path({str(folder)!r})):"
    )
    command = [sys.executable, "-c", f"{holding}\n print('in', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(RunFailed, match="another command is at work"), locked(folder):
            pass
        other.kill()
    with locked(folder):
        pass


def test_ctrl_c_asks_the_run_to_stop(config: TrainConfig, capfd: pytest.CaptureFixture[str]) -> None:
    folder = check(config)
    begin(config, folder)
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: folder.stop_requested)

    watch(config, folder, work)
    assert "Saving a checkpoint after this update" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    assert "the same command goes on" in conclude(folder)


def test_the_second_ctrl_c_interrupts(config: TrainConfig) -> None:
    folder = check(config)
    begin(config, folder)

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: folder.stop_requested)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        watch(config, folder, work)
    assert time.monotonic() - began < 4


def test_why_a_run_ended_is_told(config: TrainConfig) -> None:
    folder = check(config)
    begin(config, folder)
    with pytest.raises(RunFailed, match=r"^no rewards left$"):
        watch(config, folder, lambda: folder.give_up("no rewards left"))
    begin(config, folder)

    def crash() -> None:
        raise RunFailed("rank 1 failed 4 times")

    with pytest.raises(RunFailed, match="4 times"):
        watch(config, folder, crash)


def test_a_finished_run_is_reported(config: TrainConfig) -> None:
    folder = check(config)
    begin(config, folder)
    ended: list[bool] = []
    watch(config, folder, lambda: ended.append(run(config, scoring=ScoringHere(), ranks=Ranks(), device=CPU)))
    assert ended == [True]
    said = conclude(folder)
    assert said == f"Report: {folder.path / 'report.html'}"
    page = (folder.path / "report.html").read_text(encoding="utf-8")
    assert "a red circle" in page
    assert page.count("data:image/png") >= 8


def test_paths_are_found_from_another_working_directory_and_ids_stay(
    pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "taesd").mkdir()
    monkeypatch.chdir(tmp_path)
    overrides = ["run_folder=runs/a", "model.path=model", "prompts.train=train.jsonl", "rewards.url=null"]
    overrides += ["rewards.services=rewards.yaml", "evaluation.features=model", "data.source=shards/*.tar"]
    overrides.append("model.preview_decoder=taesd")
    config = absolute_paths(configured(tmp_path, pipelines["epsilon"], "method=standard", *overrides))
    assert config.run_folder == tmp_path / "runs" / "a"
    assert config.prompts.train == str(tmp_path / "train.jsonl")
    assert config.data == DataConfig(source=f"{tmp_path}/shards/*.tar")
    assert config.rewards.services == tmp_path / "rewards.yaml"
    assert config.model.path == config.evaluation.features == str(tmp_path / "model")
    assert config.model.preview_decoder == str(tmp_path / "taesd")
    elsewhere = ("model.path=stabilityai/sdxl", "data=null", "prompts.held_out=null")
    hub = absolute_paths(configured(tmp_path, pipelines["epsilon"], *elsewhere))
    assert (hub.model.path, hub.prompts.held_out) == ("stabilityai/sdxl", None)
    assert (hub.rewards.services, hub.evaluation.features) == (None, None)
