"""Settings of a run: its processes, what it saves, what it measures."""

from typing import Literal

from pydantic import Field

from trainer.config.file import Count, NotNegative, Positive, Section, Share, Whole


class RanksConfig(Section):
    """The processes that sample and learn."""

    workers: Count = 1
    """Trainer ranks."""
    min_workers: Count | None = None
    """Fewest ranks to go on with when nodes are lost, until these are back; null waits for all of them.

    Each has more prompts then, and more of what ranks share: `sharpen plan` gives the memory that these take.
    Ray counts what nodes have, not what is free: ranks need GPUs or nodes that nothing else uses.
    """
    resize_s: Positive = 60.0
    """With `min_workers`: time between looks for nodes for more ranks; to take them up, all ranks start again
    from the newest checkpoint."""
    cpus_per_worker: Positive = 1.0
    """CPU cores reserved for each rank."""
    gpus_per_worker: NotNegative = 0.0
    """GPUs reserved for each rank; a part of one only where there is one rank, beside rewards."""
    resources: dict[str, Positive] = Field(default_factory=dict)
    """Ray's custom resources reserved for each rank, such as {trainer: 1}: they choose its nodes."""
    sharding: Literal["none", "full"] = "none"
    """full: ranks share weights, reference, moments and averages of a whole denoiser (model.lora=null)."""
    torch_threads: Count = 1
    """CPU threads of torch in each rank."""
    max_failures: Whole = 3
    """Times the ranks are started again from the last checkpoint after one died."""

    @property
    def fewest(self) -> int:
        """Ranks that do when nodes are lost."""
        return self.min_workers or self.workers

    @property
    def resources_per_worker(self) -> dict[str, float]:
        """All that is reserved for each rank, by Ray's names."""
        return {**self.resources, "CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}


class BudgetConfig(Section):
    """What training may spend, evaluations not counted; the run ends when the first of them is spent."""

    training_s: Positive | None = None
    """Seconds of sampling, waiting for rewards and learning; null sets no limit."""
    unet_evaluations: Count | None = None
    """Pictures times evaluations of the denoiser, with and without gradients; null sets no limit."""
    images_scored: Count | None = None
    """Previews sent to be scored; null sets no limit."""


class CheckpointConfig(Section):
    """What can be resumed."""

    every_updates: Count = 10
    """Updates between checkpoints."""
    keep: Count = 2
    """Checkpoints kept; older ones are deleted."""


class EvaluationConfig(Section):
    """Pictures of held-out prompts, the same seeds before and after."""

    draws: Count = 512
    """Pictures drawn in all."""
    prompts: Literal["evenly", "first"] = "evenly"
    """Which, where there are more than are drawn: evenly from all over the held-out file, or its first."""
    pictures_per_prompt: int = Field(4, ge=2)
    """Pictures of each held-out prompt; two or more, or there is no diversity to measure."""
    every_updates: Whole = 0
    """Updates between evaluations during training; 0 evaluates only before and after."""
    along: Whole = 0
    """Evaluations spread evenly over the run, by updates or by what is spent of the budget."""
    batch_size: Count | None = None
    """Pictures a rank draws at a time; null draws as many as a micro-batch has branches."""
    features: str | None = None
    """CLIP folder or hub id whose image features measure diversity; null measures none."""


class WatchConfig(Section):
    """When held-out pictures say that the training reward is gamed, and what is done then."""

    gap: Positive = 1.0
    """How many standard deviations (of the pictures before training) the training reward may rise further
    than the judge or a shadow."""
    shift: Positive = 2.0
    """How many standard deviations dark share, edge density or colour entropy may move unmentioned."""
    diversity_kept: Share = 0.5
    """Share of the diversity of correct pictures (of all without a judge) below which it counts as lost."""
    on_gap: Literal["report", "stop", "raise_kl"] = "report"
    """report: say so in the report. stop: save and stop. raise_kl: multiply loss.kl_weight. The last two act
    at evaluations during training: set evaluation.every_updates or evaluation.along."""
    kl_factor: float = Field(2.0, gt=1)
    """What raise_kl multiplies by."""


class ControlConfig(Section):
    """Figures of the no-reward control (selection.by=random), measured when a configuration was chosen."""

    accuracy_before: Share
    """Share of held-out pictures that were right before."""
    accuracy_after: Share
    """The same after training with winners drawn at random."""
    reward_before: float
    """Mean training reward of held-out pictures before."""
    reward_after: float
    """The same after."""
    date: str
    """When it was measured."""
    command: str
    """What measured it."""
    note: str = ""
    """Standard errors, seeds, anything a reader must know."""
