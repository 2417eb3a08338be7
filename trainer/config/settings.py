"""All settings of a run, and what follows from them."""

from pathlib import Path
from typing import Literal

from trainer.config.algorithm import (
    BranchingConfig,
    LossConfig,
    OptimizerConfig,
    SamplingConfig,
    SelectionConfig,
)
from trainer.config.data import DataConfig, PromptsConfig
from trainer.config.file import Count, Section, Whole
from trainer.config.model import ModelConfig
from trainer.config.rewards import RewardsConfig
from trainer.config.running import (
    BudgetConfig,
    CheckpointConfig,
    ControlConfig,
    EvaluationConfig,
    RanksConfig,
    WatchConfig,
)

MethodName = Literal[
    "sft_sharpening",
    "rlhf_sharpening",
    "standard",
    "diffusion_dpo",
    "d3po",
    "ddpo",
    "grpo",
    "diffusion_nft",
]
ONLY_STATES: dict[str, Literal["visited", "renoised"]] = {
    "standard": "renoised",
    "diffusion_dpo": "renoised",
    "diffusion_nft": "renoised",
    "d3po": "visited",
    "ddpo": "visited",
    "grpo": "visited",
}
"""What methods cannot choose."""


class RunSettings(Section):
    """A whole run, each setting by itself."""

    method: MethodName = "rlhf_sharpening"
    """Learn the best branch (SFT-Sharpening) or best against worst (RLHF-Sharpening); or what they are
    compared with: other people's pictures (standard), pairs (diffusion_dpo, d3po), the policy gradient
    (ddpo, grpo), good and bad branches by the forward process (diffusion_nft)."""
    seed: Whole = 0
    """Seed of prompts, noise, adapters and random selection."""
    updates: Count = 100
    """Rounds of sampling, scoring and learning; each takes optimizer.steps_per_update optimizer steps."""
    budget: BudgetConfig = BudgetConfig()
    """What may be spent before the last update."""
    run_folder: Path = Path("runs/sharpen")
    """Where metrics, checkpoints, the trained model and the report go."""
    model: ModelConfig
    """The model to sharpen."""
    prompts: PromptsConfig = PromptsConfig()
    """Prompts."""
    data: DataConfig | None = None
    """Pictures to learn from; null is none."""
    rewards: RewardsConfig = RewardsConfig()
    """Rewards and their failures."""
    sampling: SamplingConfig = SamplingConfig()
    """Drawing pictures."""
    branching: BranchingConfig = BranchingConfig()
    """Growing branches."""
    selection: SelectionConfig = SelectionConfig()
    """Choosing branches."""
    loss: LossConfig = LossConfig()
    """The objective."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule."""
    ranks: RanksConfig = RanksConfig()
    """The processes."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving and resuming."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Measuring what was gained."""
    watch: WatchConfig = WatchConfig()
    """Noticing that a reward is gamed."""
    control: ControlConfig | None = None
    """What this configuration's no-reward control gave; shown beside the run's own figures."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where metrics and some held-out pictures go besides the run folder; the last two are extras."""

    @property
    def path_steps(self) -> int:
        """Steps that branches take, those of their trunk included."""
        return self.branching.end or self.sampling.steps

    @property
    def preview_steps(self) -> tuple[int, ...]:
        """The scored steps, counted from 0, in order, each once."""
        return tuple(sorted({step % self.path_steps for step in self.branching.previews}))

    @property
    def stages(self) -> tuple[int, ...]:
        """The step before which each stretch of growing ends: after one, branches may stop."""
        stop = self.branching.stop
        return (self.path_steps,) if stop is None else (stop.after + 1, self.path_steps)

    @property
    def finished_branches(self) -> int:
        """Branches of a prompt that grow to their end."""
        return self.branching.stop.keep if self.branching.stop else self.branching.branches

    @property
    def is_paired(self) -> bool:
        """Whether the method compares a prompt's best branch with its worst, and both with the reference."""
        return self.method in ("rlhf_sharpening", "diffusion_dpo", "d3po")

    @property
    def branches_at_a_time(self) -> int:
        """Most branches replayed together; whole pairs of them, one at least, where a method compares two."""
        most = self.loss.branches_per_micro_batch
        return max(2, most - most % 2) if self.is_paired else most

    @property
    def prompts_at_a_time(self) -> int:
        """Prompts of a micro-batch, on a rank that has most of them, where ranks are fewest."""
        share = -(-self.branching.prompts_per_update // self.ranks.fewest)
        return min(self.branching.prompts_per_micro_batch, share)

    @property
    def replayed_steps(self) -> tuple[int, int]:
        """First step and the one after the last whose states may be replayed."""
        return self.loss.replayed_steps or (self.branching.start, self.path_steps)

    @property
    def learned_states(self) -> Literal["visited", "renoised"]:
        """At which states of a branch its method learns."""
        return self.loss.states or ONLY_STATES.get(self.method, "visited")

    @property
    def learned_guidance(self) -> float:
        """The scale of guidance under which the model learns: that of its own branches, which were drawn so.

        Pictures that somebody else made are what it should say without any: guidance exaggerates them later.
        """
        return self.sampling.guidance if self.data is None else 1.0

    @property
    def looks_back(self) -> bool:
        """Whether the method compares the policy with what it was when it sampled an update's branches."""
        return self.method in ("ddpo", "grpo", "diffusion_nft")

    @property
    def reads_densities(self) -> bool:
        """Whether the method needs the log-probability of steps."""
        return self.method in ("d3po", "ddpo", "grpo")
