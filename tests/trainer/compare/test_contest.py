"""A comparison runs what is missing, survives a kill, and goes on when one of its runs cannot."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.contestants import go, train_here, write_contest
from tests.small_run import relative_difference, weights_of
from trainer import driver
from trainer.compare.contest import Job, check, jobs
from trainer.compare.page import write_comparison
from trainer.config import ConfigError, TrainConfig
from trainer.config.comparison import CompareConfig, load_comparison
from trainer.driver import RunFailed
from trainer.run_folder import RunFolder

ROOT = Path(__file__).parents[3]


def load(path: Path, *overrides: str) -> CompareConfig:
    return load_comparison(path, list(overrides))


def test_what_is_finished_is_not_run_again(pipelines: dict[str, Path], tmp_path: Path) -> None:
    comparison = load(write_contest(tmp_path, pipelines["epsilon"]))
    trained: list[str] = []
    ended: list[Job] = []

    def train(config: TrainConfig) -> None:
        trained.append(config.run_folder.name)
        train_here(config)

    check(comparison)
    go(comparison, train, ended.append)
    assert trained == ["sharpening-0", "grpo-0", "sharpening-1", "grpo-1"]
    assert {(job.name, job.seed) for job in ended[-2:]} == {("best_of_3", 0), ("best_of_3", 1)}
    assert list(jobs(comparison)) == []
    go(comparison, train)
    assert len(trained) == 4
    page = write_comparison(comparison)
    summary = json.loads((comparison.folder / "summary.json").read_text(encoding="utf-8"))
    assert page.name == "compare.html"
    for axis in ("training_s", "unet_evaluations", "images_scored"):
        rows = {row["name"]: row for row in summary["tables"][axis]["rows"]}
        assert [(name, row["seeds"]) for name, row in rows.items()] == [
            ("base", 1),
            ("sharpening", 2),
            ("grpo", 2),
            ("best_of_3", 2),
        ]
        assert rows["base"]["evaluations_per_picture"] == rows["grpo"]["evaluations_per_picture"] == 6
        assert rows["best_of_3"]["evaluations_per_picture"] == 18
        if (
            axis != "training_s"
        ):  # by seconds a run may have been evaluated untrained only, or at another update
            reward = rows["grpo"]["reward"]
            assert reward["low"] < reward["mean"] == pytest.approx((reward["low"] + reward["high"]) / 2)
    assert [len(points) for points in summary["runs"]["grpo"]] == [4, 4]
    check(comparison)
    other = load(write_contest(tmp_path, pipelines["epsilon"], share={"loss.beta": 7.0}))
    with pytest.raises(
        RunFailed, match=r"sharpening-0 holds a run .* finished with other settings .*loss.beta"
    ):
        check(other)


def test_a_killed_comparison_goes_on(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Killed with the second run under way: the first is left as it is, the second ends as if unbroken.

    Winners are drawn: a process rounds as it likes, a byte of a JPEG follows, and by a spread of a few bytes
    grpo makes a hundredth of an update of it.
    """
    pipeline = pipelines["epsilon"]
    methods = {"sharpening": {}, "control": {"selection.by": "random"}}
    share = {"updates": 6, "checkpoint.every_updates": 1}
    changes = {"seeds": [0], "searches": {}, "share": share, "methods": methods}
    path = write_contest(tmp_path, pipeline, **changes)
    comparison = load(path)
    first, second = comparison.place("sharpening", 0), comparison.place("control", 0)
    command = [sys.executable, "-m", "tests.contestants", str(path)]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ) as process:
        deadline = time.monotonic() + 300
        while not list(second.glob("checkpoints/update-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert (first / "summary.json").exists()
    assert not (second / "summary.json").exists()
    written = (first / "summary.json").stat().st_mtime_ns
    assert [job.name for job in jobs(comparison)] == ["control"]
    go(comparison)
    assert (first / "summary.json").stat().st_mtime_ns == written
    unbroken = comparison.run_config("control", 0).model_copy(update={"run_folder": tmp_path / "unbroken"})
    unbroken.run_folder.mkdir()
    train_here(unbroken)
    assert (
        relative_difference(weights_of(unbroken), weights_of(comparison.run_config("control", 0)), pipeline)
        < 1e-3
    )


def test_a_run_that_cannot_go_on_is_told_of_and_the_others_go_on(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    methods = {"diverging": {"optimizer.lr": 1e30}, "sharpening": {}}
    comparison = load(write_contest(tmp_path, pipelines["epsilon"], methods=methods, searches={}))
    told: list[tuple[str, int, str]] = []
    ended: list[tuple[str, int]] = []
    with pytest.raises(RunFailed, match=r"^diverging-0, diverging-1 could not go on.*methods\.NAME=null"):
        go(
            comparison,
            done=lambda job: ended.append((job.name, job.seed)),
            warn=lambda job, warning: told.append((job.name, job.seed, warning)),
        )
    assert [(name, seed) for name, seed, warning in told if "diverged" in warning] == [
        ("diverging", 0),
        ("diverging", 1),
    ]
    assert ended == [("sharpening", 0), ("sharpening", 1)]
    assert {job.name for job in jobs(comparison)} == {"diverging"}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"method": "best_of_m", "budget": 8}, "the search method is 'best_of_m'"),
        ({"method": "zero_order", "budget": 29}, "a budget of 29 evaluations is too small for .*; give 30"),
    ],
)
def test_a_search_that_cannot_be_is_found_before_anything_starts(
    pipelines: dict[str, Path], tmp_path: Path, search: dict[str, object], message: str
) -> None:
    """Searches come last, after all that runs take."""
    comparison = load(write_contest(tmp_path, pipelines["epsilon"], searches={"odd": search}))
    with pytest.raises(ValueError, match=message):
        check(comparison)
    assert not comparison.folder.exists()


