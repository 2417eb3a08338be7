"""Runs what is missing of a comparison, some at a time; what is finished is never run again.

Each run is an ordinary run folder and goes on from its checkpoint, so a comparison that was killed goes on by
the same command.
"""

import itertools
import signal
import sys
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainer import driver
from trainer.config import ConfigError, RanksConfig, TrainConfig
from trainer.config.comparison import CompareConfig, SearchConfig
from trainer.data.prompts import evenly, read_prompts
from trainer.evaluation import CORRECT_FROM
from trainer.finished import open_policy
from trainer.progress import Warnings
from trainer.run_folder import RunFolder
from trainer.scoring import Scoring
from trainer.search import Found
from trainer.search.results import SEARCH_FILE, SearchFolder, Settings

Train = Callable[[TrainConfig], None]
"""Runs the ranks of a run to its end, or to a stop that was asked for."""
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """One run or search of a comparison."""

    name: str
    seed: int
    folder: Path


_Running = dict[Future[None], tuple[Job, Warnings]]
"""What is under way."""


def jobs(comparison: CompareConfig) -> Iterator[Job]:
    """Runs and then searches that are not finished yet, seed by seed, so that tables fill evenly."""
    kinds = ((comparison.methods, "summary.json"), (comparison.searches, SEARCH_FILE))
    for (names, file), seed in itertools.product(kinds, comparison.seeds):
        every = (Job(name, seed, comparison.place(name, seed)) for name in names)
        yield from (job for job in every if not (job.folder / file).exists())


def check(comparison: CompareConfig) -> None:
    """Find mistakes before anything starts, also runs that were finished with other settings.

    Raises what `driver.check` raises, ConfigError where nothing is held out, and ValueError.
    """
    for name, seed in itertools.product(comparison.methods, comparison.seeds):
        folder = RunFolder(comparison.place(name, seed))
        if folder.is_finished and (keys := driver.differing(comparison.run_config(name, seed), folder)):
            raise driver.RunFailed(
                f"{folder.path} holds a run that was finished with other settings ({', '.join(keys)}); "
                "remove it, or set another folder for this comparison"
            )
    for job in jobs(comparison):
        config = _config(comparison, job)
        if config.prompts.held_out is None:
            raise ConfigError(f"{job.name} has no held-out pictures to compare: set prompts.held_out")
        if job.name in comparison.methods:
            driver.check(config)
    for name, seed in itertools.product(comparison.searches, comparison.seeds):
        job = Job(name, seed, comparison.place(name, seed))
        config = _config(comparison, job)
        settings = _settings(comparison.searches[name], config)
        settings.check(driver.weightless(config.model))
        SearchFolder(job.folder, settings).check()


def ranks_of(comparison: CompareConfig) -> list[RanksConfig]:
    """Of each run that is not finished yet."""
    runs = [job for job in jobs(comparison) if job.name in comparison.methods]
    return [_config(comparison, job).ranks for job in runs]


def compete(
    comparison: CompareConfig,
    train: Train,
    scoring: Scoring,
    *,
    done: Callable[[Job], None],
    warn: Callable[[Job, str], None],
) -> None:
    """Run every job that is not finished, `parallel` at a time.

    Args:
        comparison: what to run.
        train: runs the ranks of one run.
        scoring: judges what searches find.
        done: told of each job that has ended as it should.
        warn: told what ranks of one that is under way warn of, and of a run that cannot go on.

    Raises:
        driver.RunFailed: some runs could not go on; all the others have ended.
        Whatever else a job raises: others that were under way have saved and stopped.
    """
    running: _Running = {}
    failed: list[str] = []
    stop = threading.Event()
    with (
        _interruptible(),
        ThreadPoolExecutor(comparison.parallel) as pool,
        _stopping(running, comparison.methods, stop),
    ):
        waiting = list(jobs(comparison))
        while waiting or running:
            for job in waiting[: comparison.parallel - len(running)]:
                # Here and not in its thread: what is asked of it to stop must come later.
                _begin(comparison, job)
                told = job, Warnings(RunFolder(job.folder))
                running[pool.submit(_do, comparison, job, train, scoring, stop)] = told
                waiting.remove(job)
            failed += _tell_news(running, done, warn)
    if failed:
        raise driver.RunFailed(
            f"{', '.join(failed)} could not go on, as was said above; all others are done. The same command "
            "tries again, and --set methods.NAME=null leaves one out"
        )


