"""Named scalars of each update: metrics.jsonl and trackers."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from trainer.trackers import Trackers
from trainer.written import write_whole

FILE_NAME = "metrics.jsonl"
REVISIONS = "revisions"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl in order; a last line that a killed run left unfinished is ignored."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


class MetricsLog:
    """Appends one JSON object an update to `run_folder/metrics.jsonl`, and tells trackers the same.

    Resuming after `resumed_update` forgets what later updates of the interrupted run had written. Ranks other
    than 0 may record too: nothing comes of it.
    """

    def __init__(
        self, run_folder: Path, *, resumed_update: int = 0, rank: int = 0, trackers: Trackers | None = None
    ) -> None:
        self._file: TextIO | None = None
        self._trackers = trackers if rank == 0 else None
        if rank == 0:
            run_folder.mkdir(parents=True, exist_ok=True)
            _forget_after(run_folder / FILE_NAME, resumed_update)
            self._file = (run_folder / FILE_NAME).open("a", encoding="utf-8")

    def record(
        self, update: int, scalars: Mapping[str, float], revisions: Mapping[str, str] | None = None
    ) -> None:
        """Write the scalars of one update at once, and the revisions of the rewards that scored it.

        One that is not finite is written as null.
        """
        if self._file:
            finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
            about = {REVISIONS: dict(revisions)} if revisions else {}
            self._file.write(json.dumps({"update": update, **finite, **about}) + "\n")
            self._file.flush()
        if self._trackers:
            self._trackers.record(update, scalars)

    def close(self) -> None:
        """Let go of the files."""
        if self._file:
            self._file.close()
        if self._trackers:
            self._trackers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _forget_after(path: Path, update: int) -> None:
    """Rewrite the file without later updates and without an unfinished line, at once or not at all."""
    kept = [record for record in read_metrics(path) if record["update"] <= update]
    write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))
