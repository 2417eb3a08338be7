"""The loop: prompts to branches, branches to scores, scores to a selection, the selection to better weights.

  prompts ─▶ micro-batch: grow branches (no gradients) ─▶ previews ─▶ scoring (other processes)
                │ the next micro-batch grows meanwhile                   │
                ▼                                                       ▼
             branches ─────────────────────────────▶ path returns, selection ─▶ replay with gradients ─▶ step

The only wait is for the scores of the last micro-batches: `reward_stall_s`. Every rank runs this same
function on its share of the prompts. Ranks meet where gradients are summed, where they agree to stop or that
they cannot go on, and in evaluations.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from reward_services import RewardError
from trainer.branches import Branches, grow, step_noise
from trainer.config import TrainConfig
from trainer.data.prompts import PromptStream
from trainer.data.sources import DataError
from trainer.evaluation import EvaluationResult
from trainer.given import GivenStream, lesson_of
from trainer.metrics import MetricsLog
from trainer.path_integral import Selection, combine, path_returns, select, temperatures_for
from trainer.ranks import Halted, Ranks
from trainer.records import Prompt
from trainer.replay import Lesson
from trainer.reward_hacking import watch
from trainer.run import Run, start
from trainer.run_folder import RunFolder
from trainer.scoring import Scoring, TooManyFailures, drop_prompts, submit_previews
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
        Halted: too many scores failed, or a reward is gamed; the updates so far are in a checkpoint.
    """
    config, ranks = run.config, run.ranks
    run.trackers = Trackers(config, run.update) if ranks.is_main else None
    at = run.update
    with MetricsLog(run.folder.path, resumed_update=at, rank=ranks.rank, trackers=run.trackers) as log:
        if run.update == 0:
            run.evaluate("before")
        progress = run.progress()
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
    """Evaluate where it is due after an update, which brought the run's progress from `before` to `now`."""
    options = run.config.evaluation
    if options.every_updates and run.update % options.every_updates == 0:
        heed(run, run.evaluate(f"update-{run.update:06d}"))
    stretches = options.along + 1
    point = int(now * stretches)
    if int(before * stretches) < point < stretches:
        heed(run, run.evaluate(f"along-{point:02d}"))


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
    """Make one update; the learning rate falls with the run's progress before it."""
    before = copy.copy(run.costs)
    lessons = sample(run)
    with run.costs.timed("learning_s"):
        learned = run.learner.learn([lesson for lesson, _ in lessons], progress)
    run.costs.unet_evaluations += run.learner.unet_evaluations
    run.update += 1
    log.record(run.update, {**run.describe(lessons, before), **learned}, run.scoring.revisions())
    if run.ranks.is_main and lessons[0][1] and run.update in (1, run.config.updates):
        run.folder.save_trees(run.update, *lessons[0])


def sample(run: Run) -> list[tuple[Lesson, dict[str, Tensor]]]:
    """What one update learns: branches grown and selected among, or pictures that are given.

    Raises:
        Halted: too many scores failed. The prompts are given back and a checkpoint is made before.
    """
    if isinstance(run.stream, PromptStream):
        return explore(run, run.stream)
    return [(lesson, {}) for lesson in take(run, run.stream)]


def take(run: Run, stream: GivenStream) -> list[Lesson]:
    """The next given pictures, in micro-batches."""
    with run.ranks.together(DataError), run.costs.timed("sampling_s"):
        return [lesson_of(run.policy, stream.take(len(seeds)), seeds) for seeds in micro_batches(run)]


def micro_batches(run: Run) -> Iterator[tuple[int, ...]]:
    """The seeds of this rank's prompts in this update, one for each, by micro-batch."""
    count, size = run.config.branching.prompts_per_update, run.config.branching.prompts_per_micro_batch
    places = range(count)[run.ranks.share(count)]
    for first in range(0, len(places), size):
        yield tuple(run.seed(place) for place in places[first : first + size])


def explore(run: Run, stream: PromptStream) -> list[tuple[Lesson, dict[str, Tensor]]]:
    """Grow the branches of one update and select among them; micro-batches are scored while others grow.

    Raises:
        Halted: too many scores failed. The prompts are given back and a checkpoint is made before.
    """
    config, waiting = run.config, []
    branching, place = config.branching, run.stream.state_dict()
    rewards = list(config.rewards.weights)
    prompts = iter(stream.take(branching.prompts_per_update)[run.ranks.share(branching.prompts_per_update)])
    with run.costs.timed("sampling_s"), run.policy.gathered():
        for seeds in micro_batches(run):
            branches = grow_branches(run, list(islice(prompts, len(seeds))), seeds)
            waiting.append((branches, seeds, submit_previews(run.scoring, branches, rewards, run.budget)))
    try:
        with run.ranks.together(RewardError, TooManyFailures), run.costs.timed("reward_stall_s"):
            scored = [(branches, seeds, wait()) for branches, seeds, wait in waiting]
            if run.budget.exhausted:
                raise TooManyFailures(run.budget.exhausted)
    except Halted:
        stream.load_state_dict(place)
        run.checkpoint()
        raise
    return [
        (Lesson(branches, choose(config, scores, seeds), seeds), scores) for branches, seeds, scores in scored
    ]


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
        eta=config.sampling.eta,
        start=config.branching.start,
        previews=config.branching.previews,
    )
    run.costs.unet_evaluations += branches.unet_evaluations
    run.costs.decoding_s += branches.decoding_s
    run.costs.sampling_s -= branches.decoding_s  # the phase that is being timed counts it
    run.costs.images_scored += sum(pictures[..., 0, 0, 0].size for pictures in branches.previews.values())
    return branches


def choose(config: TrainConfig, scores: Mapping[str, Tensor], seeds: Sequence[int]) -> Selection:
    """Scores of a micro-batch, {reward: (P, K, T)}, to what it teaches."""
    combined = combine(scores, config.rewards.weights)
    if config.rewards.on_failure == "drop_prompt":
        combined = drop_prompts(combined)
    # Another stream than the noise of the prompt that has this seed; torch reads 32 bits.
    generator = torch.Generator().manual_seed(seeds[0] ^ 0x2545F491)
    options, returns_PK = config.selection, path_returns(combined)
    temperature: float | Tensor = options.temperature
    if options.effective_branches is not None:
        temperature = temperatures_for(returns_PK, options.effective_branches)
    return select(returns_PK, temperature=temperature, by=options.by, generator=generator)
