"""Checkpoints come back bit for bit, survive a crash at any moment, and are refused when damaged."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from tests.small_run import in_two_ranks
from trainer.checkpoint import (
    Checkpoint,
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trainer.costs import forget_peak, recent_peak_bytes
from trainer.ranks import Ranks
from trainer.sharding import Rows, part


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
    newest = latest_checkpoint(tmp_path)
    assert newest
    assert newest.update == 100


def test_what_others_leave_there_stays(tmp_path: Path) -> None:
    """Finder's and NFS's hidden files; a save cut off is removed."""
    parent = tmp_path / "checkpoints"
    (parent / ".partial-000004").mkdir(parents=True)
    (parent / ".DS_Store").touch()
    save_checkpoint(tmp_path, checkpoint(5), keep=1)
    assert {path.name for path in parent.iterdir()} == {".DS_Store", "update-000005"}


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
    save_checkpoint(tmp_path, checkpoint(5), keep=2)
    damaged = save_checkpoint(tmp_path, checkpoint(10), keep=2)
    file, content = damaged / name, (damaged / name).read_bytes()
    file.write_bytes(content[:-5] if damage == "truncated" else b"{" + content[1:-1] + b"~")
    if damage == "missing":
        file.unlink()
    with pytest.raises(CheckpointError, match=r"update-000010 is (incomplete|damaged)"):
        load_checkpoint(damaged)
    with caplog.at_level(logging.WARNING):
        newest = latest_checkpoint(tmp_path)
    assert newest
    assert newest.update == 5
    assert "update-000010" in caplog.text


def test_a_damaged_checkpoint_takes_no_whole_ones_place(tmp_path: Path) -> None:
    """The run went on from before it: what is saved then is the newest, and stays."""
    damaged = save_checkpoint(tmp_path, checkpoint(10), keep=1)
    (damaged / "model.pt").unlink()
    save_checkpoint(tmp_path, checkpoint(5), keep=1)
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.update == 5
    assert updates(tmp_path) == ["update-000005"]


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
    loaded = latest_checkpoint(tmp_path)
    assert loaded
    assert loaded.update >= int(said[-1])
    assert torch.equal(loaded.tensors["model"]["weight"], torch.full((500, 1000), float(loaded.update)))
    save_checkpoint(tmp_path, checkpoint(loaded.update + 1), keep=1)
    assert updates(tmp_path) == [f"update-{loaded.update + 1:06d}"]


def test_nothing_is_unpickled_that_could_run(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, Checkpoint(1, {"model": {"path": Path("x")}}, {}), keep=1)
    with pytest.raises(Exception, match="Weights only load failed"):
        load_checkpoint(folder)
    assert json.loads((folder / "state.json").read_text())["update"] == 1


SHAPES = ((5, 3), (1, 4), (8, 2))
"""Of tensors that two ranks share: unevenly, the second none of it, evenly."""


def in_step(ranks: Ranks, folder: Path) -> None:
    """All that two ranks do while neither is killed: one start of processes for the tests that look at it."""
    mesh = init_device_mesh("cpu", (2,))
    share(ranks, folder / "shared", mesh)
    save_checkpoint(folder / "alike", checkpoint(3), keep=1, ranks=ranks)
    large = DTensor.from_local(torch.ones(8, 2**20), mesh, [Shard(0)])
    ranks.gather(None)
    forget_peak()
    before = recent_peak_bytes()
    saved = Checkpoint(1, {"network": {"weight": large}}, {})
    save_checkpoint(folder / "large", saved, keep=1, ranks=ranks)
    more = recent_peak_bytes() - before
    (folder / f"more-{ranks.rank}").write_text(str(more), encoding="utf-8")


def share(ranks: Ranks, folder: Path, mesh: DeviceMesh) -> None:
    """Save what is shared, read it back, and find on both ranks that the second one's file is damaged."""
    wholes = [torch.arange(float(rows * columns)).reshape(rows, columns) for rows, columns in SHAPES]
    tensors = [distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in wholes]
    for update in (5, 10):
        network = {"weights": tensors, "steps": update, "scale": torch.ones(2)}
        save_checkpoint(folder, Checkpoint(update, {"network": network}, {}), keep=2, ranks=ranks)
    loaded = latest_checkpoint(folder, ranks)
    assert loaded
    assert (loaded.update, loaded.tensors["network"]["steps"]) == (10, 10)
    for saved, tensor in zip(loaded.tensors["network"]["weights"], tensors, strict=True):
        found = part(saved, tensor)
        assert isinstance(found, DTensor)
        assert torch.equal(found.to_local(), tensor.to_local())
        assert torch.equal(found.full_tensor(), tensor.full_tensor())
    ranks.gather(None)
    if ranks.is_main:
        with (folder / "checkpoints" / "update-000010" / "network.1.pt").open("r+b") as file:
            file.write(b"damage")
    ranks.gather(None)
    earlier = latest_checkpoint(folder, ranks)
    assert earlier
    assert earlier.update == 5


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two ranks left."""
    folder = tmp_path_factory.mktemp("ranks")
    in_two_ranks(in_step, folder)
    return folder


def test_what_ranks_share_comes_back_to_one(left: Path) -> None:
    """And to them: `share` looks."""
    loaded = latest_checkpoint(left / "shared")
    assert loaded
    assert loaded.update == 5
    assert torch.equal(loaded.tensors["network"]["scale"], torch.ones(2))
    for saved, shape in zip(loaded.tensors["network"]["weights"], SHAPES, strict=True):
        assert isinstance(saved, Rows)
        expected = torch.arange(float(shape[0] * shape[1])).reshape(shape)
        assert torch.equal(part(saved, torch.zeros(shape)), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a peak")
@pytest.mark.parametrize(("rank", "name"), [(0, "network.pt"), (1, "network.1.pt")])
def test_a_rank_has_its_part_alone_in_memory_and_in_its_file(left: Path, rank: int, name: str) -> None:
    """Of 64 MiB, which are in memory once before they are saved."""
    size = (left / "large" / "checkpoints" / "update-000001" / name).stat().st_size
    assert size == pytest.approx(32 * 2**20, rel=0.01)
    assert int((left / f"more-{rank}").read_text()) < 8 * 2**20


def test_what_ranks_do_not_share_is_written_once(left: Path) -> None:
    names = {path.name for path in (left / "alike" / "checkpoints" / "update-000003").iterdir()}
    assert names == {"model.pt", "state.json", "manifest.json"}


def saving_until_killed(ranks: Ranks, folder: Path) -> None:
    """Save on and on; rank 1 is killed at some moment after the third time."""
    mesh = init_device_mesh("cpu", (2,))
    for update in range(1000000):
        if update == 3 and ranks.rank == 1:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
        weight = DTensor.from_local(torch.full((250, 1000), float(update)), mesh, [Shard(0)])
        save_checkpoint(folder, Checkpoint(update, {"model": {"weight": weight}}, {}), keep=2, ranks=ranks)


def test_a_rank_killed_while_all_save_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    with pytest.raises((ProcessExitedException, ProcessRaisedException)):
        in_two_ranks(saving_until_killed, tmp_path)
    loaded = latest_checkpoint(tmp_path)
    assert loaded
    assert loaded.update >= 2
    weight = part(loaded.tensors["model"]["weight"], torch.empty(0))
    assert torch.equal(weight, torch.full((500, 1000), float(loaded.update)))
    save_checkpoint(tmp_path, checkpoint(loaded.update + 1), keep=1)
    assert updates(tmp_path) == [f"update-{loaded.update + 1:06d}"]
