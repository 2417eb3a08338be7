"""The run folder: what is asked of a run, what it leaves, whole or not at all, as the report reads it."""

import json
import logging
import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.small_run import configured, started
from trainer.held_out import Evaluated
from trainer.loop import sample
from trainer.run import Run
from trainer.run_folder import GRID_PICTURES, RunFolder


@pytest.fixture
def run(pipelines: dict[str, Path], tmp_path: Path) -> Run:
    return started(configured(tmp_path, pipelines["epsilon"]))


def read(path: Path) -> list[dict[str, object]]:
    content: list[dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_requests_and_failures_are_forgotten_together(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert (folder.stop_requested, folder.failure, folder.is_finished) == (False, None, False)
    folder.request_stop()
    folder.give_up("no more pictures")
    assert (RunFolder(tmp_path).stop_requested, RunFolder(tmp_path).failure) == (True, "no more pictures")
    folder.reopen()
    folder.reopen()
    assert list(tmp_path.iterdir()) == []
    folder.write_summary({"seed": 1})
    assert folder.is_finished
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_run_that_made_no_update_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "checkpoints" / "update-000000").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").touch()
    assert folder.pin({"clip": "1"}) == {"clip": "1"}
    folder.reopen()
    assert folder.pin({"clip": "2"}) == {"clip": "2"}
    assert not (tmp_path / "checkpoints").exists()
    (tmp_path / "metrics.jsonl").write_text('{"update": 1}\n', encoding="utf-8")
    (tmp_path / "checkpoints" / "update-000001").mkdir(parents=True)
    folder.reopen()
    assert folder.pin({"clip": "3"}) == {"clip": "2"}
    assert (tmp_path / "checkpoints" / "update-000001").exists()


def test_a_run_is_pinned_to_what_it_began_with(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).pin({"clip": "1"}) == {"clip": "1"}
    assert RunFolder(tmp_path).pin({"clip": "2"}) == {"clip": "1"}


def test_an_evaluation_comes_back(run: Run) -> None:
    assert run.held_out is not None
    evaluated = run.held_out.evaluate(run.policy, 0)
    run.folder.save_evaluation("before", evaluated)
    assert run.folder.load_evaluation("before") == evaluated.result


def test_evaluations_come_in_the_order_of_updates(run: Run) -> None:
    assert run.folder.evaluations() == []
    assert run.held_out is not None
    for name, update in (("after", 12), ("before", 0), ("update-000004", 4), ("along-01", 6)):
        run.folder.save_evaluation(name, run.held_out.evaluate(run.policy, update))
    assert [result.update for result in run.folder.evaluations()] == [0, 4, 6, 12]


def test_a_run_that_was_ended_before_an_evaluation_is_without_it(run: Run) -> None:
    """A crash had undone the updates since the checkpoint, where the run was ended then."""
    assert run.held_out is not None
    for name, update in (("before", 0), ("update-000015", 15), ("after", 10)):
        run.folder.save_evaluation(name, run.held_out.evaluate(run.policy, update))
    assert [result.update for result in run.folder.evaluations()] == [0, 10, 15], "it may go on"
    run.folder.write_summary({})
    assert [result.update for result in run.folder.evaluations()] == [0, 10]


def test_the_grid_pairs_pictures_of_different_prompts(run: Run) -> None:
    assert run.held_out is not None
    before = run.held_out.evaluate(run.policy, 0)
    after = Evaluated(before.result, 255 - before.pictures)
    for name, evaluated in (("before", before), ("after", after)):
        run.folder.save_evaluation(name, evaluated)
    run.folder.save_grid(before.result, after.result)
    report = run.folder.path / "report"
    rows = read(report / "pictures.json")
    assert [row["prompt"] for row in rows] == list(dict.fromkeys(before.result.prompts))[:GRID_PICTURES]
    for index, row in zip((0, 2, 4, 6), rows, strict=True):
        for name, evaluated in (("before", before), ("after", after)):
            with Image.open(report / str(row[name])) as picture:
                assert picture.tobytes() == evaluated.pictures[index].tobytes()


def test_trees_show_branches_and_are_written_once(run: Run) -> None:
    lesson, scores = sample(run)[0]
    scores = {"jpeg": scores["jpeg"].clone()}
    scores["jpeg"][0, 0, 0] = math.nan
    lesson.selection.returns_PK[0, 0] = math.nan
    for update in (1, 3, 3):  # made again after a crash
        run.folder.save_trees(update, lesson, scores)
    trees = read(run.folder.path / "report" / "branches.json")
    assert [(tree["update"], tree["prompt"]) for tree in trees] == [
        (update, prompt.text) for update in (1, 3) for prompt in lesson.branches.prompts
    ]
    branches = trees[0]["branches"]
    assert isinstance(branches, list)
    assert [branch["return"] is None for branch in branches] == [True, False, False]
    assert branches[0]["previews"][0]["scores"] == {}
    assert branches[1]["previews"][0]["scores"] == {"jpeg": pytest.approx(float(scores["jpeg"][0, 1, 0]))}
    assert sum(branch["weight"] for branch in branches) == 1
    for branch in branches:
        assert (run.folder.path / "report" / branch["previews"][0]["image"]).exists()


def test_a_model_is_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail_half_way(folder: Path) -> None:
        folder.mkdir()
        torch.save(torch.zeros(1), folder / "half")
        raise OSError("the disk is full")

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").touch()

    folder = RunFolder(tmp_path)
    with pytest.raises(OSError, match="disk"):
        folder.save_model("pipeline", fail_half_way)
    assert not (tmp_path / "pipeline").exists()
    for _ in range(2):
        folder.save_model("pipeline", write)
    assert [path.name for path in tmp_path.rglob("*")] == ["pipeline", "weights"]


def test_warnings_are_kept_with_rank_and_time(tmp_path: Path) -> None:
    """Those of the package, while somebody keeps them; without one there is no file."""
    folder = RunFolder(tmp_path)
    with folder.keeping_warnings(3):
        logging.getLogger("trainer.trackers").info("all is well")
        logging.getLogger("somebody.else").warning("not ours")
        assert not (tmp_path / "warnings.log").exists()
        logging.getLogger("trainer.trackers").warning("wandb is told no more: %s", "it\nis gone")
    logging.getLogger("trainer.trackers").warning("nobody keeps this")
    assert folder.warnings == ["wandb is told no more: it is gone"]
    line = (tmp_path / "warnings.log").read_text(encoding="utf-8")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d .* rank 3: wandb is told no more: it is gone\n", line)
