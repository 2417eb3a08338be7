"""The command's side of a run: checks before anything starts, the progress bar, Ctrl-C, the report."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.config import TrainConfig, load_config, save_config
from trainer.metrics import FILE_NAME, ProgressBar, read_metrics
from trainer.policy import check_model
from trainer.prompts import read_prompts
from trainer.report import write_report
from trainer.run_folder import RunFolder

_POLL_S = 0.5


class RunFailed(RuntimeError):
    """A run that cannot start or go on; one line that says why and what to do."""


def prepare(config: TrainConfig) -> RunFolder:
    """Find every mistake that can be found before processes start, then make or reopen the run folder.

    Raises:
        ModelError, PromptFileError: the model or a prompt file cannot be used.
        RunFailed: the run folder holds a finished run, or one of another configuration.
    """
    check_model(config.model)
    read_prompts(config.prompts.train)
    if config.prompts.held_out is not None:
        read_prompts(config.prompts.held_out)
    folder = RunFolder(config.run_folder)
    if folder.is_finished:
        raise RunFailed(f"{folder.path} holds a finished run; remove it, or choose another with --set run_folder=PATH")
    saved = folder.path / "config.yaml"
    if saved.exists() and load_config(saved) != config:
        raise RunFailed(
            f"{folder.path} holds a run with other settings; resume it with its own (sharpen train {saved}), "
            "remove it, or choose another with --set run_folder=PATH"
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    save_config(config, saved)
    folder.forget_stop()
    return folder


def watch(config: TrainConfig, folder: RunFolder, work: Callable[[], None]) -> None:
    """Do the work in a thread and show its progress; the first Ctrl-C saves and stops, the second interrupts.

    Raises whatever the work raises, and RunFailed when the ranks gave up.
    """
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  carried over to the thread that waits
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    with _stopping(folder), _progress(config) as show:
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_S)
            show()
    if failures:
        raise failures[0]
    if folder.failure:
        raise RunFailed(folder.failure)


def conclude(folder: RunFolder) -> str:
    """Write the report of a finished run; returns what to tell the person who started it."""
    if not folder.is_finished:
        return f"Stopped after saving a checkpoint; the same command goes on from there ({folder.path})."
    return f"Report: {write_report(folder.path)}"


@contextmanager
def _stopping(folder: RunFolder) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the run to save and stop; a second one is no longer caught."""

    def ask(number: int, _frame: object) -> None:
        folder.request_stop()
        signal.signal(number, previous[number])
        print("\nSaving a checkpoint after this update; once more to interrupt at once.", flush=True)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _progress(config: TrainConfig) -> Iterator[Callable[[], None]]:
    """A bar that follows metrics.jsonl."""
    path: Path = config.run_folder / FILE_NAME
    done = len(read_metrics(path))
    bar = ProgressBar(config.updates, resumed_update=done)

    def show() -> None:
        lines = read_metrics(path)
        if lines:
            bar.show(lines[-1]["update"], lines[-1])

    try:
        yield show
    finally:
        show()
        bar.close()