@contextmanager
def _interruptible() -> Iterator[None]:
    """The first Ctrl-C or SIGTERM is a KeyboardInterrupt, the second ends the process.

    For threads cannot be interrupted, and are waited for.
    """

    def interrupt(_number: int, _frame: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        sys.stderr.write("\nSaving what is under way; once more to interrupt at once.\n")
        raise KeyboardInterrupt

    with driver.asked_to_end(interrupt):
        yield


@contextmanager
def _stopping(running: _Running, methods: Container[str], stop: threading.Event) -> Iterator[None]:
    """Where the block fails, or somebody interrupts, what is under way saves how far it is and ends."""
    try:
        yield
    except BaseException:
        stop.set()
        for job in (job for job, _ in running.values() if job.name in methods):
            RunFolder(job.folder).request_stop()
        raise


def _tell_news(
    running: _Running,
    done: Callable[[Job], None],
    warn: Callable[[Job, str], None],
) -> list[str]:
    """Wait for a job to end, and tell what is warned of meanwhile; returns the names of runs that failed.

    Raises whatever else a job raised.
    """
    ended = set[Future[None]]()
    while not ended:
        ended, _ = wait(running, _POLL_S, return_when=FIRST_COMPLETED)
        for job, warnings in running.values():
            for warning in warnings.new():
                warn(job, warning)
    failed = []
    for future in ended:
        job, _ = running.pop(future)
        try:
            future.result()
        except driver.RunFailed as error:
            failed.append(job.folder.name)
            warn(job, f"it cannot go on, the others do: {error}")
        else:
            done(job)
    return failed


def _begin(comparison: CompareConfig, job: Job) -> None:
    if job.name in comparison.methods:
        driver.begin(_config(comparison, job), RunFolder(job.folder))


def _do(comparison: CompareConfig, job: Job, train: Train, scoring: Scoring, stop: threading.Event) -> None:
    config = _config(comparison, job)
    if job.name in comparison.methods:
        folder = RunFolder(job.folder)
        train(config)
        if folder.failure:
            raise driver.RunFailed(folder.failure)
        driver.conclude(folder)
    else:
        _search(_settings(comparison.searches[job.name], config), job, config, scoring, stop)


_SEARCHING = threading.Lock()
"""Searches run in this process, one at a time."""


def _search(
    settings: Settings, job: Job, config: TrainConfig, scoring: Scoring, stop: threading.Event
) -> None:
    folder, found = SearchFolder(job.folder, settings), list[Found]()
    with _SEARCHING:
        if stop.is_set():
            return
        torch.set_num_threads(config.ranks.torch_threads)
        policy = open_policy(Path(config.model.path), config.model)
        for one in folder.search(policy, scoring):
            if stop.is_set():
                return
            found.append(one)
    figures = {
        "accuracy": _accuracy(found, settings.prompts, config.rewards.judge, scoring),
        "reward": sum(one.score for one in found) / len(found),
        "evaluations_per_picture": sum(one.evaluations for one in found) / len(found),
    }
    folder.finish(figures)


def _accuracy(
    found: Sequence[Found], prompts: Sequence[str], judge: str | None, scoring: Scoring
) -> float | None:
    """Share of found pictures that the judge calls right; None without one, or where it judged none."""
    if judge is None:
        return None
    scores = scoring.submit(np.stack([one.picture for one in found]), prompts, [judge])()[judge]
    verdicts = [score.value >= CORRECT_FROM for score in scores if score.value is not None]
    return sum(verdicts) / len(verdicts) if verdicts else None


def _settings(search: SearchConfig, config: TrainConfig) -> Settings:
    held_out = read_prompts(str(config.prompts.held_out))
    prompts = evenly(held_out, min(search.prompts, len(held_out)))
    return Settings(
        model=config.model.path,
        method=search.method,
        budget=search.budget,
        sampling=config.sampling,
        weights=config.rewards.weights,
        prompts=[prompt.text for prompt in prompts],
        # Seeds of prompts follow each other: those of the comparison's lie far apart.
        seed=100_003 * (config.seed + 1),
    )


def _config(comparison: CompareConfig, job: Job) -> TrainConfig:
    """The settings of a run; a search shares those of the first method's."""
    name = job.name if job.name in comparison.methods else next(iter(comparison.methods))
    return comparison.run_config(name, job.seed)
