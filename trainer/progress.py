"""What a person watches while a run goes on: the bar, and above it what ranks warn of."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm import tqdm

from trainer.metrics import FILE_NAME
from trainer.run_folder import RunFolder, warning_of
from trainer.tail import Tail


@contextmanager
def following(folder: RunFolder, updates: int) -> Iterator[Callable[[], None]]:
    """A bar that follows metrics.jsonl, back too when ranks that died go on from a checkpoint.

    Above it stand new warnings of ranks, each once, however many met it. What it yields looks for news.
    """
    metrics, warnings = Tail(folder.path / FILE_NAME), Warnings(folder)
    last = _newest(metrics.new_lines())
    bar = ProgressBar(updates, resumed_update=last.get("update", 0))

    def show() -> None:
        nonlocal last
        for warning in warnings.new():
            bar.say(f"Warning: {warning}")
        last = _newest(metrics.new_lines()) or last
        if last:
            # What was not finite is null in the file: an update whose prompts were all dropped has no reward.
            known = {name: value for name, value in last.items() if value is not None}
            bar.show(last["update"], known)

    try:
        yield show
    finally:
        show()
        bar.close()


class Warnings:
    """What ranks of a run warn of from now on, each once, however many met it."""

    def __init__(self, folder: RunFolder) -> None:
        self._lines, self._told = Tail(folder.warnings_path), set[str]()
        self._lines.new_lines()  # an earlier command told these

    def new(self) -> list[str]:
        """Those since the last look, in order."""
        met = dict.fromkeys(map(warning_of, self._lines.new_lines()))
        found = [warning for warning in met if warning not in self._told]
        self._told.update(found)
        return found


class ProgressBar:
    """Updates done, time left, reward, last verified accuracy, time lost to scoring, speed and memory."""

    def __init__(self, updates: int, *, resumed_update: int = 0, stream: TextIO | None = None) -> None:
        stream = stream or sys.stderr
        # A log file is no terminal: there a line every ten seconds is enough.
        interval_s = 0.1 if stream.isatty() else 10.0
        self._bar = tqdm(
            total=max(updates, resumed_update),  # a run that is ended where it is has passed its last update
            initial=resumed_update,
            file=stream,
            unit="update",
            mininterval=interval_s,
        )
        self._shown: dict[str, str] = {}

    def show(self, update: int, scalars: Mapping[str, float]) -> None:
        """Move to `update`; what is there of reward, accuracy, stall, speed and peak memory, is shown."""
        if "reward" in scalars:
            self._shown["reward"] = f"{scalars['reward']:.3f}"
        if "accuracy" in scalars:
            self._shown["verified"] = f"{scalars['accuracy']:.1%}"
        if "stall_fraction" in scalars:
            self._shown["stall"] = f"{scalars['stall_fraction']:.0%}"
        if "images_per_second" in scalars:
            self._shown["img/s"] = f"{scalars['images_per_second']:.3g}"
        peaks = [value for name, value in scalars.items() if name.endswith("_peak_bytes")]
        if peaks:
            self._shown["peak"] = f"{max(peaks) / 2**30:.3g}G"
        if update < self._bar.n:  # ranks that died go on from a checkpoint
            self._bar.initial = 0
            self._bar.reset()
            self._bar.initial = self._bar.n = update
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(update - self._bar.n)

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        self._bar.write(line, file=self._bar.fp)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def _newest(lines: Sequence[str]) -> dict[str, Any]:
    """The last of some lines of a metrics.jsonl; empty where there is none that can be read."""
    try:
        record: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except ValueError:  # storage that is shared may show a line before its bytes
        return {}
    return record
