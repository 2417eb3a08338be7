"""A run under way on one rank: what the loop moves forward, a checkpoint keeps and an evaluation measures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from trainer.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from trainer.config import TrainConfig
from trainer.costs import Costs, Devices, budgeted, panel
from trainer.data.prompts import PromptStream, read_prompts
from trainer.evaluation import EvaluationResult
from trainer.given import GivenStream, open_stream
from trainer.held_out import HeldOut
from trainer.learner import Learner
from trainer.policy import Policy
from trainer.ranks import Ranks
from trainer.replay import Lesson
from trainer.run_folder import RunFolder
from trainer.scoring import FailureBudget, Scoring
from trainer.trackers import Trackers

_COUNTERS = ("reward_calls", "cache_hits")
_SHOWN = 8
"""Held-out pictures that trackers get."""
_STRIDE = 1_000_003
"""Seeds of two runs do not overlap below so many prompts."""


@dataclass(slots=True)
class Run:
    """A run under way on one rank: what the loop moves forward and a checkpoint keeps."""

    config: TrainConfig
    policy: Policy
    learner: Learner
    stream: PromptStream | GivenStream
    scoring: Scoring
    ranks: Ranks
    folder: RunFolder
    budget: FailureBudget
    held_out: HeldOut | None = None
    trackers: Trackers | None = None
    """While updates are made, on rank 0."""
    update: int = 0
    accuracy: float | None = None
    """Of the newest evaluation."""
    costs: Costs = field(default_factory=Costs)
    """Of this rank, since its newest update was accounted for."""
    earlier: Costs = field(default_factory=Costs)
    """Of all ranks, up to there."""
    carried: Costs = field(default_factory=Costs)
    """Of all ranks, since that update and before the checkpoint that the run goes on from."""
    due: str | None = None
    """An evaluation on the way that the newest update is still to have, by its name."""
    left_out: frozenset[int] = frozenset()
    """Rows of the data that were left out, whichever rank met them, up to the newest update."""
    calls_counted: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTERS, 0))
    """What the scoring's counters said when they were last read."""

    def seed(self, place: int) -> int:
        """The seed of a prompt by its place in this update, the same on any number of ranks."""
        return (
            _STRIDE * (self.config.seed + 1) + self.update * self.config.branching.prompts_per_update + place
        )

    def evaluate(self, name: str) -> EvaluationResult | None:
        """Judge held-out pictures drawn with the averaged weights, and keep them in the run folder.

        All ranks call it, and all have the result; None without held-out prompts.

        Raises:
            Halted: as `HeldOut.evaluate` says.
        """
        if self.held_out is None:
            return None
        with self.costs.timed("evaluation_s"), self.learner.averaged():
            evaluated = self.held_out.evaluate(self.policy, self.update)
        self.accuracy = evaluated.result.accuracy if self.config.rewards.judge else None
        spent = self._spent_so_far()
        evaluated = replace(evaluated, result=replace(evaluated.result, spent=budgeted(spent)))
        if self.ranks.is_main:
            self.folder.save_evaluation(name, evaluated)
        if self.trackers:
            reward = evaluated.result.reward(self.config.rewards.weights)
            self.trackers.record(self.update, {"held_out/reward": reward, **evaluated.result.scalars()})
            of_prompts = slice(None, None, self.config.evaluation.pictures_per_prompt)
            shown = list(zip(evaluated.result.prompts, evaluated.pictures))[of_prompts][:_SHOWN]
            self.trackers.show(self.update, shown)
        return evaluated.result

    def untrained(self) -> EvaluationResult:
        """The evaluation before training. All ranks call it."""
        result = self.folder.load_evaluation("before") if self.ranks.is_main else None
        return next(result for result in self.ranks.gather(result) if result is not None)

    def progress(self) -> float:
        """Share of the run that is made, of updates or of a budget; at 1 it is over. All ranks call it."""
        shares = [self.update / self.config.updates]
        limits = self.config.budget.model_dump(exclude_none=True)
        if limits:
            spent = budgeted(self._spent_so_far())
            shares += [spent[name] / limit for name, limit in limits.items()]
        return max(shares)

    def spent(self) -> Costs:
        """What all ranks have spent since the run began, less what a crash undid. All ranks call it."""
        if self.ranks.is_main:
            self._count_calls()
        return self._spent_so_far()

    def checkpoint(self) -> None:
        """Keep everything that the unbroken run would go on with. All ranks call it."""
        if self.ranks.is_main:
            self._count_calls()
        tensors = {"learner": self.learner.state_dict()}
        state = {
            "stream": self.stream.state_dict(),
            "costs": asdict(self.earlier),
            "carried": asdict(self._unaccounted()),
            "accuracy": self.accuracy,
            "due": self.due,
            "left_out": sorted(self.left_out),
        }
        saved = Checkpoint(self.update, tensors, state)
        save_checkpoint(self.folder.path, saved, keep=self.config.checkpoint.keep, ranks=self.ranks)

    @property
    def devices(self) -> Devices:
        """What ranks and rewards reserve; of the ranks alone where rewards run elsewhere."""
        options = self.config.ranks
        of_rank = Devices(options.gpus_per_worker, options.cpus_per_worker)
        return of_rank * self.ranks.world_size + (self.scoring.devices or Devices())

    def account(self, lessons: Sequence[tuple[Lesson, dict[str, Tensor]]]) -> dict[str, float]:
        """The scalars of an update that was made, and the cost panel since the one before. All ranks call it.

        Scalars are means over all ranks' values. An evaluation before an update counts among its costs.
        """
        if not isinstance(self.stream, PromptStream):
            self.costs.images_given += sum(lesson.selection.weights_PK.numel() for lesson, _ in lessons)
        if self.ranks.is_main:
            self._count_calls()
        gathered = self.ranks.gather((_totals(lessons), self.costs, self.stream.left_out))
        spent = self.carried + Costs.of_ranks([of_rank for _, of_rank, _ in gathered])
        self.earlier, self.carried, self.costs = self.earlier + spent, Costs(), Costs()
        self.left_out = self.left_out.union(*(met for _, _, met in gathered))
        return {
            **_means([totals for totals, _, _ in gathered]),
            **panel(spent, self.devices),
            "rows_left_out": len(self.left_out),
            **({} if self.accuracy is None else {"accuracy": self.accuracy}),
        }

    def restore(self, saved: Checkpoint) -> None:
        """Continue where a checkpoint was made, on any number of ranks."""
        self.learner.load_state_dict(dict(saved.tensors["learner"]))
        self.stream.load_state_dict(saved.state["stream"])
        self.update = saved.update
        self.accuracy = saved.state["accuracy"]
        self.earlier = Costs(**saved.state["costs"])
        self.carried = Costs(**saved.state.get("carried", {}))
        self.due = saved.state.get("due")
        self.left_out = frozenset(saved.state.get("left_out", ()))

    def _spent_so_far(self) -> Costs:
        return self.earlier + self._unaccounted()

    def _unaccounted(self) -> Costs:
        return self.carried + Costs.of_ranks(self.ranks.gather(self.costs))

    def _count_calls(self) -> None:
        stats = self.scoring.stats()
        for name, counted in self.calls_counted.items():
            now = int(stats.get(name, 0))
            # Whoever counts them may have been started again, and then counts from nothing.
            setattr(self.costs, name, getattr(self.costs, name) + (now - counted if now >= counted else now))
            self.calls_counted[name] = now


