"""Every setting of a training run: type, unit, range and meaning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import Field, model_validator

from trainer.config_file import ConfigError, Count, NotNegative, Positive, Section, Share, Whole, load
from trainer.model_config import ModelConfig

__all__ = ["ConfigError", "TrainConfig", "load_config", "save_config"]


class PromptsConfig(Section):
    """Prompt files: .txt (one a line), .jsonl ({"prompt": ...}) or .csv (column prompt)."""

    train: Path
    """Prompts to train on."""
    held_out: Path | None = None
    """Prompts to evaluate on; null evaluates nothing."""


class SamplingConfig(Section):
    """How pictures are drawn from the model, in training, in evaluation and by its users."""

    steps: Count = 20
    """Denoising steps from noise to picture."""
    guidance: NotNegative = 5.0
    """Scale of guidance, 1 none: classifier-free, or a distilled model's input; FLUX.1-schnell ignores it."""
    eta: Share = 1.0
    """Noise put back at each step, by which branches part: 0 is DDIM (flow matching: Euler), 1 is DDPM."""


class BranchingConfig(Section):
    """Which branches grow from a prompt, and where they are looked at."""

    branches: int = Field(4, ge=2)
    """Branches grown from each prompt."""
    start: Whole = 0
    """Step at which the branches part from a shared trunk; 0 gives each a first noise of its own."""
    previews: tuple[int, ...] = Field((-1,), min_length=1)
    """Steps whose x̂0 is decoded and scored, from 0; negative numbers count from the last step."""
    prompts_per_update: Count = 8
    """Prompts of one update, all ranks together."""
    prompts_per_micro_batch: Count = 4
    """Prompts a rank samples at a time; while one micro-batch is scored the next is sampled."""


