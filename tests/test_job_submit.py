"""RAY. `ray job submit` as the README shows it: a head node, a tree sent to it, a run that stays."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import mean_pixel
from tests.ports import free_port
from tests.small_run import settings
from tests.tiny import write_pipeline
from trainer.cli import main

BIN = Path(sys.executable).parent
PATIENCE_S = 400


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    """What a shell with the activated environment has; the cluster asks for a token."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, **token, "PATH": f"{BIN}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def dashboard(
    tmp_path_factory: pytest.TempPathFactory, environment: Mapping[str, str]
) -> Iterator[tuple[str, Path]]:
    """The address that jobs are sent to, and what the head node said."""
    port = free_port()
    said = tmp_path_factory.mktemp("head") / "said.txt"
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", "2", "--disable-usage-stats"),
        *("--node-ip-address", "127.0.0.1", "--port", "0", "--dashboard-port", str(port)),
        # Another Ray on this machine may hold the agents' usual port, and no job starts without the agent.
        *("--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port())),
    ]
    with said.open("wb") as file:
        head = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    yield f"http://127.0.0.1:{port}", said
    head.terminate()
    head.wait(timeout=PATIENCE_S)


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


def submit(
    address: str, tree: Path, environment: Mapping[str, str], *command: str
) -> subprocess.CompletedProcess[str]:
    """Send a job as soon as the head has the agent that starts it."""
    line = [
        str(BIN / "ray"),
        "job",
        "submit",
        "--address",
        address,
        "--working-dir",
        str(tree),
        "--",
        *command,
    ]
    ends = time.monotonic() + PATIENCE_S
    while True:
        done = subprocess.run(
            line, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        early = "No available agent" in done.stderr or "Failed to connect" in done.stderr
        if not early or time.monotonic() > ends:
            return done
        time.sleep(1.0)


def test_a_submitted_run_stays_when_its_working_directory_is_gone(
    dashboard: tuple[str, Path],
    tree: Path,
    environment: Mapping[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, said = dashboard
    folder = tmp_path / "run"
    command = ("sharpen", "train", "settings.yaml", "--set", f"run_folder={folder}")
    done = submit(address, tree, environment, *command)
    assert done.returncode == 0, done.stdout + done.stderr + said.read_text(encoding="utf-8")
    assert f"Report: {folder / 'report.html'}" in done.stdout
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["updates"] == 3
    # The settings are as they were written, so that they hold wherever such a tree is.
    assert yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["model"]["path"] == "model"
    monkeypatch.chdir(tree)
    assert main(["sample", str(folder), "a red circle", "--out", "samples", "--pictures", "1"]) == 0
    again = submit(address, tree, environment, *command)
    assert "holds a finished run" in again.stdout
    assert again.returncode != 0
