"""`make bench-trainer`, a short one: it measures, ours is the faster layout, and files say so."""

import json
from pathlib import Path

import pytest

from tests.bench_trainer import METHODS, contest, main, parsed, peak_bytes


@pytest.mark.slow
def test_the_benchmark_measures_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--folder", str(tmp_path), "--rounds", "1", "--latencies", "0", "200", "--prompts", "16"])
    found = json.loads((tmp_path / "trainer.json").read_text(encoding="utf-8"))
    assert set(found["methods"]) == set(METHODS)
    for measured in found["methods"].values():
        fast, slow = measured["speed"]
        assert (fast["latency_ms"], slow["latency_ms"]) == (0, 200)
        # A layout that waits for each picture pays every latency. Busy cores allow no closer bounds of time.
        assert 2 < fast["ratio"] < slow["ratio"]
        assert fast["over_bare"] < 1.5
        assert fast["stall"] < 0.1
        assert measured["memory"]["ratio"] <= 1 / 3
    assert (tmp_path / "trainer.html").read_text(encoding="utf-8").count("<svg") == len(METHODS)
    assert "prompts/s" in capsys.readouterr().out


def test_an_update_holds_a_third_of_what_the_published_layout_does() -> None:
    """Bytes, by which a busy machine does not matter, another processor's scratch a little."""
    with contest(parsed([]), "rlhf_sharpening") as (both, _):
        both.ours(), both.theirs()  # the optimizers' moments stay
        assert peak_bytes(both.ours) < 0.36 * peak_bytes(both.theirs)
