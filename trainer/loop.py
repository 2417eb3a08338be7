"""The loop: prompts to branches, branches to scores, scores to a selection, the selection to better weights.

    prompts ─▶ micro-batch: grow branches (no gradients) ─▶ previews ─▶ scoring (other processes)
                  │ the next micro-batch grows meanwhile                   │
                  ▼                                                       ▼
               branches ──────────────────────────────▶ path returns, selection ─▶ replay with gradients ─▶ step

The only wait is for the scores of the last micro-batches: `reward_stall_s`. Every rank runs this same function on its
share of the prompts. Ranks meet where gradients are summed, where they agree to stop, and in evaluations.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from trainer.branches import Branches, grow, step_noise
from trainer.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from trainer.config import TrainConfig
from trainer.costs import Costs, peak_memory_bytes
from trainer.held_out import Evaluated, HeldOut
from trainer.learner import Learner, Lesson
from trainer.metrics import MetricsLog
from trainer.path_integral import Selection, combine, path_returns, select
from trainer.policy import Policy
from trainer.prompts import PromptStream, read_prompts
from trainer.ranks import Ranks
from trainer.records import Prompt
from trainer.run_folder import RunFolder
from trainer.scoring import FailureBudget, Scoring, TooManyFailures, drop_prompts, submit_previews

_STRIDE = 1_000_003
"""Seeds of two runs do not overlap below so many prompts."""


@dataclass(slots=True)
class Run:
    """A run under way on one rank: what the loop moves forward and a checkpoint keeps."""

    config: TrainConfig
    policy: Policy
    learner: Learner
    stream: PromptStream
    scoring: Scoring
    ranks: Ranks
    folder: RunFolder
    budget: FailureBudget
    costs: Costs = field(default_factory=Costs)
    update: int = 0
    evaluated: Evaluated | None = None
    """The newest evaluation."""

    def seed(self, place: int) -> int:
        """The seed of a prompt by its place in this update, the same on any number of ranks."""
        return _STRIDE * (self.config.seed + 1) + self.update * self.config.branching.prompts_per_update + place


def start(config: TrainConfig, *, scoring: Scoring, ranks: Ranks, device: torch.device) -> Run:
    """Load model and prompts, and continue from the run folder's newest checkpoint if there is one."""
    torch.manual_seed(config.seed)
    policy = Policy.load(config.model, device)
    stream = PromptStream(
        read_prompts(config.prompts.train), seed=config.seed, rank=ranks.rank, world_size=ranks.world_size
    )
    learner = Learner(policy, config, ranks)
    budget = FailureBudget(config.rewards.failure_budget, stop_at_once=config.rewards.on_failure == "stop")
    run = Run(config, policy, learner, stream, scoring, ranks, RunFolder(config.run_folder), budget)
    newest = latest_checkpoint(config.run_folder)
    if newest is not None:
        saved = load_checkpoint(newest)
        learner.load_state_dict(dict(saved.tensors["learner"]))
        stream.load_state_dict(saved.state["stream"])
        run.update = saved.update
        if ranks.is_main:
            run.costs = Costs(**saved.state["costs"])
    return run


def train(run: Run, held_out: HeldOut | None) -> bool:
    """Make updates until the last one or until somebody asks to stop; returns whether the run is finished."""
    config, ranks = run.config, run.ranks
    if held_out and run.update == 0:
        evaluate(run, held_out, "before")
    with MetricsLog(run.folder.path, resumed_update=run.update, rank=ranks.rank) as log:
        while run.update < config.updates and not ranks.agree(run.folder.stop_requested):
            before = copy.copy(run.costs)
            lessons = sample(run)
            with run.costs.timed("learning_s"):
                learned = run.learner.learn([lesson for lesson, _ in lessons], run.seed(0))
            run.update += 1
            log.record(run.update, {**describe(run, lessons, before), **learned})
            if ranks.is_main and run.update in (1, config.updates):
                run.folder.save_trees(run.update, *lessons[0])
            if run.update % config.checkpoint.every_updates == 0 or run.update == config.updates:
                checkpoint(run)
    finished = run.update == config.updates
    if not finished:
        checkpoint(run)
    elif held_out:
        evaluate(run, held_out, "after")
    return finished


