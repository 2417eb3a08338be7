"""A comparison small enough for a test, its runs made in this process: `python -m tests.contestants FILE`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.small_run import CPU, ScoringHere, settings
from trainer import loop
from trainer.compare.contest import Job, compete
from trainer.config import TrainConfig
from trainer.config.comparison import CompareConfig, load_comparison
from trainer.ranks import Ranks


def write_contest(folder: Path, pipeline: Path, **changes: Any) -> Path:
    """Two methods, a search, two seeds, three updates each; returns the file."""
    values = settings(folder, pipeline)
    (folder / "settings.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    contest = {
        "config": str(folder / "settings.yaml"),
        "folder": str(folder / "compare"),
        "seeds": [0, 1],
        "share": {"checkpoint.every_updates": 1, "evaluation.along": 2},
        "methods": {"sharpening": {}, "grpo": {"method": "grpo", "optimizer.lr": 1e-4}},
        "searches": {"best_of_3": {"method": "best_of_n", "budget": 18, "prompts": 3}},
    }
    path = folder / "contest.yaml"
    path.write_text(yaml.safe_dump({**contest, **changes}, sort_keys=False), encoding="utf-8")
    return path


def train_here(config: TrainConfig) -> None:
    """One rank in this process, on as many threads as a rank has: their number moves the last digits."""
    torch.set_num_threads(config.ranks.torch_threads)
    loop.run(config, scoring=ScoringHere(), ranks=Ranks(), device=CPU)


def go(
    comparison: CompareConfig,
    train: Callable[[TrainConfig], None] = train_here,
    done: Callable[[Job], None] = print,
    warn: Callable[[Job, str], None] = print,
) -> None:
    """Everything that is left of a comparison."""
    compete(comparison, train, ScoringHere(), done=done, warn=warn)


if __name__ == "__main__":
    go(load_comparison(Path(sys.argv[1]), []))
