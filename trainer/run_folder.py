"""The run folder: what a run leaves behind, and how it is asked to stop.

config.yaml metrics.jsonl tensorboard/ checkpoints/ summary.json report.html
pipeline/ or lora/     the sharpened model, as diffusers saves it
evaluations/           before.json, update-NNNNNN.json, along-NN.json, after.json: every verdict and score
revisions.json         of the rewards, where the run is pinned to them
report/                pictures of the report
warnings.log           what ranks warned of, where they did
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from trainer.evaluation import EvaluationResult
from trainer.held_out import Evaluated
from trainer.metrics import FILE_NAME
from trainer.replay import Lesson
from trainer.written import write_whole

GRID_PICTURES = 24
TREES = 3
_BY = "rank "
"""Between the time of a warning and the number of the rank that met it."""


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.yaml"
        self._stop, self._failure = path / "stop", path / "failure"
        self._summary, self._revisions = path / "summary.json", path / "revisions.json"
        self.warnings_path = path / "warnings.log"

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked the run to save and stop after the update under way."""
        return self._stop.exists()

    def request_stop(self) -> None:
        """Ask the run to save and stop."""
        self._stop.touch()

    def reopen(self) -> None:
        """Forget earlier requests to stop, failures and ends: the run goes on; without updates it begins."""
        for word in (self._stop, self._failure, self._summary):
            word.unlink(missing_ok=True)
        if not self.has_updates:
            self._revisions.unlink(missing_ok=True)
            self.warnings_path.unlink(missing_ok=True)
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def give_up(self, reason: str) -> None:
        """Leave word of why the run could not go on."""
        self._failure.write_text(reason, encoding="utf-8")

    @property
    def failure(self) -> str | None:
        """Why the run could not go on, or None."""
        return self._failure.read_text(encoding="utf-8") if self._failure.exists() else None

    @contextmanager
    def keeping_warnings(self, rank: int) -> Iterator[None]:
        """Within this block warnings of the trainer and the rewards' client are kept, with time and rank."""
        kept = logging.FileHandler(self.warnings_path, encoding="utf-8", delay=True)
        kept.setLevel(logging.WARNING)
        kept.setFormatter(_OneLine(f"%(asctime)s {_BY}{rank}: %(message)s"))
        loggers = [logging.getLogger(name) for name in ("trainer", "reward_services")]
        for logger in loggers:
            logger.addHandler(kept)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(kept)
            kept.close()

    @property
    def warnings(self) -> list[str]:
        """What ranks warned of, in order; what several met is there as often."""
        if not self.warnings_path.exists():
            return []
        lines = self.warnings_path.read_text(encoding="utf-8").split("\n")[:-1]  # the last may be under way
        return list(map(warning_of, lines))

    def pin(self, revisions: Mapping[str, str]) -> Mapping[str, str]:
        """Keep the revisions of the rewards that the run begins with; returns those that it began with."""
        if not self._revisions.exists():
            self._write(self._revisions.name, dict(revisions))
        begun: Mapping[str, str] = json.loads(self._revisions.read_text(encoding="utf-8"))
        return begun

    @property
    def is_finished(self) -> bool:
        """Whether the run has made its last update and written its summary."""
        return self._summary.exists()

    @property
    def has_updates(self) -> bool:
        """Whether the run has made an update, which another run here would lose."""
        metrics = self.path / FILE_NAME
        return metrics.exists() and metrics.stat().st_size > 0

    def save_evaluation(self, name: str, evaluated: Evaluated) -> None:
        """Keep the verdicts, and the first pictures of different prompts for the report."""
        folder = self.path / "evaluations"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(asdict(evaluated.result)), encoding="utf-8")
        for index in self._shown(evaluated.result):
            self._save_picture(f"{name}/{index:04d}.png", evaluated.pictures[index])

    def load_evaluation(self, name: str) -> EvaluationResult:
        """Read an evaluation back."""
        saved = json.loads((self.path / "evaluations" / f"{name}.json").read_text(encoding="utf-8"))
        lists = {key: tuple(saved[key]) for key in ("prompts", "categories", "correct")}
        tables = {
            key: {name: tuple(values) for name, values in saved.get(key, {}).items()}
            for key in ("scores", "statistics")
        }
        return EvaluationResult(**{**saved, **lists, **tables})

    def evaluations(self) -> list[EvaluationResult]:
        """All that were made, from the untrained model on; in a finished run none that a crash undid."""
        names = sorted(path.stem for path in (self.path / "evaluations").glob("*.json"))
        results = sorted(map(self.load_evaluation, names), key=lambda result: result.update)
        if not (self.is_finished and "after" in names):
            return results
        last = self.load_evaluation("after").update
        return [result for result in results if result.update <= last]

    def save_grid(self, before: EvaluationResult, after: EvaluationResult) -> None:
        """List the same-seed pictures before and after for the report."""
        pictures = [
            {
                "prompt": before.prompts[index],
                "category": before.categories[index],
                "before": f"before/{index:04d}.png",
                "after": f"after/{index:04d}.png",
                "correct_before": before.correct[index],
                "correct_after": after.correct[index],
            }
            for index in self._shown(before)
        ]
        self._write("report/pictures.json", pictures)

    def save_trees(self, update: int, lesson: Lesson, scores: Mapping[str, Tensor]) -> None:
        """Keep the branches of a few prompts of one update: previews, scores, returns, weights."""
        path = self.path / "report" / "branches.json"
        saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        # An update that is made again, after a crash, takes the place of what it left the first time.
        trees = [tree for tree in saved if tree["update"] < update]
        shown = range(min(TREES, len(lesson.branches.prompts)))
        self._write("report/branches.json", [*trees, *(self._tree(update, p, lesson, scores) for p in shown)])

    def save_model(self, name: str, save: Callable[[Path], None]) -> None:
        """Have the model written into a folder of this name, whole or not at all."""
        partial, folder = self.path / f".{name}", self.path / name
        for leftover in (partial, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        save(partial)
        partial.rename(folder)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json whole or not at all."""
        self._write(self._summary.name, summary)

    def _tree(self, update: int, p: int, lesson: Lesson, scores: Mapping[str, Tensor]) -> dict[str, Any]:
        branches = [
            {
                "return": _finite(lesson.selection.returns_PK[p, k]),
                "weight": float(lesson.selection.weights_PK[p, k]),
                "previews": self._previews(update, (p, k), lesson, scores),
            }
            for k in range(lesson.selection.returns_PK.shape[1])
        ]
        return {"prompt": lesson.branches.prompts[p].text, "update": update, "branches": branches}

    def _previews(
        self, update: int, branch: tuple[int, int], lesson: Lesson, scores: Mapping[str, Tensor]
    ) -> list[dict[str, Any]]:
        previews = []
        for place, step in enumerate(sorted(lesson.branches.previews)):
            name = f"branches/{update:05d}-{branch[0]}-{branch[1]}-{step}.png"
            self._save_picture(name, lesson.branches.previews[step][branch])
            values = {reward: _finite(of_reward[branch][place]) for reward, of_reward in scores.items()}
            known = {reward: value for reward, value in values.items() if value is not None}
            previews.append({"step": step, "image": name, "scores": known})
        return previews

    def _shown(self, result: EvaluationResult) -> Sequence[int]:
        first: dict[str, int] = {}
        for index, prompt in enumerate(result.prompts):
            first.setdefault(prompt, index)
        return list(first.values())[:GRID_PICTURES]

    def _save_picture(self, name: str, picture: Any) -> None:
        path = self.path / "report" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)

    def _write(self, name: str, value: Any) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(value, indent=2))


def warning_of(line: str) -> str:
    """What a line of warnings.log warns of, without who met it and when."""
    return line.partition(_BY)[2].partition(": ")[2]


class _OneLine(logging.Formatter):
    """What is logged in a line, whatever it holds."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(super().format(record).split())


def _finite(value: Tensor) -> float | None:
    """A failed score is null in JSON, which has no NaN."""
    return float(value) if value.isfinite() else None
