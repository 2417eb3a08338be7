"""RAY. `ray job submit` as the README shows it: a head node, a tree sent to it, a run that stays."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import mean_pixel
from tests.ray_nodes import PATIENCE_S, RayNodes, shell
from tests.small_run import settings
from tests.tiny import write_pipeline
from trainer.cli import main


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RayNodes]:
    """One node, which asks for a token."""
    with RayNodes(tmp_path, shell(), head_cpus=2) as nodes:
        yield nodes


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working directory as one would send it: paths within it are relative."""
    write_pipeline(tmp_path / "tree" / "model", "epsilon")
    values = settings(tmp_path / "tree", Path("model"))
    light = {"scorer": "jpeg", "num_cpus": 0.1}
    rewards: dict[str, Any] = {"jpeg": light, "large": {**light, "options": {"direction": "incompressible"}}}
    rewards["mine"] = {**light, "scorer": "custom", "options": {"path": "mine.py"}}
    shutil.copy(mean_pixel.__file__, tmp_path / "tree" / "mine.py")
    (tmp_path / "tree" / "rewards.yaml").write_text(yaml.safe_dump({"rewards": rewards}), encoding="utf-8")
    values["prompts"] = {"train": "train.jsonl", "held_out": "held-out.jsonl"}
    values["rewards"] |= {"services": "rewards.yaml", "url": None, "ready_timeout_s": PATIENCE_S}
    values["model"] = {"path": "model", "lora": {"rank": 2, "alpha": 2}}
    (tmp_path / "tree" / "settings.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return tmp_path / "tree"


def test_a_submitted_run_stays_when_its_working_directory_is_gone(
    cluster: RayNodes, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    command = ("sharpen", "train", "settings.yaml", "--set", f"run_folder={folder}")
    job = cluster.submit(tree, *command)
    assert job.process.wait(PATIENCE_S) == 0, job.said
    assert f"Report: {folder / 'report.html'}" in job.said
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["updates"] == 3
    # The settings are as they were written, so that they hold wherever such a tree is.
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["model"]["path"] == "model"
    monkeypatch.chdir(tree)
    assert main(["sample", str(folder), "a red circle", "--out", "samples", "--pictures", "1"]) == 0
    again = cluster.submit(tree, *command)
    assert again.process.wait(PATIENCE_S) != 0
    assert "holds a finished run" in again.said
