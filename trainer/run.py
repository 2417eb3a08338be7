"""A run under way on one rank: what the loop moves forward, a checkpoint keeps and an evaluation measures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from trainer.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from trainer.config import TrainConfig
from trainer.costs import Costs
from trainer.held_out import HeldOut
from trainer.learner import Learner, Lesson
from trainer.policy import Policy
from trainer.prompts import PromptStream, read_prompts
from trainer.ranks import Ranks
from trainer.run_folder import RunFolder
from trainer.scoring import FailureBudget, Scoring

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
    held_out: HeldOut | None = None
    accuracy: float | None = None
    """Of the newest evaluation."""

    def seed(self, place: int) -> int:
        """The seed of a prompt by its place in this update, the same on any number of ranks."""
        return _STRIDE * (self.config.seed + 1) + self.update * self.config.branching.prompts_per_update + place

    def evaluate(self, name: str) -> None:
        """Judge held-out pictures drawn with the averaged weights, and keep them in the run folder."""
        if self.held_out is None:
            return
        with self.costs.timed("evaluation_s"), self.learner.averaged():
            evaluated = self.held_out.evaluate(self.policy, self.update)
        self.accuracy = evaluated.result.accuracy if self.config.rewards.judge else None
        if self.ranks.is_main:
            self.folder.save_evaluation(name, evaluated)

    def checkpoint(self) -> None:
        """Keep everything that the unbroken run would go on with."""
        costs = Costs.of_ranks(self.ranks.gather(self.costs))
        if self.ranks.is_main:
            state = {"stream": self.stream.state_dict(), "costs": asdict(costs)}
            saved = Checkpoint(self.update, {"learner": self.learner.state_dict()}, state)
            save_checkpoint(self.folder.path, saved, keep=self.config.checkpoint.keep)

    def describe(self, lessons: Sequence[tuple[Lesson, dict[str, Tensor]]], before: Costs) -> dict[str, float]:
        """The scalars of one update, over all ranks."""
        spent = self.costs.since(before)
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
            **{name: self.ranks.total(float(value)) / self.ranks.world_size for name, value in mine.items()},
            "stall_fraction": spent.stall_fraction,
            "sampling_s": spent.sampling_s,
            "reward_stall_s": spent.reward_stall_s,
            "learning_s": spent.learning_s,
            **({} if self.accuracy is None else {"accuracy": self.accuracy}),
        }


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
    if config.prompts.held_out is not None:
        run.held_out = HeldOut(config, scoring, ranks)
    if newest is not None:
        saved = load_checkpoint(newest)
        learner.load_state_dict(dict(saved.tensors["learner"]))
        stream.load_state_dict(saved.state["stream"])
        run.update = saved.update
        if ranks.is_main:
            run.costs = Costs(**saved.state["costs"])
    return run


def _nanmean(values: Tensor) -> Tensor:
    return values[values.isfinite()].mean()
