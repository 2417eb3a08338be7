"""`make bench-trainer`, a short one: it measures, ours is the faster layout, and files say so."""

import json
from pathlib import Path

import pytest

from tests.bench_trainer import METHODS, main


@pytest.mark.slow
def test_the_benchmark_measures_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--folder", str(tmp_path), "--rounds", "1", "--latencies", "0", "200", "--prompts", "16"])
    found = json.loads((tmp_path / "trainer.json").read_text(encoding="utf-8"))
    assert set(found["methods"]) == set(METHODS)
    for measured in found["methods"].values():
        fast, slow = measured["speed"]
        assert (fast["latency_ms"], slow["latency_ms"]) == (0, 200)
        # A layout that waits for each picture pays every latency; two busy cores make no more certain.
        assert 1 < fast["ratio"] < slow["ratio"]
        assert measured["memory"]["ratio"] < 0.5
    assert (tmp_path / "trainer.html").read_text(encoding="utf-8").count("<svg") == len(METHODS)
    assert "prompts/s" in capsys.readouterr().out
