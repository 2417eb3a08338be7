"""What a run will need, said before it starts: memory, evaluations, scores, and replicas of each reward."""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from reward_services import ConfigInvalid, told_s
from reward_services.config_file import load_config as load_services
from trainer.backlog import Previews, Replicas, answered_s
from trainer.config import TrainConfig
from trainer.evaluating import Evaluation, evaluation_of
from trainer.memory import Memory, memory_of, weightless
from trainer.pace import Pace
from trainer.policy import Policy
from trainer.work import Work, sampled, work_of

_REPEATS = 3
_LEVELS, _LEVELS_OF_HTTP = 2, 4
"""Coordinator and handles tell those below a little less time; over HTTP client and endpoint do, too."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a reward must do so that sampling never waits for it."""

    images_per_second: float
    """That all its replicas must sustain."""
    replicas: int | None = None
    """So many, where what one does is known."""
    tail_s: float | None = None
    """What an update waits for the last scores, then: beside the other rewards whose replicas are known."""
    served: int | None = None
    """Replicas that rewards.services has of it at most; None where that cannot be read here."""
    call_s: float | None = None
    """What the largest call takes one of them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will need."""

    memory: Memory
    work: Work
    sampling_s: float | None
    """Of an update, where the time of an evaluation is known."""
    rewards: Mapping[str, Need]
    """By name, where the time of an evaluation is known and pictures are scored."""
    evaluation: Evaluation | None = None
    """Where that time is known and there are held-out prompts."""
    device_bytes: int | None = None
    """Memory of the GPU that is here, if one is."""

    @property
    def fits(self) -> bool | None:
        """Whether that is enough for a rank, with a tenth for kernels and fragments."""
        return None if self.device_bytes is None else 1.1 * self.memory.peak <= self.device_bytes

    def as_json(self) -> dict[str, Any]:
        """The same for programs; bytes, seconds."""
        memory = {**asdict(self.memory), "peak": self.memory.peak}
        return {**asdict(self), "memory": memory, "fits": self.fits}


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
        ValueError: a reward is named that the run does not use, or a rate or time is no number above 0.
        ModelError, OSError: the model cannot be used.
    """
    rates = images_per_second or {}
    for name, rate in rates.items():
        if name not in config.rewards.names:
            known = ", ".join(config.rewards.names) or "none"
            raise ValueError(f"--images-per-second names {name!r}; the run's rewards are {known}")
        if not 0 < rate < math.inf:
            raise ValueError(f"--images-per-second {name} must be a number above 0")
    if seconds_per_evaluation is not None and not 0 < seconds_per_evaluation < math.inf:
        raise ValueError("--seconds-per-evaluation must be a number above 0")
    family, here = weightless(config), _device_bytes()
    memory, work = memory_of(config, family), work_of(config, family)
    if seconds_per_evaluation is None:
        return Plan(memory, work, None, {}, device_bytes=here)
    stages = sampled(config, seconds_per_evaluation)
    sampling_s = math.fsum(of_stage[-1].came_s for of_stage in stages)
    needs, served = {}, _served(config)
    if work.images_scored:
        needs = _needs(config, work.images_scored / sampling_s, rates, stages, served)
    evaluation = evaluation_of(config, seconds_per_evaluation, rates, served)
    return Plan(memory, work, sampling_s, needs, evaluation, here)


def measured_seconds(config: TrainConfig, device: torch.device) -> float:
    """Seconds that one evaluation of one picture takes on a device, in a micro-batch: a median of three.

    Loads the model. Raises ModelError where it cannot be used.
    """
    policy = Policy.load(config.model, device, trainable=False)
    rows = torch.zeros(config.prompts_at_a_time * config.branching.branches, dtype=torch.long)
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
    work, ranks = planned.work, config.ranks
    fewer = f", with {ranks.fewest} left" if ranks.fewest < ranks.workers else ""
    standing = {name: size for name, size in planned.memory.standing.items() if size}
    lines = [f"Memory of each rank's device ({ranks.workers} in all){fewer}"]
    lines += [f"  {name:34}{_size(size):>12}" for name, size in standing.items()]
    lines += [f"  while {name:28}{_size(size):>12}" for name, size in planned.memory.working.items()]
    lines.append(f"  {'at most':34}{_size(planned.memory.peak):>12}   and a tenth for kernels and fragments")
    if planned.device_bytes is not None:
        verdict = "is enough" if planned.fits else "is not enough"
        lines.append(f"  {'the GPU here':34}{_size(planned.device_bytes):>12}   {verdict}")
    lines += [
        "Each update",
        f"  {'denoiser evaluations, sampling':34}{work.evaluations_sampling:>12,}",
        f"  {'denoiser evaluations, learning':34}{work.evaluations_learning:>12,}",
        f"  {'images for each reward':34}{work.images_scored:>12,}   in {work.micro_batches} micro-batches",
        f"  {'reward calls':34}{work.reward_calls:>12,}   or more, as ranks drift apart",
    ]
    lines += _of_rewards(config, planned)
    if planned.evaluation is not None:
        lines += _of_evaluation(planned.evaluation)
    return "\n".join([*lines, *_advice(config, planned)])


def _of_rewards(config: TrainConfig, planned: Plan) -> list[str]:
    if not planned.work.images_scored:
        scored = "rewards score held-out pictures only" if config.rewards.names else "nothing is scored"
        return [f"Pictures are given: {scored}"]
    if planned.sampling_s is None:
        return ["Add --seconds-per-evaluation S, or --measure, for what rewards must do"]
    return [
        f"  {'sampling':34}{planned.sampling_s:>10,.1f} s",
        "Rewards, so that sampling never waits for them",
        *(_line(name, need) for name, need in planned.rewards.items()),
    ]


def _of_evaluation(evaluation: Evaluation) -> list[str]:
    lines = ["Each evaluation", f"  {'held-out pictures':34}{evaluation.pictures:>12,}"]
    lines.append(f"  {'drawing':34}{evaluation.drawing_s:>10,.1f} s")
    for name, judged in evaluation.rewards.items():
        line = f"  {name:34}{judged.images_per_second:>10,.1f} images/s"
        lines.append(
            f"{line} of {_replicas(judged.replicas)}, then {judged.tail_s:,.1f} s for the last scores"
        )
    return lines


def _needs(
    config: TrainConfig,
    needed: float,
    rates: Mapping[str, float],
    stages: list[list[Previews]],
    served: Mapping[str, int],
) -> dict[str, Need]:
    options = config.rewards
    known = {name: rate for name, rate in rates.items() if name in options.weights}
    replicas = {name: Replicas(math.ceil(needed / rate), rate) for name, rate in known.items()}
    tails = dict.fromkeys(replicas, 0.0)
    largest = min(options.batch_images, max(previews.images for sent in stages for previews in sent))
    for sent in stages:
        answered = answered_s(
            sent, replicas, batch_images=options.batch_images, calls_at_once=options.calls_at_once
        )
        tails = {name: tail + answered[name] - sent[-1].came_s for name, tail in tails.items()}
    return {
        name: Need(
            needed,
            replicas[name].count if name in replicas else None,
            tails.get(name),
            served.get(name),
            largest / rates[name] if name in rates else None,
        )
        for name in options.weights
    }


def _served(config: TrainConfig) -> dict[str, int]:
    """Replicas that there may be of each reward, as far as that can be read here."""
    try:
        rewards = load_services(config.rewards.services).rewards if config.rewards.services else {}
    except ConfigInvalid:  # the run will say so; the plan is good without
        return {}
    return {name: reward.most_replicas for name, reward in rewards.items()}


def _device_bytes() -> int | None:
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def _line(name: str, need: Need) -> str:
    line = f"  {name:34}{need.images_per_second:>10,.1f} images/s"
    if need.replicas is None:
        return line
    served = "" if need.served is None or need.served >= need.replicas else f" ({need.served} served)"
    return f"{line}: {_replicas(need.replicas)}{served}, then {need.tail_s:,.1f} s for the last scores"


def _replicas(count: int) -> str:
    return f"{count} replica" if count == 1 else f"{count} replicas"


def _advice(config: TrainConfig, planned: Plan) -> list[str]:
    """How to have all replicas at work, and answer in time, where calls are too few or too large for that."""
    options, advice = config.rewards, []
    pace = Pace(attempt_s=options.attempt_s, deadline_s=options.deadline_s)
    judged = planned.evaluation.rewards if planned.evaluation else {}
    calls = [(name, one.call_s) for name, one in planned.rewards.items()]
    calls += [(name, one.call_s) for name, one in judged.items() if name not in planned.rewards]
    replica_s = _told_replica_s(pace.limit_s, over_http=options.url is not None)
    limit = f"rewards.attempt_s={options.attempt_s:g}"
    if pace.limit_s < options.attempt_s:
        limit = f"half of rewards.deadline_s={options.deadline_s:g}"
    for name, call_s in calls:
        if call_s is not None and call_s > replica_s:
            advice.append(
                f"A call takes {name} {call_s:,.1f} s, beyond the {replica_s:,.1f} s that a replica has of "
                f"{limit}: set that higher "
                "(rewards.deadline_s to twice rewards.attempt_s), or rewards.batch_images lower"
            )
    return advice + _of_calls(config, planned.rewards)


def _told_replica_s(limit_s: float, *, over_http: bool) -> float:
    for _ in range(_LEVELS_OF_HTTP if over_http else _LEVELS):
        limit_s = told_s(limit_s)
    return limit_s


def _of_calls(config: TrainConfig, rewards: Mapping[str, Need]) -> list[str]:
    if not rewards:
        return []
    options, advice = config.rewards, []
    most = max(need.replicas or 1 for need in rewards.values())
    images = sampled(config, 0.0)[-1][-1].images
    if options.calls_at_once < most:
        advice.append(f"rewards.calls_at_once={options.calls_at_once} keeps no more busy: set it to {most}")
    if math.ceil(images / options.batch_images) < min(most, images):
        size = math.ceil(images / most)
        advice.append(f"A call goes to one replica: rewards.batch_images={size} gives each of {most} a part")
    return advice


def _size(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