class RewardsConfig(Section):
    """Where scores come from, what they weigh, and what a failed one means."""

    services: Path | None = None
    """Reward services to start in the run's own cluster (a rewards.yaml); excludes url."""
    url: str | None = None
    """Address of reward services that run elsewhere, such as http://rewards:8000; excludes services."""
    weights: dict[str, float] = Field(min_length=1)
    """Weight of each training reward in the score of a preview."""
    judge: str | None = None
    """Reward that judges held-out pictures before and after, and is never trained on."""
    deadline_s: Positive = 60.0
    """Time until a scoring request counts as failed, its retries included."""
    on_failure: Literal["drop_branch", "drop_prompt", "stop"] = "drop_branch"
    """What an update does without a score that it needs."""
    failure_budget: Share = 0.05
    """Share of a run's scores that may fail before it stops; unless it is 0, the first 16 never stop it."""
    ready_timeout_s: Positive = 300.0
    """Time the reward services have to become ready."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.services is None) == (self.url is None):
            raise ValueError("set one of services (a rewards.yaml) and url (services that run elsewhere)")
        if self.judge in self.weights:
            raise ValueError(f"the judge {self.judge!r} is also a training reward; take it out of weights")
        return self


class SelectionConfig(Section):
    """Which branches the model learns from."""

    by: Literal["reward", "random"] = "reward"
    """reward, or the no-reward control: the same run with winners drawn at random."""
    temperature: NotNegative = 0.0
    """0 takes the best branch; above 0 weights are proportional to exp(return / temperature)."""


class LossConfig(Section):
    """The objective."""

    beta: Positive = 1.0
    """Strength of the preference, per unit of mean squared denoising error (rlhf_sharpening)."""
    margin: Literal["inside", "none"] = "inside"
    """Whether the difference of returns enters the preference loss (Eq. 11 of the paper)."""
    kl_weight: NotNegative = 0.0
    """Weight of the squared difference between the policy's output and the reference's."""
    baseline: bool = False
    """Whether SFT weights are centred, so that what all branches of a prompt share is not learned."""
    states: Literal["visited", "renoised"] = "visited"
    """Learn at states the branch visited, or at its finished latents noised anew (Eq. 9's expectation)."""
    states_per_branch: Count = 3
    """Visited states of a chosen branch that one optimizer step replays: the paper's path length m."""
    replayed_steps: tuple[Whole, Count] | None = None
    """First step and the one after the last whose states may be replayed; null takes all."""
    branches_per_micro_batch: int = Field(64, ge=2)
    """Branches replayed at a time; bounds the memory of activations."""


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    lr: Positive = 1e-4
    """Learning rate after the warm-up."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decays of the two moments."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay."""
    warmup_steps: Whole = 0
    """Optimizer steps in which the learning rate rises from 0."""
    decay: Literal["none", "linear"] = "none"
    """How the learning rate falls, reaching 0 at the end of the run."""
    max_grad_norm: Positive = 1.0
    """Norm to which gradients are clipped."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of the averaged weights that are evaluated and saved; 0 averages nothing."""
    steps_per_update: Count = 1
    """Optimizer steps taken from the branches of one update; 1 is strictly on-policy."""


class RanksConfig(Section):
    """The processes that sample and learn."""

    workers: Count = 1
    """Trainer ranks."""
    cpus_per_worker: Positive = 1.0
    """CPU cores reserved for each rank."""
    gpus_per_worker: NotNegative = 0.0
    """GPUs reserved for each rank."""
    torch_threads: Count = 1
    """CPU threads of torch in each rank."""
    max_failures: Whole = 3
    """Times the ranks are started again from the last checkpoint after one died."""


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
    pictures_per_prompt: int = Field(4, ge=2)
    """Pictures of each held-out prompt; two or more, or there is no diversity to measure."""
    every_updates: Whole = 0
    """Updates between evaluations during training; 0 evaluates only before and after."""
    batch_size: Count = 64
    """Pictures drawn at a time."""
    features: str | None = None
    """CLIP folder or hub id whose image features measure diversity; null measures none."""


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


class TrainConfig(Section):
    """A whole run."""

    method: Literal["sft_sharpening", "rlhf_sharpening"] = "rlhf_sharpening"
    """Learn the best branch (SFT-Sharpening) or best against worst (RLHF-Sharpening)."""
    seed: Whole = 0
    """Seed of prompts, noise, adapters and random selection."""
    updates: Count = 100
    """Rounds of sampling, scoring and learning; each takes optimizer.steps_per_update optimizer steps."""
    run_folder: Path = Path("runs/sharpen")
    """Where metrics, checkpoints, the trained model and the report go."""
    model: ModelConfig
    """The model to sharpen."""
    prompts: PromptsConfig
    """Prompt files."""
    rewards: RewardsConfig
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
    control: ControlConfig | None = None
    """What this configuration's no-reward control gave; shown beside the run's own figures."""
    trackers: tuple[Literal["tensorboard"], ...] = ("tensorboard",)
    """Where metrics go besides metrics.jsonl."""

    @property
    def preview_steps(self) -> tuple[int, ...]:
        """The scored steps, counted from 0, in order, each once."""
        return tuple(sorted({step % self.sampling.steps for step in self.branching.previews}))

    @property
    def replayed_steps(self) -> tuple[int, int]:
        """First step and the one after the last whose states may be replayed."""
        return self.loss.replayed_steps or (self.branching.start, self.sampling.steps)

    @model_validator(mode="after")
    def _check(self) -> Self:
        steps, branching = self.sampling.steps, self.branching
        if not all(-steps <= step < steps for step in branching.previews):
            raise ValueError(f"branching.previews must lie within the {steps} steps: {-steps} to {steps - 1}")
        if self.preview_steps[0] < branching.start:
            raise ValueError(
                "branching.previews must not come before branching.start: branches are one until then"
            )
        if branching.start > 0 and self.sampling.eta == 0:
            raise ValueError(
                "branches that part on the way need noise: set sampling.eta > 0 or branching.start = 0"
            )
        first, last = self.replayed_steps
        if not branching.start <= first < last <= steps:
            raise ValueError(f"loss.replayed_steps must lie between branching.start and the {steps} steps")
        if branching.prompts_per_update % self.ranks.workers:
            raise ValueError("branching.prompts_per_update must be a multiple of ranks.workers")
        if self.evaluation.draws % self.evaluation.pictures_per_prompt:
            raise ValueError("evaluation.draws must be a multiple of evaluation.pictures_per_prompt")
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file, apply `a.b=value` overrides (values are YAML) and check the whole.

    Raises ConfigError, one line for each wrong key.
    """
    return load(TrainConfig, path, overrides)


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration, defaults included, as YAML that `load_config` reads back."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
