"""A whole run's settings: what they must agree on, and reading and writing them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import yaml
from pydantic import model_validator

from trainer.config.file import load
from trainer.config.settings import ONLY_STATES, RunSettings
from trainer.written import write_whole


class TrainConfig(RunSettings):
    """A whole run."""

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if self.learned_states != ONLY_STATES.get(self.method, self.learned_states):
            only = ONLY_STATES[self.method]
            raise ValueError(f"method={self.method} learns at {only} states; leave out loss.states")
        if self.selection.effective_branches is not None:
            self._check_effective_branches(self.selection.effective_branches)
        if self.method == "standard" and self.data is None:
            raise ValueError("method=standard learns from captioned pictures: set data.source")
        return self

    @model_validator(mode="after")
    def _check_scored(self) -> Self:
        """Only given pictures, of which no held-out ones are judged, do without prompts and rewards."""
        if self.data is None and self.prompts.train is None:
            raise ValueError(
                f"method={self.method} learns from pictures that it draws of prompts: set prompts.train"
            )
        if self.rewards.names:
            return self
        asking = f"method={self.method} learns from scores of its pictures" if self.data is None else ""
        if self.prompts.held_out is not None:
            asking = asking or "pictures of prompts.held_out are judged"
        if asking:
            raise ValueError(f"{asking}: set rewards.weights, and rewards.services or rewards.url")
        return self

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if self.data is None:
            return self
        if self.budget.images_scored is not None:
            raise ValueError(
                "given pictures are not scored: budget.images_scored would never end it; set another budget"
            )
        if self.method not in ("standard", "diffusion_dpo"):
            raise ValueError(f"method={self.method} learns from its own branches; leave out data")
        if self.branching.end:
            raise ValueError("pictures that are given do not grow: leave out branching.end")
        share, rest = divmod(self.branching.prompts_per_update, self.ranks.workers)
        if rest or self.ranks.min_workers:
            raise ValueError(
                "given pictures are dealt in equal shares: make branching.prompts_per_update a multiple of "
                "ranks.workers, and leave out ranks.min_workers"
            )
        size = self.branching.prompts_per_micro_batch
        if self.data.buckets and share % size:
            raise ValueError(
                f"data.buckets gives a micro-batch one size: make a rank's {share} prompts "
                f"(prompts_per_update / ranks.workers) a multiple of branching.prompts_per_micro_batch={size}"
            )
        return self

    @model_validator(mode="after")
    def _check_densities(self) -> Self:
        if self.reads_densities and self.sampling.eta == 0:
            raise ValueError(f"method={self.method} needs steps with noise: set sampling.eta > 0")
        if self.reads_densities and self.sampling.solver != "ddim":
            raise ValueError(
                f"method={self.method} asks for the log-probability of a step from its state alone: "
                "set sampling.solver=ddim"
            )
        return self

    def _check_effective_branches(self, wanted: float) -> None:
        if self.method != "sft_sharpening" and not self.is_paired:
            raise ValueError(
                f"method={self.method} does not weigh branches; leave out selection.effective_branches"
            )
        if self.selection.temperature > 0:
            raise ValueError("set selection.effective_branches or selection.temperature, not both")
        if wanted > self.finished_branches:
            raise ValueError(
                "selection.effective_branches must be at most the "
                f"{self.finished_branches} branches that grow to their end"
            )

    @model_validator(mode="after")
    def _check_stop(self) -> Self:
        stop, branching = self.branching.stop, self.branching
        if stop is None:
            return self
        if self.method in ("ddpo", "grpo", "diffusion_nft"):
            raise ValueError(f"method={self.method} learns from all branches; leave out branching.stop")
        if stop.after not in self.preview_steps[:-1]:
            raise ValueError(
                f"branching.stop.after={stop.after} must be among branching.previews, which are "
                f"{', '.join(map(str, self.preview_steps))}, and not the last"
            )
        if stop.after < branching.shared_steps:
            raise ValueError(
                f"branching.stop.after={stop.after} must come after branching.start: branches "
                "part by the noise of that step, whose preview is still the same of all"
            )
        if stop.keep >= branching.branches:
            raise ValueError(f"branching.stop.keep must be less than branching.branches={branching.branches}")
        return self

    @model_validator(mode="after")
    def _check_end(self) -> Self:
        branching = self.branching
        if branching.end and not branching.shared_steps < branching.end <= self.sampling.steps:
            raise ValueError(
                f"branching.end must come after branches have parted, {branching.shared_steps + 1} or more, "
                f"and within the {self.sampling.steps} steps"
            )
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        steps, branching = self.path_steps, self.branching
        if not all(-steps <= step < steps for step in branching.previews):
            raise ValueError(f"branching.previews must lie within the {steps} steps: {-steps} to {steps - 1}")
        if self.preview_steps[0] < branching.start:
            raise ValueError(
                "branching.previews must not come before branching.start: branches are one until then"
            )
        if self.preview_steps[-1] < branching.shared_steps:
            raise ValueError(
                f"branching.previews must have one after branching.start={branching.start}: branches part "
                "by the noise of that step, and until then theirs is the same"
            )
        if branching.start > 0 and self.sampling.eta == 0:
            raise ValueError(
                "branches that part on the way need noise: set sampling.eta > 0 or branching.start = 0"
            )
        first, last = self.replayed_steps
        if not branching.start <= first < last <= steps:
            raise ValueError(f"loss.replayed_steps must lie between branching.start and the {steps} steps")
        if self.evaluation.draws % self.evaluation.pictures_per_prompt:
            raise ValueError("evaluation.draws must be a multiple of evaluation.pictures_per_prompt")
        if self.prompts.held_out and self.evaluation.draws < 2 * self.evaluation.pictures_per_prompt:
            raise ValueError("evaluation.draws must be of two prompts or more: errors are between prompts")
        return self

    @model_validator(mode="after")
    def _check_watch(self) -> Self:
        if self.watch.on_gap == "report":
            return self
        if not (self.evaluation.every_updates or self.evaluation.along) or self.prompts.held_out is None:
            raise ValueError(
                f"watch.on_gap={self.watch.on_gap} looks at evaluations during training: set "
                "prompts.held_out, and evaluation.every_updates or evaluation.along"
            )
        if self.rewards.judge is None and not self.rewards.shadows:
            raise ValueError(
                f"watch.on_gap={self.watch.on_gap} needs another view: set rewards.judge or rewards.shadows"
            )
        if self.watch.on_gap == "raise_kl" and not self.loss.kl_weight:
            raise ValueError("watch.on_gap=raise_kl multiplies loss.kl_weight: set one above 0")
        return self

    @model_validator(mode="after")
    def _check_ranks(self) -> Self:
        if self.branching.prompts_per_update < self.ranks.workers:
            raise ValueError("branching.prompts_per_update must be ranks.workers or more")
        if (self.ranks.min_workers or 1) > self.ranks.workers:
            raise ValueError("ranks.min_workers must not be more than ranks.workers")
        if 0 < self.ranks.gpus_per_worker < 1 and self.ranks.workers > 1:
            # Ray puts parts of a GPU onto one (ray#48012); NCCL would refuse after minutes, at the first sum.
            raise ValueError(
                f"ranks.gpus_per_worker={self.ranks.gpus_per_worker:g} puts ranks on one GPU, which NCCL "
                "refuses: set ranks.gpus_per_worker=1, or ranks.workers=1"
            )
        if self.ranks.sharding == "full" and self.model.lora is not None:
            raise ValueError("adapters are not sharded: set model.lora=null or ranks.sharding=none")
        if self.ranks.sharding == "full" and self.optimizer.moments == "8-bit":
            raise ValueError(
                "8-bit moments are not sharded: set optimizer.moments=float32 or ranks.sharding=none"
            )
        if self.ranks.sharding == "full" and self.model.states_with_gradients is not None:
            raise ValueError(
                "ranks that share weights evaluate in step: set loss.branches_per_micro_batch or "
                "model.gradient_checkpointing instead of model.states_with_gradients"
            )
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file, apply `a.b=value` overrides (values are YAML) and check the whole.

    Raises ConfigError, one line for each wrong key.
    """
    return load(TrainConfig, path, overrides)


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration, defaults included, as YAML that `load_config` reads back.

    Whole or not at all: without it a run cannot go on.
    """
    write_whole(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