def sample(run: Run) -> list[tuple[Lesson, dict[str, Tensor]]]:
    """Grow the branches of one update and select among them; each micro-batch is scored while the next one grows."""
    config, waiting = run.config, []
    branching, rewards = config.branching, list(config.rewards.weights)
    share = branching.prompts_per_update // run.ranks.world_size
    prompts = run.stream.take(share)
    with run.costs.timed("sampling_s"):
        for first in range(0, share, branching.prompts_per_micro_batch):
            micro = prompts[first : first + branching.prompts_per_micro_batch]
            seeds = [run.seed(run.ranks.rank * share + first + place) for place in range(len(micro))]
            branches = grow_branches(run, micro, seeds)
            waiting.append((branches, seeds, submit_previews(run.scoring, branches, rewards, run.budget)))
    with run.costs.timed("reward_stall_s"):
        scored = [(branches, seeds, wait()) for branches, seeds, wait in waiting]
    if reason := run.ranks.any(run.budget.exhausted):
        raise TooManyFailures(reason)
    return [(Lesson(branches, choose(config, scores, seeds)), scores) for branches, seeds, scores in scored]


def grow_branches(run: Run, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Branches:
    """One micro-batch of branches from their seeds."""
    config = run.config
    noise = step_noise(
        run.policy.latent_shape, branches=config.branching.branches, steps=config.sampling.steps, seeds=seeds
    )
    branches = grow(
        run.policy,
        run.policy.schedule(config.sampling.steps),
        prompts,
        noise,
        guidance=config.sampling.guidance,
        eta=config.branching.eta,
        start=config.branching.start,
        previews=config.branching.previews,
    )
    run.costs.unet_evaluations += branches.unet_evaluations
    run.costs.images_scored += sum(pictures[..., 0, 0, 0].size for pictures in branches.previews.values())
    return branches


def choose(config: TrainConfig, scores: Mapping[str, Tensor], seeds: Sequence[int]) -> Selection:
    """Scores of a micro-batch, {reward: (P, K, T)}, to what it teaches."""
    combined = combine(scores, config.rewards.weights)
    if config.rewards.on_failure == "drop_prompt":
        combined = drop_prompts(combined)
    generator = torch.Generator().manual_seed(seeds[0])
    options = config.selection
    return select(path_returns(combined), temperature=options.temperature, by=options.by, generator=generator)


def evaluate(run: Run, held_out: HeldOut, name: str) -> None:
    """Judge held-out pictures drawn with the averaged weights, and keep them in the run folder."""
    with run.costs.timed("evaluation_s"):
        run.learner.swap_average()
        run.evaluated = held_out.evaluate(run.policy, run.update)
        run.learner.swap_average()
    if run.ranks.is_main:
        run.folder.save_evaluation(name, run.evaluated)


def checkpoint(run: Run) -> None:
    """Keep everything that the unbroken run would go on with."""
    costs = Costs.of_ranks(run.ranks.gather(run.costs))
    if run.ranks.is_main:
        state = {"stream": run.stream.state_dict(), "costs": asdict(costs)}
        saved = Checkpoint(run.update, {"learner": run.learner.state_dict()}, state)
        save_checkpoint(run.folder.path, saved, keep=run.config.checkpoint.keep)


def describe(run: Run, lessons: Sequence[tuple[Lesson, dict[str, Tensor]]], before: Costs) -> dict[str, float]:
    """The scalars of one update, over all ranks."""
    spent = run.costs.since(before)
    returns_PK = torch.cat([lesson.selection.returns_PK for lesson, _ in lessons])
    selections = [lesson.selection for lesson, _ in lessons]
    mine = {
        "reward": returns_PK.nanmean(),
        "reward_best": _nanmean(returns_PK.nan_to_num(-torch.inf).amax(1)),
        "reward_worst": _nanmean(returns_PK.nan_to_num(torch.inf).amin(1)),
        "effective_sample_size": torch.cat([chosen.effective_sample_size_P for chosen in selections]).mean(),
        "prompts_dropped": torch.cat([~chosen.valid_P for chosen in selections]).float().mean(),
        **{f"score/{name}": _nanmean(torch.cat([scores[name] for _, scores in lessons])) for name in lessons[0][1]},
    }
    return {
        **{name: run.ranks.total(float(value)) / run.ranks.world_size for name, value in mine.items()},
        "stall_fraction": spent.stall_fraction,
        "sampling_s": spent.sampling_s,
        "reward_stall_s": spent.reward_stall_s,
        "learning_s": spent.learning_s,
    }


def _nanmean(values: Tensor) -> Tensor:
    return values[values.isfinite()].mean()
