"""Replays chosen branches: states they visited, or their ends noised anew, and what models say there.

Only chosen branches are evaluated again: what the others would add to the gradient is exactly nothing. States
are constants: no gradient flows through the chain of steps.
Shapes: P prompts, K branches of each, B branches that are replayed, S states of each, N = B * S.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.branches import Branches
from trainer.config import ConfigError, TrainConfig
from trainer.diffusion import (
    Schedule,
    add_noise,
    clean_and_noise,
    log_probability,
    step_distribution,
    target_output,
)
from trainer.families.family import Conditioning
from trainer.path_integral import Selection
from trainer.policy import Policy


@dataclass(frozen=True, slots=True)
class Lesson:
    """A micro-batch of branches and what was selected from it."""

    branches: Branches
    selection: Selection
    seeds: tuple[int, ...]
    """One of each prompt; they decide which of the visited states are replayed."""


@dataclass(frozen=True, slots=True)
class Draws:
    """The chance in one optimizer step; all branches of a prompt share it, so that only they differ."""

    steps_PS: Tensor
    """(P, S) long: the steps that are replayed, S different ones."""
    chances_P2: Tensor
    """(P, 2) uniform in [0, 1): they draw the two branches that are compared."""
    noise_PT: Tensor | None
    """(P, T, C, h, w): noise put on the finished latents; None where visited states are replayed."""


@dataclass(frozen=True, slots=True)
class Replay:
    """States of B branches, S of each in a row."""

    states: Tensor
    """(N, C, h, w)"""
    targets: Tensor
    """(N, C, h, w): what the model should say there for the branch to end where it ended."""
    steps_N: Tensor
    """(N,) long: the step each state is from."""
    text: Conditioning
    """N rows."""
    moved: Tensor | None
    """(N, C, h, w): where the branch went from there; None where its end was noised anew."""
    states_per_branch: int
    """S"""

    def by_branch(self, values_N: Tensor) -> Tensor:
        """One value of each state, (N,), as (B, S)."""
        values_BS: Tensor = values_N.unflatten(0, (-1, self.states_per_branch))
        return values_BS


class Replayer:
    """Brings back what branches went through and asks policy and reference about it."""

    def __init__(self, policy: Policy, config: TrainConfig) -> None:
        self._policy, self._config = policy, config
        self._schedule = policy.schedule(config.sampling.steps).ending(config.path_steps)
        self._steps = replayable(config, self._schedule)
        self.unet_evaluations = 0
        """Policy and reference together, since it was last set to 0."""

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self._policy.device

    def draw(self, lesson: Lesson, step: int) -> Draws:
        """What chance decides in one optimizer step, for each prompt from its own seed.

        So neither micro-batches nor the number of ranks change it.
        """
        generators = [torch.Generator().manual_seed(_mixed(seed, step)) for seed in lesson.seeds]
        order = torch.stack([torch.rand(len(self._steps), generator=generator) for generator in generators])
        steps_PS = self._steps.start + order.argsort(1)[:, : self._config.loss.states_per_branch]
        noise_PT = None
        if self._config.learned_states == "renoised":
            shape = (len(self._schedule), *lesson.branches.clean.shape[2:])
            noise_PT = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        chances_P2 = torch.stack([torch.rand(2, generator=generator) for generator in generators])
        return Draws(steps_PS, chances_P2, noise_PT)

    def replay(self, branches: Branches, rows: Tensor, columns: Tensor, draws: Draws) -> Replay:
        """Bring back the states of B branches: (B,) their prompts and their places among a prompt's."""
        steps_BS = draws.steps_PS[rows]
        count, steps = steps_BS.shape[1], steps_BS.flatten()
        rows, columns = rows.repeat_interleave(count), columns.repeat_interleave(count)
        clean = branches.clean[rows, columns].to(self.device)
        levels, moved = self._schedule.levels_T[steps], None
        if draws.noise_PT is None:
            kept = steps - branches.first
            states = branches.states[kept, rows, columns].to(self.device)
            moved = branches.states[kept + 1, rows, columns].to(self.device)
        else:
            states = add_noise(clean, draws.noise_PT[rows, steps].to(self.device), levels)
        targets = target_output(states, clean, levels, self._schedule.prediction_type)
        return Replay(states, targets, steps, branches.told(rows, columns), moved, count)

    def outputs(self, replay: Replay) -> Tensor:
        """What the policy says at the replayed states, with gradients."""
        guidance = self._config.learned_guidance
        self.unet_evaluations += len(replay.states) * self._policy.evaluations(guidance)
        timesteps = self._schedule.timesteps_T[replay.steps_N]
        return self._policy.replayed(replay.states, timesteps, replay.text, guidance)

    @torch.no_grad()
    def references(self, replay: Replay) -> Tensor:
        """What the model before training says there, without."""
        with self._policy.reference():
            return self.outputs(replay)

    def earlier(self, replay: Replay, weights: list[Tensor]) -> Tensor:
        """What the policy said there when it had these weights, without.

        Compiled blocks are asked as with gradients: without, they are compiled another way, which in bfloat16
        rounds otherwise.
        """
        exchange(self._policy.parameters, weights)
        try:
            with torch.set_grad_enabled(self._config.model.compile):
                return self.outputs(replay).detach()
        finally:
            exchange(self._policy.parameters, weights)

    def weights(self) -> list[Tensor]:
        """A copy of what is trained, as it is now."""
        return [parameter.detach().clone() for parameter in self._policy.parameters]

    def distributions(self, replay: Replay, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (N, C, h, w) and standard deviation (N, 1, 1, 1) of the step that follows these outputs."""
        schedule, steps_N = self._schedule, replay.steps_N
        level = schedule.levels_T[steps_N]
        clean, eps = clean_and_noise(replay.states, outputs, level, schedule.prediction_type)
        return step_distribution(
            clean, eps, level, schedule.next_levels_T[steps_N], self._config.sampling.eta
        )

    def log_probabilities(self, replay: Replay, outputs: Tensor) -> Tensor:
        """(N,) of the steps that were taken, under these outputs.

        Raises:
            ValueError: the states were not visited, or no noise was put back there.
        """
        if replay.moved is None:
            raise ValueError("only visited states have a step that was taken from them")
        return log_probability(replay.moved, *self.distributions(replay, outputs))


def replayable(config: TrainConfig, schedule: Schedule) -> range:
    """The steps whose states may be replayed; of methods that read densities those which put noise back.

    Raises:
        ConfigError: there is none: the last, to a finished picture or an x0 estimate, puts back no noise.
    """
    first, end = config.replayed_steps
    if config.reads_densities:
        nothing, last = schedule.levels_T.noise.new_zeros(()), end - 1
        level, following = schedule.levels_T[last], schedule.next_levels_T[last]
        _, std = step_distribution(nothing, nothing, level, following, config.sampling.eta)
        end -= not bool(std > 0)
    if first == end:
        raise ConfigError(
            f"method={config.method} learns steps that put noise back, which the last one does not: set "
            "loss.replayed_steps to earlier ones, or sampling.steps higher"
        )
    return range(first, end)


def exchange(parameters: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Give each the values of the other, in place: what ranks share of a weight stays where it is."""
    for parameter, other in zip(parameters, others, strict=True):
        values = parameter.detach().clone()
        parameter.detach().copy_(other)
        other.copy_(values)


def _mixed(seed: int, step: int) -> int:
    """A seed for one optimizer step, unlike those of the prompt's noise; torch reads 32 bits of it."""
    return (seed ^ 0x5BD1E995 * (step + 1)) & 0xFFFFFFFF
