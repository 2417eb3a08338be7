"""The run folder: what a run leaves behind, and how it is asked to stop.

    config.yaml metrics.jsonl tensorboard/ checkpoints/ summary.json report.html
    pipeline/ or lora/     the sharpened model, as diffusers saves it
    evaluations/           before.json, after.json: every verdict
    report/                pictures of the report
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.evaluation import EvaluationResult
from trainer.held_out import Evaluated
from trainer.learner import Lesson

GRID_PICTURES = 24
TREES = 3


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stop = path / "stop"

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked the run to save and stop after the update under way."""
        return self._stop.exists()

    def request_stop(self) -> None:
        """Ask the run to save and stop."""
        self._stop.touch()

    def forget_stop(self) -> None:
        """Forget an earlier request to stop and an earlier failure: the run goes on."""
        self._stop.unlink(missing_ok=True)
        (self.path / "failure").unlink(missing_ok=True)

    def give_up(self, reason: str) -> None:
        """Leave word of why the run could not go on."""
        (self.path / "failure").write_text(reason, encoding="utf-8")

    @property
    def failure(self) -> str | None:
        """Why the run could not go on, or None."""
        path = self.path / "failure"
        return path.read_text(encoding="utf-8") if path.exists() else None

    @property
    def is_finished(self) -> bool:
        """Whether the run has made its last update and written its summary."""
        return (self.path / "summary.json").exists()

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
        scores = {reward: tuple(values) for reward, values in saved["scores"].items()}
        return EvaluationResult(**{**saved, **lists, "scores": scores})

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

    def save_trees(self, update: int, lesson: Lesson, scores: dict[str, Any]) -> None:
        """Keep the branches of a few prompts of one update: previews, scores, returns, weights."""
        path = self.path / "report" / "branches.json"
        trees = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        for p in range(min(TREES, len(lesson.branches.prompts))):
            trees.append(self._tree(update, p, lesson, scores))
        self._write("report/branches.json", trees)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json whole or not at all."""
        self._write("summary.json", summary)

    def _tree(self, update: int, p: int, lesson: Lesson, scores: dict[str, Any]) -> dict[str, Any]:
        branches = []
        steps = sorted(lesson.branches.previews)
        for k in range(lesson.selection.returns_PK.shape[1]):
            previews = []
            for place, step in enumerate(steps):
                name = f"branches/{update:05d}-{p}-{k}-{step}.png"
                self._save_picture(name, lesson.branches.previews[step][p, k])
                previews.append({"step": step, "image": name, "scores": {r: float(s[p, k, place]) for r, s in scores.items()}})
            branches.append(
                {
                    "return": float(lesson.selection.returns_PK[p, k]),
                    "weight": float(lesson.selection.weights_PK[p, k]),
                    "previews": previews,
                }
            )
        return {"prompt": lesson.branches.prompts[p].text, "update": update, "branches": branches}

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
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(value, indent=2), encoding="utf-8")
        partial.replace(path)
