"""The command's side of a run: checks before anything starts, Ctrl-C, the report."""

import fcntl
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from trainer.adapters import check_targets
from trainer.config import ModelConfig, TrainConfig, load_config, save_config
from trainer.data.prompts import PromptFileError, Prompts, read_prompts
from trainer.data.rows import Rows
from trainer.data.sources import absolute
from trainer.families.index import check_model, not_there
from trainer.families.previews import load_preview_decoder
from trainer.families.weightless import load_weightless
from trainer.features import check_features
from trainer.given import open_stream
from trainer.optimizer import check_moments
from trainer.policy import Policy
from trainer.progress import following
from trainer.ranks import Ranks
from trainer.report import write_report
from trainer.run_folder import RunFolder
from trainer.trackers import check_trackers

_POLL_S = 0.5
_LOCK = ".lock"
_AT_ONCE: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""What a second signal does, whatever handler somebody had put there before."""


_LENGTH = ("updates", "budget")
_ANEW = (*_LENGTH, "optimizer.lr", "optimizer.decay")
"""Settings that may be set anew on a run's way: how long it is and how fast it learns."""
_AROUND = (
    *("run_folder", "ranks", "watch", "checkpoint", "trackers", "control", "prompts.strict", "data.strict"),
    *("evaluation.every_updates", "evaluation.along", "evaluation.batch_size"),
    *("rewards.services", "rewards.url", "rewards.batch_images", "rewards.calls_at_once"),
    *("rewards.attempt_s", "rewards.deadline_s", "rewards.ready_timeout_s"),
    *("rewards.failure_budget", "rewards.revisions"),
    *("model.gradient_checkpointing", "model.states_with_gradients", "model.compile", "model.offload"),
    *("model.decoded_at_a_time", "loss.branches_per_micro_batch"),
)
"""Settings that do not make another run: where it is, in how little memory, how it is watched."""


class RunFailed(RuntimeError):  # noqa: N818  named, as all errors here, for what is wrong
    """A run that cannot start or go on; one line that says why and what to do."""


def check(config: TrainConfig) -> RunFolder:
    """Find every mistake that can be found before processes start; writes no file.

    Raises:
        ModelError, PromptFileError, DataError: the model, a prompt file or other data cannot be used.
        TrackerMissing: a tracker is not installed, nobody said where it is, or it has no key.
        ConfigError: adapters are for layers that the model does not have, the optimizer's library is not
            installed, features are to be no CLIP's, or the settings in the run folder are damaged.
        RunFailed: the run folder cannot be written, or holds a finished run or one of another configuration.
    """
    check_moments(config.optimizer)
    check_trackers(config.trackers)
    _check_data(config, weightless(config.model))
    if config.prompts.held_out and config.evaluation.features:
        check_features(config.evaluation.features)
    folder = RunFolder(config.run_folder)
    check_writable(folder.path, "--set run_folder=PATH")
    if folder.has_updates:
        _check_continues(config, folder)
    return folder


def check_place(settings: Path, config: TrainConfig) -> None:
    """Raise RunFailed where settings are a run's own, and name a folder that is not the one they lie in.

    The run was moved or copied, or is called from elsewhere: another would begin in the folder they name.
    """
    lying = RunFolder(settings.parent)
    if (
        settings.name == lying.config_path.name
        and lying.has_updates
        and load_config(settings).run_folder == config.run_folder
        and lying.path.resolve() != config.run_folder.resolve()
    ):
        raise RunFailed(
            f"{settings} names {config.run_folder} as its run folder; to go on with the run where it lies, "
            f"add --set run_folder={lying.path}"
        )


def check_writable(folder: Path, another: str) -> None:
    """Raise RunFailed where it cannot be a folder to write in, or be made; `another` chooses another."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        why = "cannot be written" if there.is_dir() else "is no folder"
        raise RunFailed(f"{there} {why}; choose another with {another}")


def _check_continues(config: TrainConfig, folder: RunFolder) -> None:
    """Raise RunFailed where it is another run than the folder's, or that one and finished."""
    another = "remove it, or choose another with --set run_folder=PATH"
    changed = differing(config, folder)
    if lasting := [key for key in changed if not key.startswith(_ANEW)]:
        raise RunFailed(
            f"{folder.path} holds a run with other settings ({', '.join(lasting)}); "
            f"resume it with its own (sharpen train {folder.config_path}), {another}"
        )
    if folder.is_finished and not any(key.startswith(_LENGTH) for key in changed):
        raise RunFailed(f"{folder.path} holds a finished run; lengthen it with --set updates=N, {another}")


def differing(config: TrainConfig, folder: RunFolder) -> list[str]:
    """The settings, as a.b, that make a folder's run another one than this."""
    earlier = load_config(folder.config_path)
    changed = _changes(earlier.model_dump(mode="json"), config.model_dump(mode="json"))
    return sorted(key for key in changed if not key.startswith(_AROUND))


