"""Updates of this trainer against the layout of the paper's published code: same model, rewards and run.

make bench-trainer     (python -m tests.bench_trainer [OPTIONS]; writes runs/bench/trainer.json and .html)

Both have n = 3 branches, paths of m = 3 scored and learned steps out of 25, no guidance. Ours part from a
trunk half way, where the published code's random step is on average, and end after the m steps, or with
`--end 25` grow on to finished pictures. Rewards run in a process of their own and take a given time longer
for each batch. Speed: the two in turn, every latency in every round, medians over rounds of the ratio within
a round. Memory: what an update of each holds at most above the loaded model, as torch's allocators count; the
published code knows one prompt at a time. Ours is set to need little: few states have gradients at a time,
those of a pair beyond them are evaluated twice, and pictures are decoded some at a time, previews by the tiny
autoencoder that the embedded model has for them, or with `--preview-decoder ''` by the model's own.
It needs no Ray.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.authors_layout import AuthorsLayout
from tests.rewards_beside import REWARDS, RewardsBeside
from tests.small_run import since
from trainer.charts import Series, line_chart
from trainer.config import TrainConfig
from trainer.data.prompts import read_prompts
from trainer.loop import advance
from trainer.metrics import MetricsLog
from trainer.ranks import Ranks
from trainer.run import start

SHAPES = Path(__file__).parent.parent / "deploy" / "shapes"
STEPS, START, PATH, BRANCHES = 25, 12, 3, 3
METHODS = ("sft_sharpening", "rlhf_sharpening")
LATENCIES_MS = (0, 50, 200, 1000)
MEASURED = ("ours", "theirs", "stall", "decoding")
AUTHORS_PROMPTS = 4
"""Prompts whose gradients make a step there, as its README has it."""
STYLE = "svg{max-width:40em} text{font:12px sans-serif} .grid{stroke:#ddd} polyline{fill:none!important}"
STYLE += (
    " .line-1{stroke:#2a6fbb;fill:#2a6fbb;stroke-width:2} .line-2{stroke:#c0504d;fill:#c0504d;stroke-width:2}"
)


def configured(arguments: argparse.Namespace, method: str, folder: Path) -> TrainConfig:
    """The settings of both; the published layout takes of ours what it has."""
    return TrainConfig.model_validate(
        {
            "method": method,
            "updates": 10_000,
            "run_folder": folder,
            "model": {
                "path": str(arguments.model),
                "lora": {"rank": 8} if arguments.lora else None,
                "dtype": arguments.dtype,
                "image_size": arguments.image_size,
                "states_with_gradients": arguments.states_with_gradients,
                "decoded_at_a_time": arguments.decoded_at_a_time,
                "preview_decoder": arguments.preview_decoder or None,
            },
            "prompts": {"train": str(SHAPES / "prompts" / "train.jsonl")},
            "rewards": {"url": "http://127.0.0.1:9", "weights": dict.fromkeys(REWARDS, 0.5)},
            "sampling": {"steps": STEPS, "guidance": 1.0, "eta": 1.0},
            "branching": {
                "branches": BRANCHES,
                "start": START,
                "end": arguments.end,
                "previews": list(range(-PATH, 0)),
                "prompts_per_update": arguments.prompts,
                "prompts_per_micro_batch": arguments.micro_batch,
            },
            "loss": {
                "beta": 100.0,
                "margin": "none",
                "states_per_branch": PATH,
                "branches_per_micro_batch": arguments.branches_per_micro_batch,
            },
            "optimizer": {"lr": 1e-5},
        }
    )


class Contest:
    """Updates of ours and of theirs, each around a model of its own."""

    def __init__(self, config: TrainConfig, scoring: RewardsBeside, device: torch.device) -> None:
        # The published code keeps the activations of all states, whatever ours is set to.
        keeping = config.model.model_copy(update={"states_with_gradients": None})
        self._run, other = (
            start(each, scoring=scoring, ranks=Ranks(), device=device)
            for each in (config, config.model_copy(update={"model": keeping}))
        )
        self._authors = AuthorsLayout(other.policy, config, scoring)
        self._prompts = read_prompts(str(config.prompts.train))
        self.shares = {"stall": 0.0, "decoding": 0.0}
        """Of the newest update of ours: waiting for rewards, and decoding previews for them."""

    def ours(self) -> float:
        """Prompts a second of an update of the trainer."""
        before = self._run.spent()
        with MetricsLog(self._run.folder.path, resumed_update=self._run.update) as log:
            seconds = timed(lambda: advance(self._run, log))
        spent = since(before, self._run.spent())
        self.shares = {"stall": spent.stall_fraction, "decoding": spent.decoding_s / seconds}
        return self._run.config.branching.prompts_per_update / seconds

    def theirs(self) -> float:
        """Prompts a second of an update in the layout of the published code."""
        prompts = [self._prompts.pop() for _ in range(AUTHORS_PROMPTS)]
        return len(prompts) / timed(lambda: self._authors.update(prompts))

    def bare(self) -> float:
        """Prompts a second if ours evaluated its network, forwards and backwards, and did nothing else."""
        branching = self._run.config.branching
        seconds = timed(lambda: self._evaluate(branching.prompts_per_micro_batch))
        return branching.prompts_per_micro_batch / seconds

    def _evaluate(self, prompts: int) -> None:
        """The evaluations that one micro-batch needs, those that bounded activations repeat among them."""
        config, branches = self._run.config, self._run.config.branching.branches
        with torch.no_grad():
            for step in range(config.path_steps):
                states = prompts if step < config.branching.shared_steps else prompts * branches
                self._predict(states, self._run.policy.predict)
        pairs = config.method == "rlhf_sharpening"
        most, left = config.branches_at_a_time, prompts * (2 if pairs else 1)
        while left > 0:
            states = min(most, left) * config.loss.states_per_branch
            left -= most
            self._predict(states, self._run.policy.replayed).square().mean().backward()
            if pairs:
                with torch.no_grad(), self._run.policy.reference():
                    self._predict(states, self._run.policy.replayed)
        for parameter in self._run.policy.parameters:
            parameter.grad = None

    def _predict(self, count: int, evaluate: Callable[..., torch.Tensor]) -> torch.Tensor:
        policy = self._run.policy
        samples = torch.zeros(count, *policy.latent_shape, device=policy.device)
        times = torch.full((count,), 500, device=policy.device)
        text = policy.encode(["a red circle"]).take(torch.zeros(count, dtype=torch.long))
        return evaluate(samples, times, text, 1.0)


def timed(work: Callable[[], object]) -> float:
    """Seconds that the work takes, on the device too."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


