"""Updates of a Stable Diffusion XL of full size on a GPU: seconds, memory, how busy its matrix units are.

python -m tests.bench_sdxl [OPTIONS]     writes runs/bench/sdxl.json

Its weights are random (tests/full_size.py). One update is 4 prompts of 8 branches, 20 steps under guidance,
the best and the worst branch replayed at 3 states. Operations are those of denoiser and autoencoder, counted
by torch on one picture of each kind of evaluation, what gradient checkpointing computes again included; the
ceiling is a product of large bfloat16 matrices on the same card. Rewards score in a process beside it.
"""

import argparse
import contextlib
import gc
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.bench_trainer import timed
from tests.full_size import write_sdxl
from tests.rewards_beside import REWARDS, SHAPES, RewardsBeside
from tests.small_run import memory_of, since, work_of
from trainer.config import TrainConfig
from trainer.loop import advance
from trainer.metrics import MetricsLog
from trainer.ranks import Ranks
from trainer.run import Run, start
from trainer.work import models_asked

GIB = 2**30
SIDE, PRODUCTS = 8192, 20
"""Of the matrices, and how many products are timed."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One update."""

    seconds: float
    """Median."""
    sampling_s: float
    decoding_s: float
    stall_s: float
    """Waiting for rewards."""
    learning_s: float
    peak_gib: float
    """The most that torch held on the device."""
    planned_gib: float
    """What `sharpen plan` says of it."""
    teraflop: float
    utilisation: float
    """Operations a second, as a share of the ceiling."""


def configured(arguments: argparse.Namespace, folder: Path, *, lora: bool, size: int) -> TrainConfig:
    """An update of both kinds of training; what has gradients at a time fits beside the weights."""
    model = {
        "path": str(arguments.model),
        "lora": {"rank": 16} if lora else None,
        "dtype": "bfloat16",
        "image_size": size,
        "gradient_checkpointing": not lora or size > 512,
        "decoded_at_a_time": 1,
        "compile": arguments.compile,
    }
    return TrainConfig.model_validate(
        {
            "updates": 1000,
            "run_folder": folder,
            "model": model,
            "prompts": {"train": str(SHAPES / "prompts" / "train.jsonl")},
            "rewards": {"url": "http://127.0.0.1:9", "weights": dict.fromkeys(REWARDS, 0.5)},
            "sampling": {"steps": 20, "guidance": 5.0, "eta": 1.0},
            "branching": {
                "branches": 8,
                "start": 4,
                "prompts_per_update": arguments.prompts,
                "prompts_per_micro_batch": 2,
            },
            "loss": {"beta": 100.0, "states_per_branch": 3, "branches_per_micro_batch": 2},
            "optimizer": {"lr": 1e-5},
        }
    )


def measure(arguments: argparse.Namespace, *, lora: bool, size: int, ceiling: float | None) -> Measured:
    """Load, warm up, time."""
    device = torch.device(arguments.device)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(RewardsBeside()) as scoring:
        config = configured(arguments, Path(folder), lora=lora, size=size)
        run = start(config, scoring=scoring, ranks=Ranks(), device=device)
        print(f"loaded after {time.perf_counter() - began:.0f} s", flush=True)
        teraflop = operations(run) / 1e12
        first_s = updated(run)  # it chooses kernels
        print(f"first update {first_s:.1f} s, {teraflop:.0f} Tflop", flush=True)
        before = run.spent()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median([updated(run) for _ in range(arguments.updates)])
        spent = since(before, run.spent())
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        return Measured(
            seconds,
            sampling_s=spent.sampling_s / arguments.updates,
            decoding_s=spent.decoding_s / arguments.updates,
            stall_s=spent.reward_stall_s / arguments.updates,
            learning_s=spent.learning_s / arguments.updates,
            peak_gib=peak / GIB,
            planned_gib=memory_of(config).peak / GIB,
            teraflop=teraflop,
            utilisation=teraflop / seconds / ceiling if ceiling else float("nan"),
        )


def updated(run: Run) -> float:
    """Seconds of one update."""
    with MetricsLog(run.folder.path, resumed_update=run.update) as log:
        return timed(lambda: advance(run, log))


def operations(run: Run) -> int:
    """Floating-point operations of an update: a multiplication and an addition are two."""
    policy, work = run.policy, work_of(run.config)
    latents = torch.zeros(1, *policy.latent_shape, device=policy.device)
    times, text = torch.full((1,), 500, device=policy.device), policy.encode(["a red circle"])

    def forward() -> torch.Tensor:
        return policy.predict(latents, times, text, 1.0)

    def learned() -> None:
        forward().square().mean().backward()
        for parameter in policy.parameters:
            parameter.grad = None

    with torch.no_grad():
        alone = counted(forward)
        decoded = counted(lambda: policy.decode(latents))
    steps = run.config.optimizer.steps_per_update
    with_gradients = work.evaluations_learning * steps // models_asked(run.config)
    of_denoiser = alone * (work.evaluations_sampling + work.evaluations_learning - with_gradients)
    return of_denoiser + counted(learned) * with_gradients + decoded * work.images_scored


def counted(work: Callable[[], object]) -> int:
    """Of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def ceiling(device: torch.device) -> float:
    """Teraflop a second of products of square bfloat16 matrices, a median."""
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))
    taken = []
    for _ in range(PRODUCTS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        a @ b
        ended.record()
        torch.cuda.synchronize()
        taken.append(began.elapsed_time(ended) / 1000)
    return float(2 * SIDE**3 / statistics.median(taken) / 1e12)


def parsed(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("--model", type=Path, help="a folder of one; made and removed where there is none")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", type=int, nargs="+", default=(512, 1024))
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--updates", type=int, default=2, help="that are timed")
    parser.add_argument("--training", nargs="+", default=("adapters", "all weights"))
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args(given)


def measured_or_error(
    arguments: argparse.Namespace, training: str, size: int, ceiling: float | None
) -> dict[str, Any]:
    """What was measured, or that the device's memory was too small."""
    try:
        return asdict(measure(arguments, lora=training == "adapters", size=size, ceiling=ceiling))
    except torch.OutOfMemoryError as error:
        return {"error": str(error)}


def main(given: Sequence[str]) -> None:
    """Measure all and write it down, as it comes."""
    arguments = parsed(given)
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "ceiling_teraflops": ceiling(device) if on_gpu else None,
        "given": list(given),
    }
    print(f"{found['device']}: {found['ceiling_teraflops']} TFLOP/s", flush=True)
    with contextlib.ExitStack() as stack:
        if arguments.model is None:
            arguments.model = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "sdxl"
            write_sdxl(arguments.model, device)
            print("weights are drawn", flush=True)
        for training, size in itertools.product(arguments.training, arguments.sizes):
            name = f"{training}, {size} px"
            found[name] = measured_or_error(arguments, training, size, found["ceiling_teraflops"])
            print(f"{name}: {json.dumps(found[name])}", flush=True)
            gc.collect()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "sdxl.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
