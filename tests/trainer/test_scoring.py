"""Previews go out in one order and their scores come back in the same; a failed score is NaN, and counted."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from reward_services import DeadlineExceeded, ReplicaLost, Score
from trainer.branches import Branches
from trainer.families.family import Conditioning
from trainer.records import Prompt
from trainer.scoring import FailureBudget, Scores, Unscored, drop_prompts, submit_previews

PROMPTS = (Prompt(0, "a red circle"), Prompt(1, "two blue squares"))
BRANCHES, STEPS = 3, (4, 9)


class Brightness:
    """Scores a picture by its first pixel; one whose first pixel is 255 cannot be scored."""

    devices = None

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.waited = 0

    def submit(
        self, images: NDArray[np.uint8], prompts: Sequence[str], rewards: Sequence[str]
    ) -> Callable[[], Scores]:
        self.prompts = list(prompts)
        assert images.shape == (len(prompts), 2, 2, 3)

        def wait() -> Scores:
            self.waited += 1
            return {name: [self._score(image) for image in images] for name in rewards}

        return wait

    def revisions(self) -> Mapping[str, str]:
        return {}

    def stats(self) -> Mapping[str, Any]:
        return {}

    def _score(self, image: NDArray[np.uint8]) -> Score:
        value = int(image[0, 0, 0])
        return Score.of(value) if value < 255 else Score.failed(ReplicaLost("the replica died"))


def branches(failing: Sequence[tuple[int, int, int]] = ()) -> Branches:
    """Two prompts, three branches, previews at steps 9 and 4; a picture's value is 100 p + 10 k + t."""
    values = np.array([[[100 * p + 10 * k + t for t in range(2)] for k in range(BRANCHES)] for p in range(2)])
    for place in failing:
        values[place] = 255
    pictures = np.zeros((2, BRANCHES, 2, 2, 2, 3), np.uint8)
    pictures[:, :, :, 0, 0, 0] = values
    empty = torch.zeros(2, 1, 1)
    return Branches(
        prompts=PROMPTS,
        text=Conditioning(empty, empty, empty),
        states=torch.zeros(1, 2, BRANCHES, 1, 1, 1),
        previews={9: pictures[:, :, 1], 4: pictures[:, :, 0]},
        unet_evaluations=0,
    )


def scored(
    failing: Sequence[tuple[int, int, int]] = (), budget: FailureBudget | None = None
) -> dict[str, torch.Tensor]:
    return submit_previews(
        Brightness(), branches(failing), ["clip", "jpeg"], budget or FailureBudget(share=1.0)
    )()


def test_scores_find_their_prompt_branch_and_step() -> None:
    scores = scored()
    assert list(scores) == ["clip", "jpeg"]
    for values in scores.values():
        assert values.tolist() == [[[0, 1], [10, 11], [20, 21]], [[100, 101], [110, 111], [120, 121]]]


def test_each_picture_goes_with_its_prompt() -> None:
    scoring = Brightness()
    submit_previews(scoring, branches(), ["clip"], FailureBudget(share=0.0))
    assert scoring.prompts == ["a red circle"] * 6 + ["two blue squares"] * 6


def test_nothing_waits_until_asked() -> None:
    scoring = Brightness()
    wait = submit_previews(scoring, branches(), ["clip"], FailureBudget(share=0.0))
    assert scoring.waited == 0
    wait()
    assert scoring.waited == 1


def test_a_failed_score_is_nan_in_its_place() -> None:
    budget = FailureBudget(share=0.0)
    scores = scored([(1, 2, 0), (0, 0, 1)], budget)
    assert scores["clip"].isnan().nonzero().tolist() == [[0, 0, 1], [1, 2, 0]]
    assert (budget.failures, budget.scores) == (4, 24)


def test_drop_prompts_drops_the_whole_prompt() -> None:
    dropped = drop_prompts(scored([(1, 2, 0)])["clip"])
    assert dropped.isnan().flatten(1).all(1).tolist() == [False, True]
    assert dropped[0].tolist() == [[0, 1], [10, 11], [20, 21]]
    assert drop_prompts(scored()["clip"]).tolist() == scored()["clip"].tolist()


def counted(budget: FailureBudget, *, failures: int, scores: int) -> str | None:
    for place in range(scores):
        value = budget.count(
            Score.failed(ReplicaLost(f"loss {place}")) if place < failures else Score.of(2.0)
        )
        assert math.isnan(value) if place < failures else value == 2.0
    return budget.exhausted


def test_failures_within_the_budget_stop_nothing() -> None:
    assert FailureBudget(share=0.0).exhausted is None
    assert counted(FailureBudget(share=0.1), failures=0, scores=50) is None
    assert counted(FailureBudget(share=0.1), failures=30, scores=300) is None


def test_a_few_failures_are_no_share() -> None:
    assert counted(FailureBudget(share=0.01), failures=16, scores=16) is None
    assert counted(FailureBudget(share=0.01), failures=17, scores=17) is not None
    assert counted(FailureBudget(share=0.0), failures=1, scores=100) is not None


def test_failures_beyond_the_budget_name_the_last_cause() -> None:
    reason = counted(FailureBudget(share=0.1), failures=31, scores=300)
    assert reason is not None
    assert reason.startswith("31 of the last 300 scores failed")
    assert "loss 30" in reason
    assert "\n" not in reason


def test_a_reward_that_dies_late_is_not_outweighed_by_its_past() -> None:
    budget = FailureBudget(share=0.05)
    assert counted(budget, failures=0, scores=100_000) is None
    assert counted(budget, failures=50, scores=50) is None
    assert str(counted(budget, failures=1, scores=1)).startswith("51 of the last 1000 scores failed")


def test_a_call_that_took_too_long_says_what_bounds_it() -> None:
    budget = FailureBudget(share=0.0)
    budget.count(Score.failed(DeadlineExceeded("clip did not answer within 30 s")))
    assert "within 30 s (a call of rewards.batch_images pictures has rewards.attempt_s" in str(
        budget.exhausted
    )


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_failure_is_too_many_when_told_so(share: float) -> None:
    assert counted(FailureBudget(share, stop_at_once=True), failures=0, scores=3) is None
    assert counted(FailureBudget(share, stop_at_once=True), failures=1, scores=300) is not None


def test_without_rewards_nothing_is_scored_counted_or_reserved() -> None:
    nobody = Unscored()
    assert (nobody.stats(), nobody.revisions(), nobody.devices.count) == ({}, {}, 0)
    with pytest.raises(ValueError, match=r"the run has no rewards: set rewards\.weights, and"):
        nobody.submit(np.zeros((1, 2, 2, 3), np.uint8), ["a red circle"], ["jpeg"])
