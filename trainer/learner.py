"""Takes optimizer steps on what a method makes of an update's lessons; keeps averages of the weights.

No step is taken with a gradient that is not finite: in float16 it is computed again from smaller losses, else
the run ends.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from trainer.config import TrainConfig
from trainer.methods import METHODS, Part, Terms
from trainer.optimizer import LossScale, adamw
from trainer.path_integral import select
from trainer.policy import Policy
from trainer.ranks import Halted, Ranks
from trainer.replay import Lesson, Replayer, exchange
from trainer.sharding import part, whole


class Learner:
    """The optimizer, its schedule and the averaged weights around a policy."""

    def __init__(self, policy: Policy, config: TrainConfig, ranks: Ranks) -> None:
        self._policy, self._config, self._ranks = policy, config, ranks
        self._replayer = Replayer(policy, config)
        self.method = METHODS[config.method](config, self._replayer, ranks)
        options = config.optimizer
        self._optimizer = adamw(policy.parameters, options)
        self._average = [p.detach().clone() for p in policy.parameters] if options.ema_decay else []
        self._scale = LossScale.of(config.model.dtype)
        self.steps = 0
        """Optimizer steps taken."""
        self.kl_weight = config.loss.kl_weight
        """Weight of the divergence from the reference; raised where a reward is gamed."""

    def learn(self, lessons: Sequence[Lesson], progress: float = 0.0) -> dict[str, float]:
        """Take the optimizer steps of one update.

        Args:
            lessons: what this rank's branches teach.
            progress: share of the run that was made before; the learning rate falls with it, or with the
                optimizer steps where they are further.

        Returns:
            loss, kl, grad_norm and lr, means over the optimizer steps; zeros when there was nothing to learn.

        Raises:
            Halted: a loss or gradient is not finite; the steps before it were taken.
        """
        self._replayer.unet_evaluations = 0
        prompts = self._ranks.total(sum(float(lesson.selection.valid_P.sum()) for lesson in lessons))
        if prompts == 0:
            return {"loss": 0.0, "kl": 0.0, "grad_norm": 0.0, "lr": 0.0}
        self.method.begin(lessons, self.steps)
        taken = [
            self._step(lessons, prompts, progress) for _ in range(self._config.optimizer.steps_per_update)
        ]
        return {name: sum(step[name] for step in taken) / len(taken) for name in taken[0]}

    @property
    def unet_evaluations(self) -> int:
        """Of the last call of `learn`, policy and reference together."""
        return self._replayer.unet_evaluations

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this block the policy has the averaged weights, if weights are averaged."""
        trained = list(self._policy.parameters) if self._average else []
        exchange(trained, self._average)
        try:
            yield
        finally:
            exchange(trained, self._average)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the pre-trained weights: parameters, moments, averages; the tensors are not copied.

        Where ranks share them, each has its part.
        """
        return {
            "parameters": [parameter.detach() for parameter in self._policy.parameters],
            "average": self._average,
            "optimizer": self._optimizer.state_dict(),
            "steps": self.steps,
            "kl_weight": self.kl_weight,
            "loss_scale": self._scale.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another learner stood, on any number of ranks, sharded or not.

        Args:
            state: another's `state_dict`, as it was saved: tensors, and `Rows` in place of what was sharded.
                Only this rank's part of them is read, and copied: the files may be deleted afterwards.
        """
        parameters = self._policy.parameters
        with torch.no_grad():
            for own, saved in zip(
                [*parameters, *self._average], [*state["parameters"], *state["average"]], strict=True
            ):
                own.copy_(part(saved, own))
        moments = {
            index: {
                # Steps are numbers, and 8-bit moments have a dict of their own, which is never shared.
                name: part(value, parameters[index])
                if getattr(value, "shape", None) == parameters[index].shape
                else copy.deepcopy(value)
                for name, value in of_parameter.items()
            }
            for index, of_parameter in state["optimizer"]["state"].items()
        }
        self._optimizer.load_state_dict({**state["optimizer"], "state": moments})
        self.steps, self.kl_weight = state["steps"], state.get("kl_weight", self.kl_weight)
        self._scale.load_state_dict(state.get("loss_scale", {}))

    def _step(self, lessons: Sequence[Lesson], prompts: float, progress: float) -> dict[str, float]:
        rate = self._learning_rate(progress)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss, kl, norm = self._differentiate(lessons, prompts)
        while not math.isfinite(norm):
            self._optimizer.zero_grad()
            if not (math.isfinite(loss + kl) and self._scale.lower()):
                raise Halted(
                    f"the loss is {loss:g} and its gradient is not finite: the model has diverged, and this "
                    "step was not taken. Go on from the newest checkpoint or begin again, with a lower rate: "
                    f"--set optimizer.lr={self._config.optimizer.lr / 3:.1g}"
                )
            loss, kl, norm = self._differentiate(lessons, prompts)
        self._scale.succeeded()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.steps += 1
        if self._average:
            decay = min(self._config.optimizer.ema_decay, self.steps / (self.steps + 10))
            torch._foreach_lerp_(self._average, [p.detach() for p in self._policy.parameters], 1 - decay)
        return {"loss": loss, "kl": kl, "grad_norm": norm, "lr": rate}

    def _differentiate(self, lessons: Sequence[Lesson], prompts: float) -> tuple[float, float, float]:
        """Leave the gradient of all ranks, clipped; returns loss, divergence and norm, the same on all."""
        idle = self._idle_parts(lessons) if self._policy.sharded else []
        parts = (part for lesson in lessons for part in self.method.parts(lesson, self.steps))
        losses = [self._backward(part(), prompts) for part in parts]
        losses += [self._backward(part(), math.inf) for part in idle]
        if not self._policy.sharded:
            self._ranks.sum_gradients(self._policy.parameters)
        self._scale.unscale(self._policy.parameters)
        limit = self._config.optimizer.max_grad_norm
        norm = whole(torch.nn.utils.clip_grad_norm_(self._policy.parameters, limit))
        loss, kl = (self._ranks.total(sum(part[i] for part in losses)) for i in range(2))
        return loss, kl, float(norm)

    def _backward(self, terms: Terms, prompts: float) -> tuple[float, float]:
        loss, divergence = (term / prompts for term in terms)
        ((loss + self.kl_weight * divergence) * self._scale.factor).backward()
        return loss.item(), divergence.item()

    def _idle_parts(self, lessons: Sequence[Lesson]) -> list[Part]:
        """As many as another rank has more: ranks that share weights evaluate in step, even for nothing."""
        own = sum(1 for lesson in lessons for _ in self.method.parts(lesson, self.steps))
        missing = max(self._ranks.gather(own)) - own
        if not missing:
            return []
        returns_PK = torch.arange(2.0).expand(len(lessons[0].seeds), 2)
        idle = replace(lessons[0], selection=select(returns_PK, temperature=0))
        return [next(iter(self.method.parts(idle, self.steps)))] * missing

    def _learning_rate(self, progress: float) -> float:
        options = self._config.optimizer
        total = self._config.updates * options.steps_per_update
        warmup = min(1.0, (self.steps + 1) / (options.warmup_steps + 1))
        if options.decay == "none":
            return options.lr * warmup
        return options.lr * warmup * max(0.0, 1 - max(self.steps / total, progress))
