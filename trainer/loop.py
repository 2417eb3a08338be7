"""The loop: prompts to branches, branches to scores, scores to a selection, the selection to better weights.

  prompts ─▶ micro-batch: grow branches (no gradients) ─▶ previews ─▶ scoring (other processes)
                │ the next micro-batch grows meanwhile                   │
                ▼                                                       ▼
             branches ─────────────────────────────▶ path returns, selection ─▶ replay with gradients ─▶ step

The only wait is for the scores of the last micro-batches: `reward_stall_s`. Every rank runs this same
function on its share of the prompts. Ranks meet where gradients are summed, where they agree to stop or that
they cannot go on, and in evaluations.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor

from reward_services import RewardError
from trainer.branches import Diverged
from trainer.config import TrainConfig
from trainer.data.files import DataError
from trainer.data.prompts import PromptStream
from trainer.evaluation import EvaluationResult
from trainer.given import Given, GivenStream, lesson_of
from trainer.growing import Growing
from trainer.metrics import MetricsLog
from trainer.ranks import Halted, Ranks, ScoresMissing
from trainer.replay import Lesson
from trainer.reward_hacking import watch
from trainer.run import Run, start
from trainer.run_folder import RunFolder
from trainer.scoring import Scoring, TooManyFailures, submit_previews
from trainer.summary import finish
from trainer.trackers import Trackers


def run(config: TrainConfig, *, scoring: Scoring, ranks: Ranks, device: torch.device) -> bool:
    """All that one rank does, from loading the model to saving it; returns whether the run is finished.

    Where no rank can go on, the reason is left in the run folder: what is raised here is worth another try.
    """
    try:
        with ranks.together(ValueError, OSError, RewardError):
            current = start(config, scoring=scoring, ranks=ranks, device=device)
        finished = train(current)
    except Halted as halt:
        if ranks.is_main:
            RunFolder(config.run_folder).give_up(str(halt))
        return False
    if finished:
        finish(current)
    return finished


def train(run: Run) -> bool:
    """Make updates until the last one or until somebody asks to stop; returns whether the run is finished.

    Raises:
        Halted: scores are missing, or a reward is gamed: the updates so far are in a checkpoint. Or the model
            diverged: the checkpoints stay as they are.
    """
    config, ranks = run.config, run.ranks
    run.trackers = Trackers(config, run.update) if ranks.is_main else None
    at = run.update
    with MetricsLog(run.folder.path, resumed_update=at, rank=ranks.rank, trackers=run.trackers) as log:
        if run.update == 0:
            run.evaluate("before")
        progress = run.progress()
        if run.due and progress < 1:
            evaluate_due(run, run.due)
        while progress < 1 and not ranks.agree(run.folder.stop_requested):
            advance(run, log, progress)
            before, progress = progress, run.progress()
            evaluate_along(run, before, progress)
            if run.update % config.checkpoint.every_updates == 0 or progress >= 1:
                run.checkpoint()
        if progress < 1:
            run.checkpoint()
            return False
        run.evaluate("after")
    return True


def evaluate_along(run: Run, before: float, now: float) -> None:
    """Evaluate where it is due after an update, which brought the run's progress from `before` to `now`.

    Once, whatever it is due for; and not after the last update, which the evaluation `after` is of.
    """
    options, stretches = run.config.evaluation, run.config.evaluation.along + 1
    point = int(now * stretches)
    if now >= 1:
        return
    if options.every_updates and run.update % options.every_updates == 0:
        evaluate_due(run, f"update-{run.update:06d}")
    elif int(before * stretches) < point:
        evaluate_due(run, f"along-{point:02d}")


def evaluate_due(run: Run, name: str) -> None:
    """Evaluate on the way, and heed what is found. All ranks call it.

    Raises:
        Halted: scores are missing: the updates so far are in a checkpoint, by which the evaluation is still
            due. Or as `heed` says, or the model draws what is no picture.
    """
    run.due = name
    try:
        result = run.evaluate(name)
    except ScoresMissing:
        run.checkpoint()
        raise
    run.due = None
    heed(run, result)


def heed(run: Run, result: EvaluationResult | None) -> None:
    """Where the training reward rises alone, do what was set for that. All ranks call it.

    Raises:
        Halted: the run is to stop; the updates made so far are in a checkpoint.
    """
    options = run.config.watch
    if options.on_gap == "report" or result is None:
        return
    gaps = watch(run.untrained(), result, run.config.rewards, options).gaps
    if gaps and options.on_gap == "raise_kl":
        run.learner.kl_weight *= options.kl_factor
    elif gaps:
        run.checkpoint()
        raise Halted(
            f"after {run.update} updates {'; '.join(gaps)}. The updates are saved: look at evaluations/ and "
            "change rewards, or go on by the same command with --set watch.on_gap=report"
        )


def advance(run: Run, log: MetricsLog, progress: float = 0.0) -> None:
    """Make one update; the learning rate falls with the run's progress before it.

    Raises:
        Halted: too many scores failed, or the model diverged.
    """
    lessons = sample(run)
    with run.costs.timed("learning_s"):
        learned = run.learner.learn([lesson for lesson, _ in lessons], progress)
    run.costs.unet_evaluations += run.learner.unet_evaluations
    run.update += 1
    log.record(run.update, {**run.account(lessons), **learned}, run.scoring.revisions())
    if run.ranks.is_main and lessons[0][1] and run.update in (1, run.config.updates):
        run.folder.save_trees(run.update, *lessons[0])


def sample(run: Run) -> list[tuple[Lesson, dict[str, Tensor]]]:
    """What one update learns: branches grown and selected among, or pictures that are given.

    Raises:
        Halted: as `take` and `explore` say.
    """
    if isinstance(run.stream, PromptStream):
        return explore(run, run.stream)
    return [(lesson, {}) for lesson in take(run, run.stream)]


@contextmanager
def kept(run: Run) -> Iterator[None]:
    """Where this block ends the run, what was taken is given back and the updates so far are saved."""
    place = run.stream.state_dict()
    try:
        yield
    except Halted:
        run.stream.load_state_dict(place)
        run.checkpoint()
        raise


def take(run: Run, stream: GivenStream) -> list[Lesson]:
    """The next given pictures, in micro-batches: this rank's share of them, as seeds are shared.

    Raises:
        Halted: rows cannot be used, before which the pictures are given back and a checkpoint is made.
    """
    batches = list(micro_batches(run))
    with kept(run), run.ranks.together(DataError), run.costs.timed("sampling_s"):
        items: Iterator[Given] = iter(stream.take(sum(map(len, batches))))
        return [lesson_of(run.policy, list(islice(items, len(seeds))), seeds) for seeds in batches]


def micro_batches(run: Run) -> Iterator[tuple[int, ...]]:
    """The seeds of this rank's prompts in this update, one for each, by micro-batch."""
    count, size = run.config.branching.prompts_per_update, run.config.branching.prompts_per_micro_batch
    places = range(count)[run.ranks.share(count)]
    for first in range(0, len(places), size):
        yield tuple(run.seed(place) for place in places[first : first + size])


