"""Settings of the algorithm: drawing pictures, growing and choosing branches, objective, optimizer."""

from typing import Literal

from pydantic import Field

from trainer.config.file import Count, NotNegative, Positive, Section, Share, Whole


class SamplingConfig(Section):
    """How pictures are drawn from the model, in training, in evaluation and by its users."""

    steps: Count = 20
    """Denoising steps from noise to picture."""
    guidance: NotNegative = 5.0
    """Scale of guidance: classifier-free, where 1 or less is none, or FLUX.1-dev's input; schnell ignores it.
    Branches are learned under it as they were drawn, pictures that are given under none."""
    solver: Literal["ddim", "dpmpp_2m"] = "ddim"
    """How a step follows from what the model says: DDIM (flow matching: Euler), or DPM-Solver++(2M), which
    looks back at the step before and so needs fewer of them; with eta 1 it is DPM++ 2M SDE."""
    eta: Share = 1.0
    """Noise put back at each step, by which branches part: 0 is DDIM (flow matching: Euler), 1 is DDPM."""


class StopConfig(Section):
    """Branches that stop before their end, so that others can be had for the same evaluations."""

    after: Whole
    """The preview step after whose scores branches stop; one of branching.previews, not the last."""
    keep: int = Field(ge=2)
    """Branches of each prompt that go on: those with the highest returns so far; where a method compares the
    best branch with the worst, half of them those with the lowest."""


class BranchingConfig(Section):
    """Which branches grow from a prompt, and where they are looked at."""

    branches: int = Field(4, ge=2)
    """Branches grown from each prompt."""
    start: Whole = 0
    """Step by whose noise the branches part from a shared trunk; 0 gives each a first noise of its own."""
    end: Count | None = None
    """Steps after which branches end, by their x̂0 there, as the paper's do after m from where they part
    (Algorithm 2); null grows them to finished pictures."""
    previews: tuple[int, ...] = Field((-1,), min_length=1)
    """Steps whose x̂0 is decoded and scored, from 0; negative numbers count from the last step taken."""
    prompts_per_update: Count = 8
    """Prompts of one update, all ranks together."""
    prompts_per_micro_batch: Count = 4
    """Prompts a rank samples at a time; while one micro-batch is scored the next is sampled."""
    stop: StopConfig | None = None
    """Which branches stop on the way; null lets all grow to their end."""

    @property
    def shared_steps(self) -> int:
        """Steps whose evaluation all branches of a prompt share."""
        return self.start + 1 if self.start else 0


class SelectionConfig(Section):
    """Which branches the model learns from."""

    by: Literal["reward", "random"] = "reward"
    """reward, or the no-reward control: the same run with winners drawn at random."""
    temperature: NotNegative = 0.0
    """0 takes the best branch; above 0 weights are proportional to exp(return / temperature). Methods that
    compare two branches draw in each optimizer step who wins by these, who loses by those of -return."""
    effective_branches: float | None = Field(None, ge=1)
    """How many branches the weights of a prompt amount to, 1 / sum of their squares: the temperature of each
    prompt is the one that makes it so. null leaves selection.temperature to say it."""


class LossConfig(Section):
    """The objective."""

    beta: Positive = 1.0
    """Strength of the preference, per unit of mean squared denoising error (rlhf_sharpening, diffusion_dpo)
    or of log-probability (d3po); how far implicit policies lie from the one that sampled (diffusion_nft)."""
    margin: Literal["inside", "none"] = "inside"
    """Whether the difference of returns enters the preference loss (rlhf_sharpening; Eq. 11 of the paper)."""
    clip_range: Positive = 0.2
    """How far a step's probability ratio may leave 1 and still be pushed on (ddpo, grpo)."""
    kl_weight: NotNegative = 0.0
    """Weight of the divergence from the reference: the squared difference of outputs, or where steps have
    log-probabilities (ddpo, grpo, d3po) the KL divergence of a step."""
    baseline: bool = False
    """Whether SFT weights are centred, so that what all branches of a prompt share is not learned."""
    states: Literal["visited", "renoised"] | None = None
    """Learn at states the branch visited, or at its finished latents noised anew (Eq. 9's expectation); null
    takes what the method is made for, for sharpening visited. Other methods know one of them only."""
    states_per_branch: Count = 3
    """Visited states of a chosen branch that one optimizer step replays: the paper's path length m."""
    replayed_steps: tuple[Whole, Count] | None = None
    """First step and the one after the last whose states may be replayed; null takes all."""
    branches_per_micro_batch: Count = 64
    """Branches replayed at a time, of methods that compare two at least a pair; bounds the memory of
    activations."""


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    moments: Literal["float32", "8-bit"] = "float32"
    """How AdamW keeps its moments; 8-bit needs bitsandbytes, and takes a quarter of the memory."""
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
