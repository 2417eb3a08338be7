"""The bar follows a run wherever it goes, warnings stand above it, and no look ends the command."""

import io
import json
import logging
import time
from pathlib import Path

import pytest

from trainer.progress import ProgressBar, following
from trainer.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def write(folder: RunFolder, *updates: int) -> None:
    """As a run does that begins, or goes on: the file takes the place of the earlier one."""
    lines = ({"update": update, "reward": None if update == 1 else -0.5} for update in updates)
    partial = folder.path / "metrics.partial"
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    partial.replace(folder.path / "metrics.jsonl")


def test_the_bar_follows_the_metrics(folder: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    """Also back, when ranks died and go on from a checkpoint, and over an update without a reward."""
    write(folder, 1, 2, 3)
    with following(folder, 3) as show:
        show()
        write(folder, 1)
        show()
        write(folder, 1, 2)
    shown = capfd.readouterr().err
    assert "3/3" in shown
    last = shown.split("\r")[-1]
    assert "2/3" in last
    assert "reward=-0.500" in last
    assert "-1" not in last
    assert ", -" not in last.replace("reward=-", "")


def test_a_run_that_is_ended_where_it_is_stands_at_its_end(
    folder: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    write(folder, 1, 2)
    with following(folder, 1):
        pass
    assert "2/2 " in capfd.readouterr().err.split("\r")[-1]


def test_a_look_that_fails_ends_nothing(folder: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    """Shared storage that for a while does not let itself be read, then shows a line before its bytes."""
    metrics = folder.path / "metrics.jsonl"
    with following(folder, 3) as show:
        metrics.mkdir()
        folder.warnings_path.mkdir()
        show()
        metrics.rmdir()
        metrics.write_bytes(b'{"update": 1, "reward": 0.5}\n\0\0\0\0\n{"upda')
        show()
        with metrics.open("a", encoding="utf-8") as file:
            file.write('te": 2, "reward": 2.5}\n')
    last = capfd.readouterr().err.split("\r")[-1]
    assert "2/3 " in last
    assert "reward=2.500" in last


def test_a_look_takes_no_longer_for_a_long_run(folder: RunFolder) -> None:
    """Lines that were read are not read again: 10,000 updates took 150 ms a look, two looks a second."""
    line = json.dumps({"update": 1, **dict.fromkeys(map(str, range(50)), 0.125)})
    (folder.path / "metrics.jsonl").write_text(f"{line}\n" * 10_000, encoding="utf-8")
    with following(folder, 10_000) as show:
        began = time.process_time()
        for _ in range(20):
            show()
        assert time.process_time() - began < 0.2


def test_what_ranks_warn_of_stands_above_the_bar(
    folder: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each once whatever number of ranks meets it; what an earlier command told is not told again."""
    log = logging.getLogger("trainer.checkpoint")

    def warn(message: str) -> None:
        for rank in (0, 1):
            with folder.keeping_warnings(rank):
                log.warning("%s", message)

    warn("told before")
    with following(folder, 3) as show:
        warn("a checkpoint is damaged: rank 0 wrote it")
        show()
        warn("a checkpoint is damaged: rank 0 wrote it")
    told = capfd.readouterr().err
    assert "Warning: a checkpoint is damaged: rank 0 wrote it\n" in told
    assert told.count("Warning") == 1
    assert len(folder.warnings) == 6
    folder.reopen()
    assert folder.warnings == [], "the run begins anew"


def test_the_bar_shows_reward_last_accuracy_stall_speed_and_memory_in_a_line() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    bar = ProgressBar(10_000, resumed_update=9_000, stream=stream)
    bar.show(9001, {"reward": 1.5, "accuracy": 0.25, "stall_fraction": 0.125, "images_per_second": 10})
    peaks = {"sampling_peak_bytes": 2**30, "learning_peak_bytes": int(43.21 * 2**30)}
    bar.show(9002, {"reward": -1.75, "stall_fraction": 0.0, "images_per_second": 123.4, **peaks})
    bar.close()
    last = stream.getvalue().split("\r")[-1].strip()
    assert "9002/10000" in last
    assert "reward=-1.750, verified=25.0%, stall=0%, img/s=123, peak=43.2G" in last
    assert len(last[last.index("reward=") :]) <= 70, "what the bar itself takes is 50 of 120 columns"


def test_a_log_file_is_not_flooded() -> None:
    updates, stream = 500, io.StringIO()
    bar = ProgressBar(updates, stream=stream)
    for update in range(1, updates + 1):
        bar.show(update, {"reward": float(update)})
    bar.close()
    assert stream.getvalue().count("\r") <= 3
    assert f"{updates}/{updates}" in stream.getvalue()
