"""Checkpoints come back bit for bit, survive a crash at any moment, and are refused when damaged."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.checkpoint import (
    Checkpoint,
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)


def checkpoint(update: int) -> Checkpoint:
    model = {"weight": torch.full((2, 3), float(update)), "half": torch.ones(2, dtype=torch.bfloat16)}
    return Checkpoint(update, {"model": model}, {"prompts": {"position": 8 * update}})


def updates(run_folder: Path) -> list[str]:
    return sorted(path.name for path in (run_folder / "checkpoints").iterdir())


def test_everything_comes_back(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    tensors = {"model": layer.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    folder = save_checkpoint(tmp_path, Checkpoint(7, tensors, {"position": 3, "names": ["a"]}), keep=1)

    loaded = load_checkpoint(folder)

    assert (loaded.update, loaded.state) == (7, {"position": 3, "names": ["a"]})
    assert torch.equal(loaded.tensors["rng"], torch.get_rng_state())
    assert torch.equal(loaded.tensors["model"]["weight"], layer.weight)
    other = torch.optim.AdamW(torch.nn.Linear(3, 2).parameters(), lr=0.1)
    other.load_state_dict(loaded.tensors["optimizer"])
    moments = [value["exp_avg_sq"] for value in other.state.values()]
    expected = [value["exp_avg_sq"] for value in optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, expected, strict=True))


def test_the_newest_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for update in (5, 10, 100):
        save_checkpoint(tmp_path, checkpoint(update), keep=2)
    assert updates(tmp_path) == ["update-000010", "update-000100"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "update-000100"


def test_an_update_reached_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(5), keep=2)
    folder = save_checkpoint(tmp_path, Checkpoint(5, {}, {"second": True}), keep=2)
    assert load_checkpoint(folder).state == {"second": True}
    assert updates(tmp_path) == ["update-000005"]


@pytest.mark.parametrize("name", ["model.pt", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    before = save_checkpoint(tmp_path, checkpoint(5), keep=2)
    damaged = save_checkpoint(tmp_path, checkpoint(10), keep=2)
    file, content = damaged / name, (damaged / name).read_bytes()
    file.write_bytes(content[:-5] if damage == "truncated" else b"{" + content[1:-1] + b"~")
    if damage == "missing":
        file.unlink()
    with pytest.raises(CheckpointError, match=r"update-000010 is (incomplete|damaged)"):
        load_checkpoint(damaged)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == before
    assert "update-000010" in caplog.text


def test_a_kill_while_saving_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from trainer.checkpoint import Checkpoint, save_checkpoint\n"
        "for update in range(1000000):\n"
        "    tensors = {'model': {'weight': torch.full((500, 1000), float(update))}}\n"
        "    save_checkpoint(Path(sys.argv[1]), Checkpoint(update, tensors, {}), keep=2)\n"
        "    print(update, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    with process:
        assert process.stdout
        said = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGKILL)
    folder = latest_checkpoint(tmp_path)
    assert folder
    loaded = load_checkpoint(folder)
    assert loaded.update >= int(said[-1])
    assert torch.equal(loaded.tensors["model"]["weight"], torch.full((500, 1000), float(loaded.update)))
    save_checkpoint(tmp_path, checkpoint(loaded.update + 1), keep=1)
    assert updates(tmp_path) == [f"update-{loaded.update + 1:06d}"]


def test_nothing_is_unpickled_that_could_run(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, Checkpoint(1, {"model": {"path": Path("x")}}, {}), keep=1)
    with pytest.raises(Exception, match="Weights only load failed"):
        load_checkpoint(folder)
    assert json.loads((folder / "state.json").read_text())["update"] == 1
