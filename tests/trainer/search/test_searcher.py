"""Every search keeps its budget, counts what it asks, repeats by its seed, and finds what it judged best."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.search.seeking import STEPS, searcher
from trainer.search import SEARCHES, search

METHODS = pytest.mark.parametrize("method", SEARCHES)


@METHODS
@pytest.mark.parametrize(("budget", "guidance"), [(61, 1.0), (97, 1.0), (150, 2.0)])
def test_the_budget_is_kept_and_what_is_counted_was_asked(
    pipelines: dict[str, Path], method: str, budget: int, guidance: float
) -> None:
    seeker, policy, judge = searcher(pipelines["epsilon"], budget, guidance=guidance)
    found = search(method, seeker)
    assert found.evaluations == policy.asked
    assert 0.7 * budget < found.evaluations <= budget
    assert found.pictures_judged == judge.judged
    assert list(found.best_scores) == sorted(found.best_scores)
    assert found.score == found.best_scores[-1] == pytest.approx(found.picture.mean() / 255)


@METHODS
def test_a_seed_repeats_a_search(pipelines: dict[str, Path], method: str) -> None:
    one, again, other = (
        search(method, searcher(pipelines["epsilon"], 61, seed=seed)[0]) for seed in (1, 1, 2)
    )
    assert np.array_equal(one.picture, again.picture)
    assert not np.array_equal(one.picture, other.picture)


@METHODS
def test_a_budget_that_is_too_small_is_an_error(pipelines: dict[str, Path], method: str) -> None:
    seeker, policy, _ = searcher(pipelines["epsilon"], STEPS - 1)
    with pytest.raises(ValueError, match=f"a budget of {STEPS - 1} evaluations is too small for .*; give"):
        search(method, seeker)
    assert policy.asked == 0


def test_nothing_is_asked_above_the_budget(pipelines: dict[str, Path]) -> None:
    seeker, policy, _ = searcher(pipelines["epsilon"], 3)
    with pytest.raises(RuntimeError, match="4 steps are not left in a budget of 3"):
        seeker.denoise(seeker.noise(4))
    assert policy.asked == 0


def test_failed_scores_never_win(pipelines: dict[str, Path]) -> None:
    seeker, _, judge = searcher(pipelines["epsilon"], 48)
    with pytest.raises(RuntimeError, match="no picture of the search could be scored"):
        seeker.found()
    seeker._judge = lambda pictures, prompt: torch.where(
        torch.arange(len(pictures)) == 0, torch.nan, judge(pictures, prompt)
    )
    seeker.judge(seeker.noise(1), finished=True)
    scores = seeker.judge(seeker.noise(3), finished=True)
    assert scores[0] == -torch.inf
    assert seeker.found().score == pytest.approx(float(scores[1:].max()))
    assert seeker.found().best_scores == (seeker.found().score,)


def test_noise_free_steps_are_those_of_plain_sampling(pipelines: dict[str, Path]) -> None:
    """DDIM from one noise, whether in one go or in parts."""
    seeker, _, _ = searcher(pipelines["epsilon"], 24)
    noise = seeker.noise(2)
    torch.testing.assert_close(
        seeker.denoise(seeker.denoise(noise, last=2), 2), seeker.denoise(noise), rtol=1e-4, atol=1e-4
    )
