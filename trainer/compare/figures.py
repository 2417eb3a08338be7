"""What finished runs say about methods: accuracy and reward at each budget, with intervals over seeds."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from scipy.stats import t

from trainer.config.comparison import Axis, CompareConfig
from trainer.config.train import load_config
from trainer.evaluating import evaluations_per_picture
from trainer.evaluation import EvaluationResult
from trainer.run_folder import RunFolder
from trainer.search.results import SEARCH_FILE

AXES: tuple[Axis, ...] = get_args(Axis)
_SLACK = 1.1
"""A run ends with the update that spends its budget, and so a little above it."""


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation of one run."""

    spent: Mapping[str, float]
    """By budget."""
    accuracy: float | None
    """Share of right pictures; None without a judge."""
    reward: float
    """Weighted sum of the training rewards' means."""
    diversity: float | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds with its 95 % interval, Student's t; no interval from one seed."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Of one value a seed. Raises ValueError when there is none."""
        if not values:
            raise ValueError("no seed, no mean")
        count, mean = len(values), math.fsum(values) / len(values)
        if count == 1:
            return cls(mean, None, None)
        variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
        half = float(t.ppf(0.975, count - 1)) * math.sqrt(variance / count)
        return cls(mean, mean - half, mean + half)


@dataclass(frozen=True, slots=True)
class Row:
    """One method in a table."""

    name: str
    seeds: int
    accuracy: Estimate | None
    reward: Estimate | None
    """None, as all other figures, where a run that was to be compared had but been evaluated untrained."""
    diversity: Estimate | None
    evaluations_per_picture: int
    """NFE when it is used."""
    spent: Mapping[str, float]
    """Means over seeds, by budget, where the figures were taken."""


def points_of(folder: Path) -> list[Point]:
    """The evaluations of a finished run, from the untrained model on."""
    run = RunFolder(folder)
    weights = load_config(run.config_path).rewards.weights
    return [_point(result, weights) for result in run.evaluations()]


def within(points: Sequence[Point], axis: str, limit: float) -> Point:
    """The newest evaluation that had spent no more than the limit."""
    return [point for point in points if point.spent.get(axis, 0.0) <= limit * _SLACK][-1]


def common_limit(runs: Mapping[str, Sequence[Sequence[Point]]], axis: str, *, ended_runs: bool) -> float:
    """Up to where runs are compared: what all have spent, or where this budget ended them, what any has.

    A run spends its budget and an update more. Runs that spend nothing do not count: data need no scores.
    """
    ends = [points[-1].spent.get(axis, 0.0) for of_method in runs.values() for points in of_method]
    spending = [end for end in ends if end > 0]
    return (max if ended_runs else min)(spending, default=0.0)


def row(name: str, runs: Sequence[Sequence[Point]], axis: str, limit: float, evaluations: int) -> Row:
    """A method's figures at a budget, from its runs' evaluations."""
    points = [within(of_run, axis, limit) for of_run in runs]
    # Of a run that was not evaluated between its beginning and the limit only that beginning is known.
    is_known = all(point is not of_run[0] or len(of_run) == 1 for point, of_run in zip(points, runs))
    known = points if is_known else []
    spent: dict[str, float] = {}
    for key in AXES:
        spent[key] = math.fsum(point.spent.get(key, 0.0) for point in points) / len(points)
    return Row(
        name=name,
        seeds=len(points),
        accuracy=_estimate([point.accuracy for point in known]),
        reward=_estimate([point.reward for point in known]),
        diversity=_estimate([point.diversity for point in known]),
        evaluations_per_picture=evaluations,
        spent=spent,
    )


def summarise(comparison: CompareConfig) -> dict[str, Any]:
    """Every finished run and search, as JSON can hold it: points, and a table for each budget."""
    runs = {
        name: [points_of(folder) for folder in _finished(comparison, name, "summary.json")]
        for name in comparison.methods
    }
    runs = {name: of_method for name, of_method in runs.items() if of_method}
    configs = {name: comparison.run_config(name, comparison.seeds[0]) for name in comparison.methods}
    evaluations = {name: evaluations_per_picture(config) for name, config in configs.items()}
    first = next(iter(configs.values()))
    searches = [_searched(comparison, name) for name in comparison.searches]
    # Held-out noises are the same in every run, and so is what the untrained model makes of them where the
    # methods draw alike; the base's pictures are drawn as those of the first.
    untrained = [(name, [[of_method[0][0]]]) for name, of_method in runs.items()][:1]
    tables = {}
    for axis in AXES:
        limit = common_limit(runs, axis, ended_runs=getattr(first.budget, axis) is not None)
        rows = [row(name, of_method, axis, limit, evaluations[name]) for name, of_method in runs.items()]
        base = [row("base", points, axis, limit, evaluations[name]) for name, points in untrained]
        everyone = [*base, *rows, *(one for one in searches if one)]
        tables[axis] = {"limit": limit, "rows": [asdict(one) for one in everyone]}
    return {
        "seeds": list(comparison.seeds),
        "configs": {name: str(comparison.place(name, comparison.seeds[0]) / "config.yaml") for name in runs},
        "changed": {name: comparison.methods[name] for name in runs},
        "share": comparison.share,
        "runs": {name: [[asdict(p) for p in points] for points in of] for name, of in runs.items()},
        "tables": tables,
    }


def _searched(comparison: CompareConfig, name: str) -> Row | None:
    """The row of a search, None until one of its seeds is there."""
    found = [
        json.loads((folder / SEARCH_FILE).read_text(encoding="utf-8"))
        for folder in _finished(comparison, name, SEARCH_FILE)
    ]
    if not found:
        return None
    return Row(
        name=name,
        seeds=len(found),
        accuracy=_estimate([one["accuracy"] for one in found]),
        reward=Estimate.of([one["reward"] for one in found]),
        diversity=None,
        evaluations_per_picture=round(sum(one["evaluations_per_picture"] for one in found) / len(found)),
        spent=dict.fromkeys(AXES, 0.0),
    )


def _finished(comparison: CompareConfig, name: str, file: str) -> list[Path]:
    folders = [comparison.place(name, seed) for seed in comparison.seeds]
    return [folder for folder in folders if (folder / file).exists()]


def _point(result: EvaluationResult, weights: Mapping[str, float]) -> Point:
    return Point(
        spent=result.spent,
        accuracy=result.accuracy if result.is_judged else None,
        reward=result.reward(weights),
        diversity=result.diversity,
    )


def _estimate(values: Sequence[float | None]) -> Estimate | None:
    known = [value for value in values if value is not None]
    return Estimate.of(known) if known else None
