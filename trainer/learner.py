"""Learns from selected branches: replays states they visited with gradients and takes optimizer steps.

Only chosen branches are evaluated again: what the others would add to the gradient is exactly nothing. States are
constants: no gradient flows through the chain of steps. Shapes: B branches, S replayed states of each, N = B * S.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.branches import Branches
from trainer.config import TrainConfig
from trainer.diffusion import target_output
from trainer.losses import denoising_errors, path_loss, preference_loss
from trainer.path_integral import Selection
from trainer.policy import Conditioning, Policy
from trainer.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Lesson:
    """A micro-batch of branches and what was selected from it."""

    branches: Branches
    selection: Selection


@dataclass(frozen=True, slots=True)
class Replay:
    """Visited states of B branches, S of each in a row."""

    states: Tensor
    """(N, C, h, w)"""
    targets: Tensor
    """(N, C, h, w): what the model should say there for the branch to end where it ended."""
    timesteps: Tensor
    """(N,) long"""
    text: Conditioning
    """N rows."""


class Learner:
    """The optimizer, its schedule and the averaged weights around a policy."""

    def __init__(self, policy: Policy, config: TrainConfig, ranks: Ranks) -> None:
        self._policy, self._config, self._ranks = policy, config, ranks
        self._schedule = policy.schedule(config.sampling.steps)
        options = config.optimizer
        self._optimizer = torch.optim.AdamW(
            policy.parameters, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay, fused=True
        )
        self._average = [p.detach().clone() for p in policy.parameters] if options.ema_decay else []
        self.steps = 0
        """Optimizer steps taken."""
        self.unet_evaluations = 0

    def learn(self, lessons: Sequence[Lesson], seed: int) -> dict[str, float]:
        """Take the optimizer steps of one update; `seed` decides which of the visited states are replayed.

        Returns:
            loss, kl, grad_norm and lr, means over the optimizer steps; zeros when there was nothing to learn.
        """
        generator = torch.Generator().manual_seed(seed)
        prompts = self._ranks.total(sum(float(lesson.selection.valid_P.sum()) for lesson in lessons))
        if prompts == 0:
            return {"loss": 0.0, "kl": 0.0, "grad_norm": 0.0, "lr": 0.0}
        taken = [self._step(lessons, prompts, generator) for _ in range(self._config.optimizer.steps_per_update)]
        return {name: sum(step[name] for step in taken) / len(taken) for name in taken[0]}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this block the policy has the averaged weights, if weights are averaged."""
        self._swap_average()
        try:
            yield
        finally:
            self._swap_average()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the pre-trained weights: parameters, moments, averages."""
        parameters = [parameter.detach() for parameter in self._policy.parameters]
        return {
            "parameters": parameters,
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another learner stood."""
        with torch.no_grad():
            torch._foreach_copy_(list(self._policy.parameters), state["parameters"])
        for own, average in zip(self._average, state["average"], strict=True):
            own.copy_(average)
        self._optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]

    def _step(self, lessons: Sequence[Lesson], prompts: float, generator: torch.Generator) -> dict[str, float]:
        rate = self._learning_rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        losses = [self._backward(terms, prompts) for lesson in lessons for terms in self._terms(lesson, generator)]
        self._ranks.sum_gradients(self._policy.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self._policy.parameters, self._config.optimizer.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.steps += 1
        if self._average:
            decay = min(self._config.optimizer.ema_decay, self.steps / (self.steps + 10))
            torch._foreach_lerp_(self._average, [p.detach() for p in self._policy.parameters], 1 - decay)
        loss, kl = (self._ranks.total(sum(part[i] for part in losses)) for i in range(2))
        return {"loss": loss, "kl": kl, "grad_norm": float(norm), "lr": rate}

    def _backward(self, terms: tuple[Tensor, Tensor], prompts: float) -> tuple[float, float]:
        loss, divergence = (term / prompts for term in terms)
        (loss + self._config.loss.kl_weight * divergence).backward()
        return loss.item(), divergence.item()

    def _terms(self, lesson: Lesson, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Loss and divergence of one part of a lesson after another, summed over prompts; parts bound the memory."""
        selection, size = lesson.selection, self._config.loss.branches_per_micro_batch
        if self._config.method == "sft_sharpening":
            rows, columns = selection.weights_PK.nonzero(as_tuple=True)
            for part in torch.arange(len(rows)).split(size):
                weights = selection.weights_PK[rows[part], columns[part]]
                yield self._sft_terms(self._replay(lesson.branches, rows[part], columns[part], generator), weights)
        else:
            for pairs in selection.valid_P.nonzero()[:, 0].split(max(1, size // 2)):
                columns = torch.cat([selection.best_P[pairs], selection.worst_P[pairs]])
                replay = self._replay(lesson.branches, pairs.repeat(2), columns, generator, pairs=True)
                yield self._rlhf_terms(replay, selection.gap_P[pairs])

    def _sft_terms(self, replay: Replay, weights_B: Tensor) -> tuple[Tensor, Tensor]:
        outputs, references = self._outputs(replay)
        errors_BS = denoising_errors(outputs, replay.targets).unflatten(0, (len(weights_B), -1))
        divergence_BS = denoising_errors(outputs, references).unflatten(0, (len(weights_B), -1))
        return path_loss(errors_BS, weights_B), path_loss(divergence_BS, weights_B)

    def _rlhf_terms(self, replay: Replay, gaps_B: Tensor) -> tuple[Tensor, Tensor]:
        options = self._config.loss
        outputs, references = self._outputs(replay)
        reference_errors = denoising_errors(references, replay.targets)
        ratios = (reference_errors - denoising_errors(outputs, replay.targets)).unflatten(0, (2, len(gaps_B), -1))
        weights_B = torch.ones_like(gaps_B)
        loss = preference_loss(
            ratios[0], ratios[1], gaps_B, weights_B, beta=options.beta, margin=options.margin
        )
        divergence_BS = denoising_errors(outputs, references).unflatten(0, (2 * len(gaps_B), -1))
        return loss, path_loss(divergence_BS, torch.full((2 * len(gaps_B),), 0.5))

    def _outputs(self, replay: Replay) -> tuple[Tensor, Tensor]:
        guidance = self._config.sampling.guidance
        with torch.no_grad(), self._policy.reference():
            references = self._policy.predict(replay.states, replay.timesteps, replay.text, guidance)
        outputs = self._policy.predict(replay.states, replay.timesteps, replay.text, guidance)
        self.unet_evaluations += 2 * len(outputs) * (1 if guidance == 1 else 2)
        return outputs, references

    def _replay(
        self, branches: Branches, rows: Tensor, columns: Tensor, generator: torch.Generator, *, pairs: bool = False
    ) -> Replay:
        """States at randomly chosen steps; the two branches of a pair are replayed at the same steps."""
        steps_BS = self._steps(len(rows) // 2 if pairs else len(rows), generator)
        steps = (steps_BS.repeat(2, 1) if pairs else steps_BS).flatten()
        count = steps_BS.shape[1]
        rows, columns = rows.repeat_interleave(count), columns.repeat_interleave(count)
        states = branches.states[steps, rows, columns]
        targets = target_output(
            states, branches.clean[rows, columns], self._schedule.alpha_bars_T[steps], self._schedule.prediction_type
        )
        return Replay(states, targets, self._schedule.timesteps_T[steps], branches.text.take(rows))

    def _steps(self, branches: int, generator: torch.Generator) -> Tensor:
        first, last = self._config.loss.first_step, self._config.sampling.steps
        order = torch.rand(branches, last - first, generator=generator).argsort(1)
        return first + order[:, : self._config.loss.states_per_branch]

    def _swap_average(self) -> None:
        for parameter, average in zip(self._policy.parameters, self._average, strict=bool(self._average)):
            parameter.data, average.data = average.data, parameter.data

    def _learning_rate(self) -> float:
        options = self._config.optimizer
        total = self._config.updates * options.steps_per_update
        warmup = min(1.0, (self.steps + 1) / (options.warmup_steps + 1))
        if options.decay == "none":
            return options.lr * warmup
        return options.lr * warmup * max(0.0, 1 - self.steps / total)
