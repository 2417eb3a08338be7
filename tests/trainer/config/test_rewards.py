"""Settings of the rewards: one source of scores, and a judge that is never trained on."""

import pytest
from pydantic import ValidationError

from trainer.config import RewardsConfig


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "set one of services"),
        ({"weights": {}, "judge": "verifier"}, "set one of services"),
        ({"weights": {}, "judge": "verifier", "url": "http://rewards:8000"}, "set weights={NAME: WEIGHT}"),
        ({"weights": {}, "services": "deploy/rewards.yaml"}, "set weights={NAME: WEIGHT}"),
        ({"services": "deploy/rewards.yaml", "url": "http://rewards:8000"}, "set one of services"),
        ({"url": "http://rewards:8000", "judge": "clip"}, "the judge 'clip' is also a training reward"),
        ({"url": "http://rewards:8000", "shadows": ["clip"]}, "'clip' scores held-out pictures anyway"),
        (
            {"url": "http://rewards:8000", "judge": "verifier", "shadows": ["verifier"]},
            "'verifier' scores held-out pictures anyway",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        RewardsConfig.model_validate({"weights": {"clip": 1.0}, **settings})


def test_there_may_be_none() -> None:
    assert RewardsConfig().names == []


def test_every_reward_is_named_once() -> None:
    settings = {
        "url": "http://rewards:8000",
        "weights": {"clip": 1.0},
        "judge": "verifier",
        "shadows": ["jpeg"],
    }
    assert RewardsConfig.model_validate(settings).names == ["clip", "verifier", "jpeg"]
