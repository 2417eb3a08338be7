"""Demon and Free2Guide steer towards the reward, with every noise the length of a noise."""

from pathlib import Path

import pytest
import torch

from tests.trainer.search.seeking import STEPS, searcher
from trainer.search import SEARCHES, search
from trainer.search.steering import _standardised


@pytest.mark.parametrize("method", ["demon", "free2guide"])
def test_steered_pictures_are_brighter_than_unsteered_ones(pipelines: dict[str, Path], method: str) -> None:
    def mean_of(run: str, budget: int) -> float:
        scores = []
        for seed in range(4):
            seeker, _, _ = searcher(pipelines["epsilon"], budget, seed=seed)
            SEARCHES[run].run(seeker)
            scores.append(seeker.found().score)
        return sum(scores) / len(scores)

    assert mean_of(method, 20 * STEPS) > mean_of("best_of_n", STEPS)


def test_steering_needs_noise(pipelines: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="choose eta > 0"):
        search("demon", searcher(pipelines["epsilon"], 100, eta=0.0)[0])


def test_scores_are_standardised_by_hand() -> None:
    """1, 2 and 6 around 3, spread sqrt(14 / 3); a failed one counts as 1."""
    found = _standardised(torch.tensor([1.0, 2.0, 6.0]))
    assert found.tolist() == pytest.approx([value / (14 / 3) ** 0.5 for value in (-2, -1, 3)])
    failed = _standardised(torch.tensor([1.0, -torch.inf, 3.0]))
    assert failed[0] == failed[1] < 0 < failed[2]
    assert _standardised(torch.tensor([-torch.inf, -torch.inf])).tolist() == [1, 1]


@pytest.mark.parametrize("scores", [[0.0, 0.0], [0.0, 0.0, 0.0], [5.0, -torch.inf], [65.1] * 7])
def test_verdicts_that_are_all_the_same_leave_a_noise(scores: list[float]) -> None:
    """Demon's weights would all be 0, and the step be taken without any."""
    weights = torch.tanh(_standardised(torch.tensor(scores)))
    assert weights.tolist() == [pytest.approx(0.76159, abs=1e-4)] * len(scores)