def test_two_runs_go_side_by_side(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Each waits for the other: it takes two at a time to get past the barrier."""
    barrier = threading.Barrier(2, timeout=60)

    def train(config: TrainConfig) -> None:
        barrier.wait()
        (config.run_folder / "summary.json").write_text("{}", encoding="utf-8")

    comparison = load(write_contest(tmp_path, pipelines["epsilon"], searches={}, parallel=2))
    go(comparison, train)
    assert list(jobs(comparison)) == []


def test_each_method_is_used_as_it_draws(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """The first in three guided steps, and so the base beside it; the other in four without guidance."""
    methods = {"guided": {}, "plain": {"sampling.steps": 4, "sampling.guidance": 1.0}}
    path = write_contest(tmp_path, pipelines["epsilon"], methods=methods, seeds=[0], searches={})
    comparison = load(path, "share.updates=1")
    go(comparison)
    write_comparison(comparison)
    summary = json.loads((comparison.folder / "summary.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row["evaluations_per_picture"] for row in summary["tables"]["training_s"]["rows"]}
    assert rows == {"base": 6, "guided": 6, "plain": 4}


def test_what_ranks_warn_of_is_told_while_runs_go_on(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Each warning of a run once, whichever of its ranks met it."""
    told: list[tuple[str, int, str]] = []
    heard = threading.Event()

    def warn(job: Job, warning: str) -> None:
        told.append((job.name, job.seed, warning))
        heard.set()

    def train(config: TrainConfig) -> None:
        heard.clear()
        for rank in (0, 1):
            with RunFolder(config.run_folder).keeping_warnings(rank):
                logging.getLogger("trainer").warning("jpeg gave no score")
        assert heard.wait(60)
        (config.run_folder / "summary.json").write_text("{}", encoding="utf-8")

    path = write_contest(tmp_path, pipelines["epsilon"], searches={}, methods={"sharpening": {}})
    go(load(path), train, warn=warn)
    assert told == [("sharpening", seed, "jpeg gave no score") for seed in (0, 1)]


def fail_or_wait(config: TrainConfig) -> None:
    """One run fails as nobody foresaw; any other waits until it is asked to stop."""
    if config.run_folder.name == "failing-0":
        raise ValueError("nothing of this kind is foreseen")
    deadline = time.monotonic() + 60
    while not RunFolder(config.run_folder).stop_requested:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_that_fails_beside_a_search_is_what_is_told_of(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    """The search has no folder before it ends; the other run is asked to stop all the same."""
    began = threading.Barrier(2, timeout=60)

    def train(config: TrainConfig) -> None:
        began.wait()
        fail_or_wait(config)

    searches = {"slow": {"method": "best_of_n", "budget": 600, "prompts": 3}}
    changes = {"methods": {"failing": {}, "going": {}}, "searches": searches, "seeds": [0], "parallel": 3}
    comparison = load(write_contest(tmp_path, pipelines["epsilon"], **changes))
    with pytest.raises(ValueError, match="nothing of this kind"):
        go(comparison, train)


def test_a_run_that_is_asked_to_stop_as_it_begins_stops(
    pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other fails meanwhile: a folder that is taken up late forgets earlier requests, or is not there."""

    def begin_late(config: TrainConfig, folder: RunFolder) -> None:
        time.sleep(1.0 if folder.path.name == "going-0" else 0.0)
        begin(config, folder)

    begin = driver.begin
    monkeypatch.setattr(driver, "begin", begin_late)
    changes = {"methods": {"failing": {}, "going": {}}, "searches": {}, "seeds": [0], "parallel": 2}
    comparison = load(write_contest(tmp_path, pipelines["epsilon"], **changes))
    with pytest.raises(ValueError, match="nothing of this kind"):
        go(comparison, fail_or_wait)
    assert RunFolder(comparison.place("going", 0)).stop_requested


def test_a_search_stops_between_prompts_and_goes_on(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """A run that fails beside it does not wait for all of its prompts."""
    found = tmp_path / "compare" / "slow-0" / "00.png"

    def train(config: TrainConfig) -> None:
        while not found.exists():
            time.sleep(0.01)
        fail_or_wait(config)

    searches = {"slow": {"method": "best_of_n", "budget": 600, "prompts": 6}}
    changes = {"methods": {"failing": {}}, "searches": searches, "seeds": [0], "parallel": 2}
    path = write_contest(tmp_path, pipelines["epsilon"], **changes)
    with pytest.raises(ValueError, match="nothing of this kind"):
        go(load(path), train)
    assert not (found.parent / "05.png").exists()
    written = found.stat().st_mtime_ns
    go(load(path, "parallel=1"))
    assert found.stat().st_mtime_ns == written
    assert (found.parent / "05.png").exists()
    with pytest.raises(ConfigError, match=r"slow-0 holds a search with other settings \(budget\)"):
        check(load(path, "searches.slow.budget=606"))


@pytest.mark.parametrize(("first", "signals"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_ctrl_c_ends_a_comparison_and_twice_at_once(
    pipelines: dict[str, Path], tmp_path: Path, first: signal.Signals, signals: int
) -> None:
    searches = {"slow": {"method": "best_of_n", "budget": 60_000 if signals == 2 else 600, "prompts": 3}}
    changes = {"methods": {"one": {}}, "share": {"updates": 1}, "searches": searches, "seeds": [0]}
    path = write_contest(tmp_path, pipelines["epsilon"], **changes)
    command = [sys.executable, "-u", "-m", "tests.contestants", str(path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "one" in process.stdout.readline()
        process.send_signal(first)
        while "once more to interrupt at once" not in process.stderr.readline():
            assert process.poll() is None
        if signals == 2:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT


def test_without_held_out_pictures_there_is_nothing_to_compare(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    comparison = load(write_contest(tmp_path, pipelines["epsilon"], share={"prompts.held_out": None}))
    with pytest.raises(ConfigError, match=r"sharpening has no held-out pictures .*: set prompts\.held_out"):
        check(comparison)
    assert not comparison.folder.exists()
