"""The curves of a report: which scalars of updates and evaluations share a chart, and how they are smoothed.

Records are of updates, as metrics.jsonl has them, or of evaluations: {"update", scalar...}.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from trainer.charts import Series, line_chart, running_mean
from trainer.evaluation import EvaluationResult
from trainer.metrics import REVISIONS

Records = Sequence[Mapping[str, Any]]

_PANELS = (
    (
        "Reward",
        False,
        (("reward", "mean of the branches", 1), ("reward_best", "best", 2), ("reward_worst", "worst", 3)),
    ),
    ("Verified accuracy", True, (("held_out/accuracy", "held-out pictures", 2),)),
    ("Reward stall", True, (("stall_fraction", "share of the update", 3),)),
    ("Loss", False, (("loss", "loss", 1),)),
)
_SCORE = "held_out/score/"
_NOT_DRAWN = {"update", REVISIONS, "accuracy"}
"""The last is that of the newest evaluation, again in each update."""


def of_evaluations(results: Iterable[EvaluationResult]) -> list[dict[str, Any]]:
    """Records of evaluations, in their order."""
    return [{"update": result.update, **result.scalars()} for result in results]


def panels(records: Records) -> list[tuple[str, Markup]]:
    """The charts to look at first, as (title, SVG): what every run has, then each held-out score.

    Those without a value are left out.
    """
    scores = [
        (f"Held-out {key.removeprefix(_SCORE)}", False, ((key, "mean of the pictures", 2),))
        for key in _keys(records)
        if key.startswith(_SCORE)
    ]
    drawn = []
    for title, percent, lines in (*_PANELS, *scores):
        series = [line for key, label, colour in lines for line in _series(records, key, label, colour)]
        if series:
            drawn.append((title, line_chart(series, name=title, percent=percent)))
    return drawn


def remaining_panels(records: Records) -> list[tuple[str, Markup]]:
    """A chart of every other scalar, in the order of first appearance."""
    shown = _NOT_DRAWN | {key for _, _, lines in _PANELS for key, _, _ in lines}
    keys = (key for key in _keys(records) if key not in shown and not key.startswith(_SCORE))
    charts = ((key, _series(records, key, key, 1)) for key in keys)
    return [(key, line_chart(series, name=key)) for key, series in charts if series]


def window_of(count: int) -> int:
    """Updates in a running mean over `count` of them; 1 where there is nothing to smooth."""
    return count // 15 if count > 30 else 1


def _keys(records: Records) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record))


def _series(records: Records, key: str, label: str, colour: int) -> list[Series]:
    """The key's values, faint behind their running mean when there are many."""
    points = [
        (float(record["update"]), float(record[key])) for record in records if record.get(key) is not None
    ]
    window = window_of(len(points))
    if not points:
        return []
    if window == 1:
        return [Series(label, points, colour)]
    return [
        Series("", points, colour, faint=True),
        Series(label, running_mean(points, window=window), colour),
    ]
