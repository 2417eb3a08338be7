"""What a replica measures, with a list where Ray's metrics would be."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward_services import ConfigInvalid, DeadlineExceeded, ImageInvalid, RewardInfo, Score
from reward_services.config import Observe
from reward_services.observed import METRICS, Metric, Observed, read_reference
from reward_services.scorers.scorer import finite_score

Labels = tuple[tuple[str, str], ...]


class Notes:
    """A `Record` that can be read: what counters gained, what gauges are, what was measured."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, Labels], list[float]] = {}

    def __call__(self, metric: Metric, value: float, /, **labels: str) -> None:
        assert set(labels) == set(metric.labels)
        assert metric.kind != "counter" or value > 0
        self.values.setdefault((metric.name, tuple(sorted(labels.items()))), []).append(value)

    def of(self, name: str, **labels: str) -> list[float]:
        return self.values.get((name, tuple(sorted({"reward": "mine", **labels}.items()))), [])

    def total(self, name: str, **labels: str) -> float:
        return sum(self.of(name, **labels))

    def gauge(self, name: str, **labels: str) -> float:
        return self.of(name, **labels)[-1]


def info(revision: str = "r1", score_range: Any = (0.0, 1.0)) -> RewardInfo:
    return RewardInfo(
        id="mine",
        revision=revision,
        range=score_range,
        higher_is_better=True,
        deterministic=True,
        modality=("text", "image"),
        max_items=16,
        ready=True,
    )


def observed(notes: Notes, **options: Any) -> Observed:
    watching = Observed("mine", notes)
    watching.serve(info(), dtype="float32", options=Observe(**options))
    return watching


def scores(values: Sequence[float], revision: str = "r1") -> list[Score]:
    return [Score.of(float(value)).by(revision) for value in values]


def test_items_are_counted_by_outcome_and_nan_is_not_finite() -> None:
    notes = Notes()
    failed = [Score.failed(ImageInvalid("torn")), Score.failed(DeadlineExceeded("late"))]
    observed(notes).scored([*scores([0.1, 0.2]), *failed, finite_score(math.nan), finite_score(math.inf)])
    found = {
        outcome: notes.total("reward_items", outcome=outcome)
        for outcome in ("ok", "image-invalid", "deadline-exceeded", "score-not-finite")
    }
    assert found == {"ok": 2, "image-invalid": 1, "deadline-exceeded": 1, "score-not-finite": 2}


def test_a_failure_is_no_score() -> None:
    notes = Notes()
    observed(notes).scored([finite_score(math.nan)] * 1000)
    assert {name for name, _ in notes.values} == {"reward_items", "reward_model_info", "reward_scores"}
    assert notes.gauge("reward_scores", up_to="+Inf") == 0


def test_scores_are_counted_up_to_each_edge() -> None:
    notes = Notes()
    watching = observed(notes, score_edges=(-1.0, 0.0, 0.5, 1.0), window=10)
    edges = ("-1", "0", "0.5", "1", "+Inf")
    assert [notes.of("reward_scores", up_to=edge) for edge in edges] == [[0]] * 5
    watching.scored(scores([0.0, 0.25, 0.5, 0.75, 2.0]))
    watching.scored(scores([0.25]))
    assert [notes.gauge("reward_scores", up_to=edge) for edge in edges] == [0, 1, 4, 5, 6]


def test_scores_of_another_distribution_raise_the_drift() -> None:
    notes, rng = Notes(), np.random.default_rng(0)
    watching = observed(notes, window=200)
    for mean in (0.3, 0.3, 0.6):
        for _ in range(20):
            watching.scored(scores(rng.normal(mean, 0.1, 10).tolist()))
    before, after = notes.of("reward_score_drift")[1:12], notes.gauge("reward_score_drift")
    assert max(before) < 0.2
    assert after > 0.8
    assert notes.gauge("reward_score_mean") == pytest.approx(0.6, abs=0.05)
    assert notes.gauge("reward_score_std") == pytest.approx(0.1, abs=0.02)


def test_saturation_and_duplicates_of_a_verdict() -> None:
    notes = Notes()
    observed(notes, window=10).scored(scores([0.0, 1.0] * 5))
    assert notes.gauge("reward_score_saturation") == 1.0
    assert notes.gauge("reward_score_duplicates") == 0.8


def test_a_new_revision_has_a_window_of_its_own() -> None:
    notes = Notes()
    watching = observed(notes, window=10)
    watching.scored(scores([0.0] * 10))
    watching.serve(info("r2"), dtype="float16", options=Observe(window=10))
    assert notes.gauge("reward_model_info", revision="r1", dtype="float32") == 0
    assert notes.gauge("reward_model_info", revision="r2", dtype="float16") == 1
    watching.scored(scores([0.5] * 10, "r1"))
    watching.scored(scores([1.0] * 10, "r2"))
    assert notes.of("reward_score_mean") == [0.0, 1.0], "what the model before says late is not watched"
    assert notes.gauge("reward_score_drift") == 0.0


def test_the_same_model_goes_on_with_its_window() -> None:
    notes = Notes()
    watching = observed(notes, window=20)
    for value in (0.0, 1.0):
        watching.serve(info(), dtype="float32", options=Observe(window=20))
        watching.scored(scores([value] * 20))
    assert notes.gauge("reward_score_drift") == 1.0


def test_a_reference_file_holds_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps([0.0] * 50), encoding="utf-8")
    notes = Notes()
    observed(notes, window=10, reference=str(path)).scored(scores([1.0] * 10))
    assert notes.gauge("reward_score_drift") == 1.0


@pytest.mark.parametrize("content", [None, "{}", "[1, null]", '["1"]', "[NaN]", "[1,", "[]"])
def test_another_file_is_refused_in_a_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "scores.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigInvalid, match=r"observe\.reference .*scores\.json") as raised:
        read_reference(str(path))
    assert "\n" not in str(raised.value)


def test_what_is_held_is_let_go_of_again() -> None:
    notes = Notes()
    watching = observed(notes)
    with pytest.raises(KeyError), watching.holding(4), watching.holding(3):
        raise KeyError
    assert notes.of("reward_items_under_way") == [4, 7, 4, 0]


def test_work_is_timed_even_when_it_fails() -> None:
    notes = Notes()
    with pytest.raises(ZeroDivisionError):
        observed(notes).timed("run", lambda: 1 / 0)()
    (seconds,) = notes.of("reward_request_seconds", phase="run")
    assert 0 <= seconds < 1


def test_labels_are_bounded() -> None:
    assert {label for metric in METRICS for label in metric.labels} == {
        *("reward", "phase", "outcome", "up_to", "revision", "dtype")
    }
    assert len({metric.name for metric in METRICS}) == len(METRICS)
