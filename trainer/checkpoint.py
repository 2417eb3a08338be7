"""Checkpoints: folders of tensors and state, written whole or not at all, checked before they are used.

update-NNNNNN/
  NAME.pt           tensors of rank 0: its rows of those that ranks share, and all others
  NAME.1.pt ...     rows of the other ranks, in the order of ranks; only where ranks share tensors
  state.json        what is no tensor
  manifest.json     the digest of every other file; written last

Each rank writes and reads only its own part. All of them call the functions here, on storage that all see.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.ranks import Ranks
from trainer.sharding import is_sharded, joined, own

log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_STATE = "state.json"
_ALONE = Ranks()


class CheckpointError(RuntimeError):
    """A checkpoint that is incomplete or damaged; the message names it and says what to do."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a run needs to go on as if it had never stopped."""

    update: int
    """Updates made."""
    tensors: Mapping[str, Any]
    """By name: tensors in nested dicts and lists, such as a module's or an optimizer's state_dict.

    What is a DTensor when it is saved is `Rows` when it is loaded.
    """
    state: Mapping[str, Any]
    """What JSON can hold: the prompt stream's position, counters, times."""


def save_checkpoint(run_folder: Path, checkpoint: Checkpoint, *, keep: int, ranks: Ranks = _ALONE) -> Path:
    """Write `checkpoints/update-NNNNNN` and delete all but the newest `keep`; on rank 0 it is there then.

    A crash of any rank at any moment leaves the earlier checkpoints as they were: the new one is written
    beside its place, flushed to disk, then renamed.
    """
    parent = run_folder / "checkpoints"
    partial = parent / f".partial-{checkpoint.update:06d}"
    target = parent / f"update-{checkpoint.update:06d}"
    if ranks.is_main:
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in (*parent.glob(".partial-*"), *parent.glob(".replaced-*")):
            shutil.rmtree(leftover)
        partial.mkdir()
    ranks.gather(None)  # none writes before the folder is there
    digests = ranks.gather(_write_tensors(partial, checkpoint.tensors, ranks.rank))
    if not ranks.is_main:
        return target
    state = partial / _STATE
    _write_json(state, {"update": checkpoint.update, "state": checkpoint.state})
    manifest = {name: digest for of_rank in digests for name, digest in of_rank.items()}
    _write_json(partial / _MANIFEST, {**manifest, _STATE: _digest(state)})
    for path in (state, partial / _MANIFEST, partial):
        _flush(path)
    if target.exists():
        # A folder cannot be renamed onto another; a dot name is not taken for a checkpoint.
        target.rename(parent / f".replaced-{checkpoint.update:06d}")
    partial.rename(target)
    _flush(parent)
    folders = _folders(run_folder)
    # What is called newer was passed over as damaged: if it counted, it would take this one's place.
    damaged = sum(folder.name > target.name for folder in folders)
    for old in (*folders[:damaged], *folders[damaged + keep :], *parent.glob(".replaced-*")):
        shutil.rmtree(old)
    return target


def latest_checkpoint(run_folder: Path, ranks: Ranks = _ALONE) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are passed over with a warning that names them."""
    # Whether another rank's system shows what was renamed just now is not certain: rank 0 says.
    for folder in ranks.gather(_folders(run_folder))[0]:
        try:
            return load_checkpoint(folder, ranks)
        except CheckpointError as error:
            log.warning("%s", error)
    return None


def load_checkpoint(folder: Path, ranks: Ranks = _ALONE) -> Checkpoint:
    """Open a checkpoint that any number of ranks wrote; a tensor is read, to the CPU, when it is used.

    Raises:
        CheckpointError: on all ranks, when a byte differs. Each looks at its share of the files.
    """
    files: dict[str, dict[int, Path]] = {}
    for name in _checked(folder, ranks):
        if name.endswith(".pt"):
            stem, _, rank = name.removesuffix(".pt").partition(".")
            files.setdefault(stem, {})[int(rank or 0)] = folder / name
    tensors = {
        name: joined(
            [
                torch.load(of_rank[rank], map_location="cpu", weights_only=True, mmap=True)
                for rank in sorted(of_rank)
            ]
        )
        for name, of_rank in files.items()
    }
    saved = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    return Checkpoint(saved["update"], tensors, saved["state"])


def _write_tensors(folder: Path, tensors: Mapping[str, Any], rank: int) -> dict[str, str]:
    """Write one rank's part of the tensors; returns the digests of its files, which are on disk then."""
    digests = {}
    for name, state in tensors.items():
        if rank == 0 or is_sharded(state):
            path = folder / (f"{name}.{rank}.pt" if rank else f"{name}.pt")
            torch.save(own(state, is_main=rank == 0), path)
            _flush(path)
            digests[path.name] = _digest(path)
    return digests


def _checked(folder: Path, ranks: Ranks) -> list[str]:
    """The names of a checkpoint's files. Raises CheckpointError on all ranks when one finds a difference."""
    names: list[str] = []
    reason = None
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        names = list(manifest)
        share = names[ranks.rank :: ranks.world_size]
        if differing := [name for name in share if _digest(folder / name) != manifest[name]]:
            reason = f"{folder} is damaged ({', '.join(differing)}); delete it and resume again"
    except (OSError, ValueError) as error:
        reason = f"{folder} is incomplete ({error}); delete it and resume again"
    if reason := ranks.any(reason):
        raise CheckpointError(reason)
    return names


def _folders(run_folder: Path) -> list[Path]:
    """Newest first."""
    return sorted((run_folder / "checkpoints").glob("update-*"), reverse=True)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until the file, or the folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
