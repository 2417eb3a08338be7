"""What a judge makes of a model's answers: expectations worked by hand, failures that stay failures."""

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reward_services.errors import ReplicaFailed, ReplicaLost, RewardError, ScoreNotFinite, ScoringFailed
from reward_services.judges.judge import Judge, expectation
from reward_services.judges.rubric import Question, Rubric

RUBRIC = Rubric.model_validate(
    {
        "name": "mood",
        "version": 1,
        "instruction": "Look.",
        "levels": {"1": 0, "2": 5, "3": 10},
        "aspects": {"warm": {"question": "Warm?", "weight": 3}, "calm": {"question": "Calm?"}},
    }
)
IMAGE = np.zeros((8, 8, 3), np.uint8)


class Scripted:
    """A model whose answers are known, by question."""

    def __init__(self, answers: dict[str, Any], *, revision: str = "a", seconds: float = 0.0) -> None:
        self.revision, self._answers, self._seconds = revision, answers, seconds

    async def probabilities(
        self, image: NDArray[np.uint8], question: Question, *, expires: float
    ) -> Mapping[str, float]:
        await asyncio.sleep(self._seconds)
        answer = self._answers[question.text]
        if isinstance(answer, RewardError):
            raise answer
        found: Mapping[str, float] = answer
        return found

    async def check(self) -> None:
        raise ReplicaLost("dead")

    async def close(self) -> None: ...


WARM, CALM = {"1": 0.1, "2": 0.3, "3": 0.6}, {"1": 0.5, "2": 0.5, "3": 0.0}


def score(model: Scripted, image: NDArray[np.uint8] = IMAGE, seconds: float = 5.0) -> Any:
    return asyncio.run(Judge(model, RUBRIC).score(image, "a cat", expires=time.monotonic() + seconds))


def test_the_expectation_by_hand() -> None:
    # (0 * 0.1 + 5 * 0.3 + 10 * 0.6) / 1.0, and the same where the levels have but half the probability.
    assert expectation(WARM, RUBRIC.levels) == pytest.approx(7.5)
    assert expectation(
        {level: p / 2 for level, p in WARM.items()} | {"x": 9}, RUBRIC.levels
    ) == pytest.approx(7.5)


@pytest.mark.parametrize(
    ("probabilities", "error"),
    [
        ({"1": 0.4, "3": 0.6}, ScoringFailed),
        ({"1": 0.0, "2": 0.0, "3": 0.0}, ScoreNotFinite),
        ({"1": math.nan, "2": 0.5, "3": 0.5}, ScoreNotFinite),
    ],
)
def test_no_expectation_is_a_failure(probabilities: dict[str, float], error: type[RewardError]) -> None:
    with pytest.raises(error):
        expectation(probabilities, RUBRIC.levels)


def test_aspects_are_parts_and_their_weighted_mean_the_value() -> None:
    scored = score(Scripted({"Warm?": WARM, "Calm?": CALM}))
    assert scored.parts == pytest.approx({"warm": 7.5, "calm": 2.5})
    assert scored.value == pytest.approx((3 * 7.5 + 2.5) / 4)


def test_one_aspect_that_fails_fails_the_picture() -> None:
    scored = score(Scripted({"Warm?": WARM, "Calm?": ScoringFailed("refused")}))
    assert scored.value is None
    assert scored.error.type == "/problems/scoring-failed"


def test_when_one_aspect_fails_the_others_are_given_up() -> None:
    """Each answer may cost money, and the picture's place is another's then."""
    ended: list[str] = []

    class Asked(Scripted):
        async def probabilities(self, *asked: Any, **expires: Any) -> Mapping[str, float]:
            if asked[1].text == "Calm?":
                raise ScoringFailed("refused")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append(asked[1].text)
                raise
            raise AssertionError("nobody waits so long")

    async def run() -> None:
        scored = await Judge(Asked({}), RUBRIC).score(IMAGE, "a cat", expires=time.monotonic() + 5)
        assert scored.error is not None
        await asyncio.sleep(0)
        assert ended == ["Warm?"]

    asyncio.run(run())


def test_the_deadline_is_kept() -> None:
    began = time.monotonic()
    scored = score(Scripted({"Warm?": WARM, "Calm?": CALM}, seconds=5), seconds=0.1)
    assert scored.error.type == "/problems/deadline-exceeded"
    assert time.monotonic() - began < 2
    assert score(Scripted({}), seconds=-1).error.type == "/problems/deadline-exceeded"


@pytest.mark.parametrize("shape", [(8, 8), (0, 8, 3), (1, 65, 3), (650, 10, 3)])
def test_no_picture_is_asked_about_that_cannot_be_one(shape: tuple[int, ...]) -> None:
    assert score(Scripted({}), np.zeros(shape, np.uint8)).error.type == "/problems/image-invalid"


def test_the_revision_is_the_models_and_the_rubrics() -> None:
    answers = {"Warm?": WARM, "Calm?": CALM}
    other = RUBRIC.model_copy(update={"version": 2})
    revisions = {Judge(Scripted(answers), RUBRIC).revision, Judge(Scripted(answers), other).revision}
    revisions.add(Judge(Scripted(answers, revision="b"), RUBRIC).revision)
    assert len(revisions) == 3
    judge = Judge(Scripted(answers), RUBRIC)
    assert score(Scripted(answers)).revision == judge.revision
    info = judge.describe("mood", max_items=7)
    assert (info.revision, info.range, info.max_items) == (judge.revision, (0, 10), 7)


def test_a_judge_proves_itself_at_the_start() -> None:
    asyncio.run(Judge(Scripted({"Warm?": WARM, "Calm?": CALM}), RUBRIC).prove())
    failing = Judge(Scripted({"Warm?": WARM, "Calm?": ScoringFailed("no key")}), RUBRIC)
    with pytest.raises(ReplicaFailed, match="golden sample cannot be scored: no key"):
        asyncio.run(failing.prove())


def test_its_health_is_the_models() -> None:
    with pytest.raises(ReplicaLost):
        asyncio.run(Judge(Scripted({}), RUBRIC).check())
