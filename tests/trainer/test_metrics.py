"""Metrics are on disk at once and survive an interruption."""

import json
from pathlib import Path

from trainer.metrics import MetricsLog, read_metrics


def test_each_update_is_a_line_that_can_be_read_at_once(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.record(1, {"reward": 0.5})
        log.record(2, {"reward": 0.75, "accuracy": 0.25})
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == read_metrics(tmp_path / "metrics.jsonl")
        assert read_metrics(tmp_path / "metrics.jsonl")[1] == {"update": 2, "reward": 0.75, "accuracy": 0.25}


def test_the_revisions_of_the_rewards_are_in_the_line(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.record(1, {"reward": 0.5}, {"clip": "a"})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"update": 1, "reward": 0.5, "revisions": {"clip": "a"}}
    ]


def test_a_value_that_is_not_finite_is_null_and_not_a_number(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.record(1, {"loss": float("nan"), "norm": float("inf")})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"update": 1, "loss": None, "norm": None}]


def test_resuming_forgets_later_updates_and_a_torn_line(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for update in (1, 2, 3):
            log.record(update, {"reward": float(update)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "rew')
    with MetricsLog(tmp_path, resumed_update=2) as log:
        log.record(3, {"reward": 30.0})
    assert [line["reward"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 2.0, 30.0]


def test_a_new_run_starts_from_nothing(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.record(1, {"reward": 1.0})
    MetricsLog(tmp_path).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert read_metrics(tmp_path / "nowhere.jsonl") == []


def test_only_rank_0_writes(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "run", rank=1) as log:
        log.record(1, {"reward": 1.0})
    assert not (tmp_path / "run").exists()
