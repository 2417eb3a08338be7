"""A run small enough for a test: its files and settings, real scorers in this process, ranks over gloo."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml
from numpy.typing import NDArray
from torch.multiprocessing.spawn import spawn

from reward_services import Score, ServerUnreachable
from reward_services.scorers import SCORERS
from tests.ports import free_port
from trainer import memory, work
from trainer.checkpoint import latest_checkpoint
from trainer.config import ModelConfig, TrainConfig, load_config
from trainer.costs import Costs, Devices
from trainer.metrics import read_metrics
from trainer.policy import Policy
from trainer.ranks import Ranks
from trainer.run import Run, start
from trainer.run_folder import RunFolder
from trainer.sharding import part

CPU = torch.device("cpu")
CAPTIONS = (
    "a red circle",
    "two blue squares",
    "a green triangle",
    "three yellow circles",
    "a red cross and a purple square",
    "a purple triangle",
)


class ScoringHere:
    """`Scoring` by scorers in this process.

    `jpeg` is a reward, `large` (incompressible) a judge that says yes to all of them, `verifier` refuses
    the 16 x 16 pictures of the tiny pipeline: a reward that really fails.
    """

    devices: Devices | None = None

    def __init__(self) -> None:
        self._scorers = {
            "jpeg": SCORERS["jpeg"](direction="compressible"),
            "large": SCORERS["jpeg"](direction="incompressible"),
            "verifier": SCORERS["verifier"](),
        }
        self.asked: list[Mapping[str, Sequence[Score]]] = []

    def submit(
        self, images: NDArray[np.uint8], prompts: Sequence[str], rewards: Sequence[str]
    ) -> Callable[[], Mapping[str, Sequence[Score]]]:
        def wait() -> Mapping[str, Sequence[Score]]:
            self.asked.append({name: self._scorers[name].score(list(images), prompts) for name in rewards})
            return self.asked[-1]

        return wait

    def revisions(self) -> Mapping[str, str]:
        return dict.fromkeys(self.asked[-1], "1") if self.asked else {}

    def stats(self) -> Mapping[str, float]:
        return {"reward_calls": float(sum(len(scores) for scores in self.asked))}


class StoppingAt(ScoringHere):
    """Asks the run to stop while the pictures of its n-th request are under way."""

    def __init__(self, folder: Path, request: int) -> None:
        super().__init__()
        self._folder, self._left = RunFolder(folder), request

    def submit(self, *arguments: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            self._folder.request_stop()
        return super().submit(*arguments)


class Losing(ScoringHere):
    """Loses its connection at the n-th request."""

    def __init__(self, request: int) -> None:
        super().__init__()
        self._left = request

    def submit(self, *arguments: Any) -> Any:
        self._left -= 1
        pending = super().submit(*arguments)

        def wait(left: int = self._left) -> Any:
            if left <= 0:
                raise ServerUnreachable("nobody listens there; start the rewards")
            return pending()

        return wait


def settings(folder: Path, pipeline: Path) -> dict[str, Any]:
    """Settings of a run of three updates in `folder`/run, its prompt files written."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": text, "category": "count" if "s" in text[-1] else "attribute"} for text in CAPTIONS]
    for name in ("train", "held-out"):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "seed": 3,
        "updates": 3,
        "run_folder": str(folder / "run"),
        "model": {"path": str(pipeline), "lora": None},
        "prompts": {"train": str(folder / "train.jsonl"), "held_out": str(folder / "held-out.jsonl")},
        "rewards": {"url": "http://127.0.0.1:9", "weights": {"jpeg": 1.0}, "judge": "large"},
        "sampling": {"steps": 3, "guidance": 1.5, "eta": 1.0},
        "branching": {"branches": 3, "prompts_per_update": 4, "prompts_per_micro_batch": 2},
        "loss": {"beta": 100.0, "margin": "none", "states_per_branch": 2},
        "optimizer": {"lr": 1e-3, "steps_per_update": 2, "ema_decay": 0.9},
        "checkpoint": {"every_updates": 10},
        "evaluation": {"draws": 8, "pictures_per_prompt": 2, "batch_size": 3},
        "ranks": {"cpus_per_worker": 0.5},
    }


def configured(folder: Path, pipeline: Path, *overrides: str) -> TrainConfig:
    """The settings with some changed, as `--set` changes them, and their run folder made."""
    path = folder / "settings.yaml"
    values = settings(folder, pipeline)
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    config = load_config(path, overrides)
    config.run_folder.mkdir(parents=True, exist_ok=True)
    return config


def memory_of(config: TrainConfig) -> memory.Memory:
    return memory.memory_of(config, memory.weightless(config))


def work_of(config: TrainConfig) -> work.Work:
    return work.work_of(config, memory.weightless(config))


def since(earlier: Costs, now: Costs) -> Costs:
    """What was spent in between; peaks are those since the run began."""
    spent = {
        name: value if name.endswith("_bytes") else value - getattr(earlier, name)
        for name, value in asdict(now).items()
    }
    return Costs(**spent)


def started(config: TrainConfig, ranks: Ranks | None = None, device: torch.device = CPU) -> Run:
    """One rank of the run, ready to go, on its number of threads, which moves the last digits."""
    torch.set_num_threads(config.ranks.torch_threads)
    return start(config, scoring=ScoringHere(), ranks=ranks or Ranks(), device=device)


def weights_of(config: TrainConfig) -> list[torch.Tensor]:
    """The trained weights in the newest checkpoint, then their averages."""
    newest = latest_checkpoint(config.run_folder)
    assert newest
    learner = newest.tensors["learner"]
    return [part(weight, torch.empty(0)) for weight in (*learner["parameters"], *learner["average"])]


def largest_difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Between corresponding weights."""
    return max(float((a - b).detach().abs().max()) for a, b in zip(one, other, strict=True))


def relative_difference(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor], begin: Path) -> float:
    """Norm of the difference of two trained UNets, relative to how far the first has moved.

    Adam divides by the gradient's size: single weights whose gradient is nearly nothing feel rounding most.
    """
    policy = Policy.load(ModelConfig(path=str(begin), lora=None), trainable=True)
    first = [parameter.detach() for parameter in policy.parameters]

    def distance(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
        return float(torch.cat([(x.detach() - y.detach()).flatten() for x, y in zip(a, b)]).norm())

    return distance(one, other) / distance(one[: len(first)], first)


def in_two_ranks(work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(ranks, *arguments)` in two processes that are connected by gloo."""
    spawn(_ranked, args=(free_port(), work, arguments), nprocs=2)


def stop_at(folder: RunFolder) -> None:
    """Ask a run to stop before it begins."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.request_stop()


def _ranked(rank: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    work(Ranks(rank, 2), *arguments)
    dist.destroy_process_group()


def picked(config: TrainConfig) -> list[dict[str, float]]:
    """What an update says of its selections and its loss."""
    names = ("update", "reward", "reward_best", "reward_worst", "loss", "grad_norm", "lr")
    return [
        {name: line[name] for name in names} for line in read_metrics(config.run_folder / "metrics.jsonl")
    ]
