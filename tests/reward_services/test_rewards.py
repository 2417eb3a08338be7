"""Checks that both backends of the protocol share."""

import pytest

from reward_services import RequestInvalid, RewardNotReady, RewardUnknown
from reward_services.rewards import check_batch, check_known, check_ready, told_s
from reward_services.scorers.jpeg import JpegScorer


def test_a_level_tells_the_one_below_less_than_it_waits() -> None:
    """A tenth less, half a second at most: 30 s of a client are 28.5 s of a replica, three levels below."""
    assert told_s(1.0) == pytest.approx(0.9)
    assert told_s(30.0) == 29.5
    assert told_s(told_s(told_s(30.0))) == 28.5
    assert told_s(-1.0) == 0.001


def test_a_batch_has_one_prompt_per_image() -> None:
    check_batch([1, 2], ["a", "b"])
    with pytest.raises(RequestInvalid, match="2 images but 1 prompts"):
        check_batch([1, 2], ["a"])


def test_one_text_is_no_list_of_its_letters() -> None:
    for images, prompts, rewards, name in (
        (["x.png"], "a", ["clip"], "prompts"),
        ("x.png", ["a"] * 5, ["clip"], "images"),
        (b"png", ["a"] * 3, ["clip"], "images"),
        (["x.png"], ["a"], "clip", "rewards"),
    ):
        with pytest.raises(RequestInvalid, match=f"^{name} must be a list"):
            check_batch(images, prompts, rewards)


def test_an_unknown_reward_names_the_nearest() -> None:
    check_known(["clip"], {"clip", "jpeg"})
    with pytest.raises(RewardUnknown, match="no reward 'clop'; did you mean 'clip'"):
        check_known(["clip", "clop"], {"clip", "jpeg"})
    with pytest.raises(RewardUnknown, match="there are: clip, jpeg"):
        check_known(["aesthetic"], {"jpeg", "clip"})


def test_what_is_not_ready_is_named() -> None:
    infos = [JpegScorer().describe(name, max_items=1) for name in ("a", "b", "c")]
    check_ready(infos)
    waiting = [infos[0], *(info.model_copy(update={"ready": False}) for info in infos[1:])]
    with pytest.raises(RewardNotReady, match="not ready: b, c"):
        check_ready(waiting)