@contextlib.contextmanager
def contest(arguments: argparse.Namespace, method: str) -> Iterator[tuple[Contest, RewardsBeside]]:
    """Two loaded models and the rewards beside them."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(RewardsBeside()) as scoring:
        config = configured(arguments, method, Path(folder))
        yield Contest(config, scoring, torch.device(arguments.device)), scoring


def measured(arguments: argparse.Namespace, method: str) -> dict[str, Any]:
    """For each latency medians over rounds of both rates and of their ratio; then bytes above the model."""
    rounds: dict[int, list[dict[str, float]]] = {latency: [] for latency in arguments.latencies}
    with contest(arguments, method) as (both, scoring):
        both.ours(), both.theirs()  # the first is slower, and the optimizer's moments stay
        for latency in list(arguments.latencies) * arguments.rounds:
            scoring.latency_ms = latency
            ours = both.ours()
            rounds[latency].append(both.shares | {"ours": ours, "bare": both.bare(), "theirs": both.theirs()})
        scoring.latency_ms = 0
        held = {"ours": peak_bytes(both.ours), "theirs": peak_bytes(both.theirs)}
    memory = {**held, "ratio": held["ours"] / held["theirs"]}
    return {"speed": of_latencies(rounds), "memory": memory}


def of_latencies(rounds: Mapping[int, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Medians over the rounds of each latency."""
    return [
        {
            "latency_ms": latency,
            **{name: statistics.median(one[name] for one in found) for name in MEASURED},
            "ratio": statistics.median(one["ours"] / one["theirs"] for one in found),
            "over_bare": statistics.median(one["bare"] / one["ours"] for one in found),
        }
        for latency, found in rounds.items()
    ]


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that the work holds in tensors above what was there, on the GPU where there is one."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated() - before)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        work()
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    held: list[int] = list(itertools.accumulate(event.nbytes() for event in events))
    return max(held)


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """The figures, and a page that plots them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    charts = [
        line_chart(
            [
                Series(side, [(row["latency_ms"], row[key]) for row in of_method["speed"]], colour)
                for side, key, colour in (("this trainer", "ours", 1), ("published layout", "theirs", 2))
            ],
            name=f"{method}: prompts a second by latency",
            x_label="ms that a batch of rewards takes longer",
        )
        for method, of_method in found["methods"].items()
    ]
    page = "".join(f"<h2>{method}, prompts/s</h2>{chart}" for method, chart in zip(found["methods"], charts))
    text = f"<!doctype html><meta charset=utf-8><title>Trainer</title><style>{STYLE}</style>{page}"
    (folder / "trainer.html").write_text(text, encoding="utf-8")


def parsed(given: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("--model", type=Path, default=SHAPES / "base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--lora", action=argparse.BooleanOptionalAction, default=True, help="or all weights")
    parser.add_argument("--end", type=int, default=START + PATH, help="step after which our branches end")
    parser.add_argument("--prompts", type=int, default=15, help="of an update")
    parser.add_argument("--micro-batch", type=int, default=5, help="prompts sampled at a time")
    parser.add_argument("--branches-per-micro-batch", type=int, default=1, help="replayed together")
    parser.add_argument("--states-with-gradients", type=int, default=4, help="more are evaluated twice")
    parser.add_argument("--decoded-at-a-time", type=int, default=5, help="pictures of ours")
    parser.add_argument("--preview-decoder", default=str(SHAPES / "preview-decoder"), help="'' is none")
    parser.add_argument("--latencies", type=int, nargs="+", default=LATENCIES_MS, help="in milliseconds")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(given)


def main(given: Sequence[str]) -> None:
    """Measure all and write it down."""
    arguments = parsed(given)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, one thread"
    found: dict[str, Any] = {"device": device, "given": list(given), "methods": {}}
    for method in METHODS:
        of_method = measured(arguments, method)
        found["methods"][method] = of_method
        print(f"{method} on {device}")
        for row in of_method["speed"]:
            print(
                f"  {row['latency_ms']:4} ms: {row['ours']:6.2f} to {row['theirs']:6.2f} prompts/s, "
                f"{row['ratio']:5.2f} x; {row['over_bare']:.2f} x bare evaluations; "
                f"stall {row['stall']:.1%}, decoding {row['decoding']:.1%}"
            )
        held = of_method["memory"]
        ours, theirs = (held[side] / 2**20 for side in ("ours", "theirs"))
        print(f"  above the model: {ours:.1f} to {theirs:.1f} MiB, {held['ratio']:.2f} x", flush=True)
    write(arguments.folder, found)


if __name__ == "__main__":
    main(sys.argv[1:])