def explore(run: Run, stream: PromptStream) -> list[tuple[Lesson, dict[str, Tensor]]]:
    """Grow the branches of one update and select among them; micro-batches are scored while others grow.

    Raises:
        Halted: too many scores failed, before which the prompts are given back and a checkpoint is made; or
            the model draws what is no picture, and the checkpoints stay as they are.
    """
    config, count = run.config, run.config.branching.prompts_per_update
    with kept(run):
        prompts = iter(stream.take(count)[run.ranks.share(count)])
        growing = [
            Growing(config, list(islice(prompts, len(seeds))), seeds, keeps_previews=number == 0)
            for number, seeds in enumerate(micro_batches(run))  # the first may be shown
        ]
        for until in config.stages:
            grow_and_score(run, growing, until)
    lessons = [of_prompts.lesson() for of_prompts in growing]
    with run.ranks.together(Diverged):
        for lesson, _ in lessons:
            lesson.branches.check_finite()
    return lessons


def grow_and_score(run: Run, growing: Sequence[Growing], until: int) -> None:
    """Grow all branches to a step and have what they become there scored.

    Raises:
        Halted: too many scores failed, here or on another rank.
    """
    rewards, waiting = list(run.config.rewards.weights), []
    with run.costs.timed("sampling_s"), run.policy.sampling():
        for of_prompts in growing:
            steps = of_prompts.grow(run.policy, until)
            waiting.append(submit_previews(run.scoring, steps, rewards, run.budget))
            run.costs.unet_evaluations += steps.unet_evaluations
            run.costs.decoding_s += steps.decoding_s
            run.costs.sampling_s -= steps.decoding_s  # the phase that is being timed counts it
            run.costs.images_scored += steps.images
    with run.ranks.together(RewardError, TooManyFailures), run.costs.timed("reward_stall_s"):
        for of_prompts, wait in zip(growing, waiting):
            of_prompts.add(wait())
        if run.budget.exhausted:
            raise TooManyFailures(run.budget.exhausted)
