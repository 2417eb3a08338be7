"""Checks that both backends of the protocol share."""

import pytest

from reward_services import RequestInvalid, RewardUnknown
from reward_services.rewards import check_batch, check_known


def test_a_batch_has_one_prompt_per_image() -> None:
    check_batch([1, 2], ["a", "b"])
    with pytest.raises(RequestInvalid, match="2 images but 1 prompts"):
        check_batch([1, 2], ["a"])


def test_an_unknown_reward_names_the_nearest() -> None:
    check_known(["clip"], {"clip", "jpeg"})
    with pytest.raises(RewardUnknown, match="no reward 'clop'; did you mean 'clip'"):
        check_known(["clip", "clop"], {"clip", "jpeg"})
    with pytest.raises(RewardUnknown, match="there are: clip, jpeg"):
        check_known(["aesthetic"], {"jpeg", "clip"})
