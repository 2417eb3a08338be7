"""What a run will need, said before it starts: memory, evaluations, scores, and replicas of each reward."""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from trainer.config import TrainConfig
from trainer.memory import Memory, chosen_branches, memory_of, micro_batch, replayed_states
from trainer.policy import Policy, check_model

_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Work:
    """What one update of all ranks takes, where no score fails."""

    evaluations_sampling: int
    """Pictures times evaluations of the denoiser, growing branches."""
    evaluations_learning: int
    """The same replaying those that were chosen, policy and reference."""
    images_scored: int
    """Previews, each of which every reward scores."""
    micro_batches: int
    """Parts of an update that a rank samples; all but the last, and that before branches stop, are scored
    while the next one is sampled."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a reward must do so that sampling never waits for it."""

    images_per_second: float
    """That all its replicas must sustain."""
    replicas: int | None = None
    """So many, where what one does is known."""
    tail_s: float | None = None
    """What an update waits for the scores of its last micro-batch, then."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will need."""

    memory: Memory
    work: Work
    sampling_s: float | None
    """Of an update, where the time of an evaluation is known."""
    rewards: Mapping[str, Need]
    """By name, where the time of an evaluation is known."""

    def as_json(self) -> dict[str, Any]:
        """The same for programs; bytes, seconds."""
        return {**asdict(self), "memory": {**asdict(self.memory), "peak": self.memory.peak}}


def plan(
    config: TrainConfig,
    *,
    seconds_per_evaluation: float | None = None,
    images_per_second: Mapping[str, float] | None = None,
) -> Plan:
    """Work a configuration out.

    Args:
        config: of the run.
        seconds_per_evaluation: of one picture on a rank's device, in a micro-batch.
        images_per_second: that one replica scores, by reward.

    Raises:
        ValueError: a reward is named that the run does not use, or a rate is not above 0.
        ModelError, OSError: the model cannot be used.
    """
    rates = images_per_second or {}
    for name, rate in rates.items():
        if name not in config.rewards.weights:
            known = ", ".join(config.rewards.weights)
            raise ValueError(f"--images-per-second names {name!r}; the run's rewards are {known}")
        if rate <= 0:
            raise ValueError(f"--images-per-second {name} must be above 0")
    work = work_of(config)
    if seconds_per_evaluation is None:
        return Plan(memory_of(config), work, None, {})
    sampling_s = work.evaluations_sampling / config.ranks.workers * seconds_per_evaluation
    needed = work.images_scored / sampling_s
    needs = {name: _need(needed, rates.get(name), work) for name in config.rewards.weights}
    return Plan(memory_of(config), work, sampling_s, needs)


def work_of(config: TrainConfig) -> Work:
    """What one update takes; the counts are those of a run's metrics.

    Raises:
        ModelError: the model cannot be used.
    """
    prompts, branching, steps = config.branching.prompts_per_update, config.branching, config.path_steps
    each = check_model(config.model).evaluations(config.sampling.guidance)
    own_prompts = prompts if config.data is None else 0  # which have branches, not pictures that are given
    stops, finished = config.stages[0], config.finished_branches
    shared = branching.shared_steps
    grown = shared + (stops - shared) * branching.branches + (steps - stops) * finished
    early = sum(step < stops for step in config.preview_steps)
    scored = early * branching.branches + (len(config.preview_steps) - early) * finished
    states = chosen_branches(config, prompts) * replayed_states(config)
    of_rank = prompts // config.ranks.workers
    return Work(
        evaluations_sampling=own_prompts * grown * each,
        evaluations_learning=states * each * models_asked(config) * config.optimizer.steps_per_update,
        images_scored=own_prompts * scored,
        micro_batches=math.ceil(of_rank / branching.prompts_per_micro_batch) * len(config.stages),
    )


def models_asked(config: TrainConfig) -> int:
    """At each replayed state: the policy, the reference where it counts, the policy that sampled."""
    reference = config.is_paired or config.loss.kl_weight > 0
    return 1 + reference + (config.method == "diffusion_nft")


def measured_seconds(config: TrainConfig, device: torch.device) -> float:
    """Seconds that one evaluation of one picture takes on a device, in a micro-batch: a median of three.

    Loads the model. Raises ModelError where it cannot be used.
    """
    policy = Policy.load(config.model, device, trainable=False)
    rows = torch.zeros(micro_batch(config) * config.branching.branches, dtype=torch.long)
    text, schedule = policy.encode(["a picture"]), policy.schedule(config.sampling.steps)
    latents = torch.randn(len(rows), *policy.latent_shape, device=device)
    taken = []
    for _ in range(_REPEATS + 1):
        began = time.perf_counter()
        with torch.no_grad():
            at = schedule.timesteps_T[0].expand(len(rows))
            output = policy.predict(latents, at, text.take(rows), config.sampling.guidance)
        output.sum().item()  # waits for the device
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:]) / (len(rows) * policy.evaluations(config.sampling.guidance))


def as_table(config: TrainConfig, planned: Plan) -> str:
    """The plan for people."""
    work, ranks = planned.work, config.ranks.workers
    standing = {name: size for name, size in planned.memory.standing.items() if size}
    lines = [f"Memory of each rank's device ({ranks} in all)"]
    lines += [f"  {name:34}{_size(size):>12}" for name, size in standing.items()]
    lines += [f"  while {name:28}{_size(size):>12}" for name, size in planned.memory.working.items()]
    lines += [
        f"  {'at most':34}{_size(planned.memory.peak):>12}   and a tenth for kernels and fragments",
        "Each update",
        f"  {'denoiser evaluations, sampling':34}{work.evaluations_sampling:>12,}",
        f"  {'denoiser evaluations, learning':34}{work.evaluations_learning:>12,}",
        f"  {'images for each reward':34}{work.images_scored:>12,}   in {work.micro_batches} micro-batches",
    ]
    if planned.sampling_s is None:
        return "\n".join([*lines, "Add --seconds-per-evaluation S, or --measure, for what rewards must do"])
    lines.append(f"  {'sampling':34}{planned.sampling_s:>10,.1f} s")
    lines.append("Rewards, so that sampling never waits for them")
    return "\n".join([*lines, *(_line(name, need) for name, need in planned.rewards.items())])


def _need(needed: float, rate: float | None, work: Work) -> Need:
    if rate is None:
        return Need(needed)
    replicas = math.ceil(needed / rate)
    return Need(needed, replicas, work.images_scored / work.micro_batches / (replicas * rate))


def _line(name: str, need: Need) -> str:
    line = f"  {name:34}{need.images_per_second:>10,.1f} images/s"
    if need.replicas is None:
        return line
    noun = "replica" if need.replicas == 1 else "replicas"
    return f"{line}: {need.replicas} {noun}, then {need.tail_s:,.1f} s for the last micro-batch"


def _size(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