def _changes(earlier: Any, now: Any, name: str = "") -> set[str]:
    if not (isinstance(earlier, dict) and isinstance(now, dict)):
        return set() if earlier == now else {name}
    keys = {*earlier, *now}
    below = (_changes(earlier.get(key), now.get(key), f"{name}.{key}".lstrip(".")) for key in keys)
    return set().union(*below)


@functools.cache
def weightless(model: ModelConfig) -> Policy:
    """The model without its weights, for a glance at what it is.

    Raises:
        ModelError: it cannot be used, or does not draw pictures of this size.
        ConfigError: adapters are for layers that it does not have.
    """
    kind = check_model(model)
    try:
        family = load_weightless(kind, model)
    except OSError as error:
        raise not_there(model.path, error) from error
    if model.lora is not None:
        check_targets(family.network, model.lora)
    if model.preview_decoder:
        load_preview_decoder(model.preview_decoder, family, torch.float32, weightless=True)
    return Policy(family, ModelConfig(path=model.path), torch.device("meta"), trainable=False)


def _check_data(config: TrainConfig, policy: Policy) -> None:
    """Look at all rows, and say which will be left out, or read in part."""
    learned = config.prompts.train if config.data is None else None
    sources = [source for source in (learned, config.prompts.held_out) if source is not None]
    prompts = {source: read_prompts(source, strict=config.prompts.strict) for source in sources}
    held_out = prompts.get(config.prompts.held_out or "", ())
    if config.rewards.judge and held_out and len({prompt.text for prompt in held_out}) < 2:
        raise PromptFileError(
            f"{config.prompts.held_out}: holds one prompt, and the error of a gain is between prompts; add "
            "others, or leave out rewards.judge"
        )
    opened: list[Prompts | Rows] = [*prompts.values()]
    if config.data is not None:
        opened.append(open_stream(config, config.data, policy, Ranks()).rows)
    for rows in opened:
        if rows.left_out:
            _tell(f"{rows.report}; --strict-data refuses them")
    for source, found in prompts.items():
        if cut := policy.cut_off([prompt.text for prompt in found]):
            _tell(
                f"{cut} of {len(found)} prompts of {source} are longer than the model's text encoders read: "
                "it does not see how they end"
            )


@functools.cache
def _tell(line: str) -> None:
    """Say something once, however many runs of a comparison it holds for."""
    sys.stderr.write(f"{line}\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other commands out of a folder while this one writes there; its end, however it comes, unlocks.

    A folder in which nothing was written goes.
    On a file system without locks nothing is kept out.

    Raises:
        RunFailed: another command is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFailed(
                f"another command is at work in {folder}; wait for its end, or choose another folder"
            ) from None
        except OSError:
            pass
        try:
            yield
        finally:
            _remove_unused(folder)


def _remove_unused(folder: Path) -> None:
    with suppress(OSError):
        if [left.name for left in folder.iterdir()] == [_LOCK]:
            (folder / _LOCK).unlink()
            folder.rmdir()


def begin(config: TrainConfig, folder: RunFolder) -> None:
    """Make the run folder, or take up the one of a run that was stopped, or failed, or is lengthened."""
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.reopen()
    save_config(config, folder.config_path)


def watch(config: TrainConfig, folder: RunFolder, work: Callable[[], None]) -> None:
    """Do the work in a thread and show its progress and what ranks warn of.

    The first Ctrl-C saves and stops, the second interrupts.

    Raises whatever the work raises, and RunFailed when the ranks gave up.
    """
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  carried over to the thread that waits
            failures.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    with _stopping(folder), following(folder, config.updates) as show:
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
        return (
            f"Stopped after saving a checkpoint; the same command goes on from there ({folder.path}). "
            "To end the run there, with its evaluation, model and report, add --set updates=1."
        )
    return f"Report: {write_report(folder.path)}"


@contextmanager
def _stopping(folder: RunFolder) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the run to save and stop; a second one is no longer caught."""

    def ask(number: int, _frame: object) -> None:
        signal.signal(number, _AT_ONCE[number])
        folder.request_stop()
        sys.stderr.write("\nSaving a checkpoint after this update; once more to interrupt at once.\n")

    with asked_to_end(ask):
        yield


@contextmanager
def asked_to_end(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Within this block Ctrl-C and SIGTERM call the handler, instead of whatever they called before."""
    previous: dict[int, Any] = {
        number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def absolute_paths(config: TrainConfig) -> TrainConfig:
    """Paths as ranks find them, whose working directory is another; the run folder keeps them as written."""
    values = config.model_dump()
    values["rewards"]["services"] = config.rewards.services and config.rewards.services.absolute()
    for section, key in (("prompts", "train"), ("prompts", "held_out"), ("data", "source")):
        if values[section] and values[section][key]:
            values[section][key] = absolute(values[section][key])
    for section, key in (("model", "path"), ("model", "preview_decoder"), ("evaluation", "features")):
        name = values[section][key]
        # What is no folder here is an id on the hub.
        values[section][key] = str(Path(name).absolute()) if name and Path(name).exists() else name
    return TrainConfig.model_validate({**values, "run_folder": config.run_folder.absolute()})