def start(config: TrainConfig, *, scoring: Scoring, ranks: Ranks, device: torch.device) -> Run:
    """Load model and prompts, and continue from the run folder's newest checkpoint if there is one.

    Raises:
        ValueError, OSError: model, prompts, features of the evaluation or checkpoint cannot be used.
    """
    newest = latest_checkpoint(config.run_folder, ranks)  # ranks meet for it, so before one can fail alone
    torch.manual_seed(config.seed)
    sharded = config.ranks.sharding == "full" and ranks.world_size > 1
    policy = Policy.load(config.model, device, sharded=sharded)
    counters = scoring.stats() if ranks.is_main else {}
    run = Run(
        config=config,
        policy=policy,
        learner=Learner(policy, config, ranks),
        stream=_stream(config, policy, ranks),
        scoring=scoring,
        ranks=ranks,
        folder=RunFolder(config.run_folder),
        budget=FailureBudget(config.rewards.failure_budget, stop_at_once=config.rewards.on_failure == "stop"),
        held_out=HeldOut(config, scoring, ranks) if config.prompts.held_out else None,
        calls_counted={name: int(counters.get(name, 0)) for name in _COUNTERS},
    )
    if newest is not None:
        run.restore(newest)
    return run


def _stream(config: TrainConfig, policy: Policy, ranks: Ranks) -> PromptStream | GivenStream:
    """What the run learns from: pictures that are given, or prompts of which it draws some."""
    if config.data is not None:
        return open_stream(config, config.data, policy, ranks)
    prompts = read_prompts(str(config.prompts.train), strict=config.prompts.strict)
    return PromptStream(prompts, seed=config.seed, left_out=prompts.left_out)


def _totals(lessons: Sequence[tuple[Lesson, dict[str, Tensor]]]) -> dict[str, tuple[float, int]]:
    """Sum and count of each scalar's values on this rank."""
    selections = [lesson.selection for lesson, _ in lessons]
    returns_PK = torch.cat([selection.returns_PK for selection in selections])
    values = {
        "reward": returns_PK,
        "reward_best": returns_PK.nan_to_num(-torch.inf).amax(1),
        "reward_worst": returns_PK.nan_to_num(torch.inf).amin(1),
        "effective_sample_size": torch.cat([selection.effective_sample_size_P for selection in selections]),
        "prompts_dropped": torch.cat([~selection.valid_P for selection in selections]),
    }
    for name in lessons[0][1]:
        values[f"score/{name}"] = torch.cat([scores[name] for _, scores in lessons])
    return {name: _sum_and_count(of_name) for name, of_name in values.items()}


def _sum_and_count(values: Tensor) -> tuple[float, int]:
    known = values[values.isfinite()].double()
    return float(known.sum()), known.numel()


def _means(of_ranks: Sequence[Mapping[str, tuple[float, int]]]) -> dict[str, float]:
    """Mean of each name over the ranks' values; NaN where there is none."""
    totals = {name: [sum(part) for part in zip(*(one[name] for one in of_ranks))] for name in of_ranks[0]}
    return {name: total / count if count else math.nan for name, (total, count) in totals.items()}
