"""The rule-based verifier as a reward: true pictures score 1, false ones 0 and say why, others fail."""

import numpy as np
import pytest
from numpy.typing import NDArray

from reward_services.scorers.verifier import VerifierScorer
from reward_services.shapes import captions, render


@pytest.fixture(scope="module")
def scorer() -> VerifierScorer:
    return VerifierScorer()


def picture(text: str, seed: int = 0) -> NDArray[np.uint8]:
    return render.render(captions.parse(text), np.random.default_rng(seed))


def test_a_true_picture_scores_one(scorer: VerifierScorer) -> None:
    texts = ["a small red circle", "two blue squares", "a green cross above a cyan triangle"]
    for score in scorer.score([picture(text) for text in texts], texts):
        assert score.value == 1.0
        assert score.parts is not None
        assert set(score.parts.values()) == {1.0}


def test_a_false_picture_scores_zero_and_says_what_is_wrong(scorer: VerifierScorer) -> None:
    (score,) = scorer.score([picture("a red circle")], ["a red square"])
    assert score.value == 0.0
    assert score.parts is not None
    assert score.parts["colour"] == 1.0
    assert score.parts["shape"] == 0.0


def test_no_caption_of_the_world_is_a_failure_not_zero(scorer: VerifierScorer) -> None:
    pictures = [picture("a red circle")] * 2
    bad, good = scorer.score(pictures, ["an astronaut riding a horse", "a red circle"])
    assert bad.value is None
    assert bad.error is not None
    assert (bad.error.status, bad.error.type) == (422, "/problems/prompt-invalid")
    assert good.value == 1.0


def test_another_size_is_a_failure(scorer: VerifierScorer) -> None:
    (score,) = scorer.score([np.zeros((64, 64, 3), np.uint8)], ["a red circle"])
    assert score.error is not None
    assert score.error.detail == "the verifier reads 32 x 32 pictures, not 64 x 64"


def test_the_golden_sample_is_true(scorer: VerifierScorer) -> None:
    image, prompt = scorer.golden()
    assert scorer.score([image], [prompt])[0].value == 1.0
