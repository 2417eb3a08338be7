"""What an evaluation waits for, by hand."""

from pathlib import Path

import pytest

from tests.small_run import configured
from trainer.evaluating import evaluation_of


def test_an_evaluation_waits_for_the_slowest(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """8 pictures of 3 guided steps: 3, 3 and 2 are drawn in 1.8, 1.8 and 1.2 s.

    A judge of 0.2 pictures a second begins at 1.8 s and has 40 s to do. Of two the first is done with 3 at
    16.8 s and then has the last 2 to do.
    """
    config = configured(tmp_path, pipelines["epsilon"])
    found = evaluation_of(config, 0.1, {"large": 0.2}, {})
    assert found is not None
    assert found.pictures == 8
    assert found.drawing_s == pytest.approx(4.8)
    assert found.rewards["large"].tail_s == pytest.approx(1.8 + 40 - 4.8)
    assert found.rewards["large"].call_s == pytest.approx(40)
    both = evaluation_of(config, 0.1, {"large": 0.2, "jpeg": 100.0}, {"large": 2})
    assert both is not None
    assert both.rewards["large"].tail_s == pytest.approx(16.8 + 10 - 4.8)
    assert both.rewards["large"].images_per_second == pytest.approx(0.4)
    assert both.rewards["jpeg"].tail_s == pytest.approx(0.02)


def test_ranks_share_an_evaluation(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """Of 10 pictures each of 2 ranks draws 5: 3 and 2."""
    config = configured(tmp_path, pipelines["epsilon"], "evaluation.draws=10", "ranks.workers=2")
    found = evaluation_of(config, 0.1, {}, {})
    assert found is not None
    assert found.pictures == 10
    assert found.drawing_s == pytest.approx(3.0)
    assert found.rewards == {}


def test_without_held_out_prompts_there_is_none(pipelines: dict[str, Path], tmp_path: Path) -> None:
    config = configured(tmp_path, pipelines["epsilon"], "prompts.held_out=null")
    assert evaluation_of(config, 0.1, {"jpeg": 1.0}, {}) is None
