"""The client's half of the protocol without I/O: what is retried, how long, and what replies mean."""

import time
from typing import Any

import numpy as np
import pytest

from reward_services import (
    BadAnswer,
    DeadlineExceeded,
    ImageInvalid,
    Overloaded,
    PromptInvalid,
    ReplicaFailed,
    ReplicaLost,
    RequestInvalid,
    RewardError,
    Score,
    ScoredItem,
    ScoreResponse,
    ServerUnreachable,
    TooLarge,
)
from reward_services.exchange import (
    Ask,
    Reply,
    Send,
    attached,
    error_in,
    exchange,
    merged,
    score_calls,
    scoring,
)

PICTURE = np.zeros((4, 4, 3), np.uint8)


def reply(status: int, content: bytes = b"", retry_after: str = "") -> Reply:
    return Reply("http://test/v1/scores", status, retry_after, content)


def drive(outcomes: list[Any], deadline_s: float = 60.0, retries: int = 4) -> tuple[Any, list[float]]:
    """Feed outcomes one by one; returns what came of it and the pauses asked for."""
    steps = exchange(deadline_s, retries)
    pauses: list[float] = []
    waiting = iter(outcomes)
    outcome = None
    try:
        while True:
            step = steps.send(outcome)
            outcome = None
            if isinstance(step, Send):
                outcome = next(waiting)
            else:
                pauses.append(step.seconds)
    except StopIteration as finished:
        return finished.value, pauses
    except RewardError as error:
        return error, pauses


def test_a_good_reply_is_returned_at_once() -> None:
    assert drive([reply(200)]) == (reply(200), [])


@pytest.mark.parametrize(
    "first", [reply(408), reply(429), reply(500), reply(502), reply(503), ServerUnreachable("refused")]
)
def test_what_may_pass_is_tried_again(first: Any) -> None:
    result, pauses = drive([first, reply(200)])
    assert result == reply(200)
    assert len(pauses) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 415, 422])
def test_what_will_fail_again_is_not(status: int) -> None:
    result, pauses = drive([reply(status)])
    assert isinstance(result, RewardError)
    assert pauses == []


def test_attempts_are_bounded_and_pauses_grow_with_jitter() -> None:
    result, pauses = drive([reply(500)] * 5)
    assert isinstance(result, ReplicaFailed)
    assert len(pauses) == 4
    for attempt, pause in enumerate(pauses):
        assert 0.25 * 2**attempt <= pause <= 0.375 * 2**attempt
    assert drive([reply(500)] * 5)[1] != pauses


def test_the_server_may_say_when() -> None:
    _, pauses = drive([reply(429, retry_after="7"), reply(200)])
    assert 7.0 <= pauses[0] <= 10.5


def test_no_pause_goes_beyond_the_deadline() -> None:
    result, pauses = drive([reply(429, retry_after="7")], deadline_s=5.0)
    assert isinstance(result, Overloaded)
    assert pauses == []


def test_a_problem_becomes_the_error_it_names() -> None:
    error = error_in(reply(413, TooLarge("too many bytes").problem().model_dump_json().encode()))
    assert isinstance(error, TooLarge)
    assert str(error) == "too many bytes"


def test_something_else_than_a_reward_server() -> None:
    for status in (302, 404, 405, 501):
        assert "is this a reward server?" in str(error_in(reply(status)))
    call = next(score_calls(attached([PICTURE]), ["a"], ["jpeg"]))
    with pytest.raises(BadAnswer, match="does not answer as a reward server does"):
        merged(attached([PICTURE]), ["jpeg"], [call], [reply(200, b"<html>")])


def answer(count: int, first: int = 0, reward: str = "jpeg") -> Reply:
    items = tuple(
        ScoredItem(id=str(n), index=n, scores={reward: Score.of(float(first + n))}) for n in range(count)
    )
    response = ScoreResponse(id="scr", model_revisions={reward: "r7"}, items=items, timing_ms={})
    return reply(200, response.model_dump_json().encode())


def test_many_images_go_in_several_requests_and_come_back_in_order() -> None:
    images = attached([PICTURE] * 130)
    calls = list(score_calls(images, ["a"] * 130, ["jpeg"]))
    sizes = [len(call.request.items) for call in calls if call.request]
    assert sizes == [64, 64, 2]
    scores = merged(images, ["jpeg"], calls, [answer(64), answer(64, 64), answer(2, 128)])
    assert [score.value for score in scores["jpeg"]] == [float(n) for n in range(130)]


def said(*outcomes: float | RewardError) -> Reply:
    """An answer of a value or a failure for each item."""
    scores = [Score.failed(one) if isinstance(one, RewardError) else Score.of(one) for one in outcomes]
    items = tuple(ScoredItem(id=str(n), index=n, scores={"jpeg": score}) for n, score in enumerate(scores))
    response = ScoreResponse(id="scr", model_revisions={"jpeg": "r7"}, items=items, timing_ms={})
    return reply(200, response.model_dump_json().encode())


def settle(outcomes: list[Reply | RewardError], **limits: Any) -> tuple[list[Score], list[list[str]], int]:
    """Feed replies to a scoring of three items; the scores, the prompts of each asking, and the pauses."""
    steps = scoring(
        attached([PICTURE] * 3), ["a", "b", "c"], ["jpeg"], **{"deadline_s": 60.0, "retries": 4, **limits}
    )
    waiting, asked, pauses = iter(outcomes), [], 0
    outcome: list[Reply | RewardError] | None = None
    try:
        while True:
            step = steps.send(outcome)
            outcome = None
            if isinstance(step, Ask):
                (call,) = step.calls
                asked.append([item.prompt for item in call.request.items] if call.request else [])
                outcome = [next(waiting)]
            else:
                pauses += 1
    except StopIteration as finished:
        return finished.value["jpeg"], asked, pauses


LOST, BAD = ReplicaLost("the replica died"), ImageInvalid("torn")


def test_items_that_may_pass_are_asked_about_again_alone() -> None:
    scores, asked, pauses = settle([said(1.0, LOST, LOST), said(LOST, 3.0), said(2.0)])
    assert [score.value for score in scores] == [1.0, 2.0, 3.0]
    assert asked == [["a", "b", "c"], ["b", "c"], ["b"]]
    assert pauses == 2


def test_what_would_fail_again_is_not_asked_about_again() -> None:
    scores, asked, _ = settle([said(1.0, BAD, LOST), said(3.0)])
    assert [score.value for score in scores] == [1.0, None, 3.0]
    assert asked == [["a", "b", "c"], ["c"]]


@pytest.mark.parametrize("limits", [{"retries": 1}, {"deadline_s": 0.3}])
def test_what_still_fails_is_that_failure(limits: dict[str, Any]) -> None:
    scores, asked, _ = settle([said(1.0, LOST, 3.0), said(LOST), said(2.0)], **limits)
    assert [score.ok for score in scores] == [True, False, True]
    assert scores[1].error == LOST.problem()
    assert len(asked) <= 2


def test_a_server_that_is_gone_afterwards_takes_nothing_back() -> None:
    scores, _, _ = settle([said(1.0, LOST, 3.0), ServerUnreachable("refused")])
    assert [score.value for score in scores] == [1.0, None, 3.0]
    with pytest.raises(ServerUnreachable):
        settle([ServerUnreachable("refused")])


LATE = DeadlineExceeded("too many wait")


def test_what_was_late_is_not_asked_about_again_in_less_time() -> None:
    """A server's limit may be less than the caller's deadline; but what is left of it is no second chance."""
    steps = scoring(attached([PICTURE]), ["a"], ["jpeg"], deadline_s=1.0, retries=4)
    assert isinstance(next(steps), Ask)
    time.sleep(0.6)
    with pytest.raises(StopIteration) as ended:
        steps.send([said(LATE)])
    assert ended.value.value["jpeg"] == [Score.failed(LATE)]
    whole = exchange(1.0, 4)
    assert isinstance(next(whole), Send)
    time.sleep(0.6)
    with pytest.raises(DeadlineExceeded):
        whole.send(LATE)
    assert drive([LATE, reply(200)], deadline_s=60.0)[0] == reply(200)
    assert [score.value for score in settle([said(1.0, LATE, 3.0), said(2.0)])[0]] == [1.0, 2.0, 3.0]


def test_a_request_that_fails_costs_those_beside_it_nothing() -> None:
    images = attached([PICTURE] * 130)

    def asked() -> Any:
        steps = scoring(images, ["a"] * 130, ["jpeg"], deadline_s=9.0, retries=0)
        assert [len(call.parts) for call in next(steps).calls] == [64, 64, 2]  # type: ignore[union-attr]
        return steps

    with pytest.raises(StopIteration) as ended:
        asked().send([answer(64), LATE, answer(2, 128)])
    values = [score.value for score in ended.value.value["jpeg"]]
    assert values == [*map(float, range(64)), *[None] * 64, 128.0, 129.0]
    with pytest.raises(DeadlineExceeded):
        asked().send([LATE, LOST, LATE])
    with pytest.raises(TooLarge):
        asked().send([answer(64), TooLarge("so many"), LATE])


def test_an_image_that_cannot_be_encoded_fails_alone() -> None:
    pictures: list[Any] = [PICTURE, "no such file", PICTURE]
    images = attached(pictures)
    calls = list(score_calls(images, ["a"] * 3, ["jpeg"]))
    scores = merged(images, ["jpeg"], calls, [answer(2)])["jpeg"]
    assert [(score.value, score.revision) for score in scores] == [(0.0, "r7"), (None, None), (1.0, "r7")]
    assert scores[1] == Score.failed(ImageInvalid("cannot read no such file: No such file or directory"))


def test_a_prompt_that_is_no_text_fails_alone() -> None:
    """Half of a character comes out of JSON, None out of a table with gaps."""
    prompts: list[Any] = ["a", "\ud800", None, "b"]
    steps = scoring(attached([PICTURE] * 4), prompts, ["jpeg"], deadline_s=9.0, retries=0)
    ask = next(steps)
    assert isinstance(ask, Ask)
    assert ask.calls[0].request is not None
    assert [item.prompt for item in ask.calls[0].request.items] == ["a", "b"]
    with pytest.raises(StopIteration) as caught:
        steps.send([answer(2)])
    scores = caught.value.value["jpeg"]
    assert [score.value for score in scores] == [0.0, None, None, 1.0]
    assert scores[1] == scores[2] == Score.failed(PromptInvalid("a prompt is text of whole characters"))


@pytest.mark.parametrize("rewards", [[], ["jpeg", "jpeg"], ["j" * 65]])
def test_rewards_that_no_request_can_name_are_a_typed_error(rewards: list[str]) -> None:
    with pytest.raises(RequestInvalid, match="rewards"):
        next(scoring(attached([PICTURE]), ["a"], rewards, deadline_s=9.0, retries=0))


def test_large_images_go_in_requests_of_few() -> None:
    large: list[Any] = [np.zeros((2000, 2000, 3), np.uint8)] * 6
    calls = list(score_calls(attached(large), ["a"] * 6, ["jpeg"]))
    assert [len(call.parts) for call in calls] == [2, 2, 2], "12 MB each, 32 MiB a request"
    assert list(score_calls([], [], ["jpeg"])) == []


def test_the_body_is_a_form_of_the_request_and_its_images() -> None:
    import asyncio
    from collections.abc import AsyncIterator

    from reward_services import Limits
    from reward_services.http.bodies import read_body

    async def chunks() -> AsyncIterator[bytes]:
        yield call.body(1.5) or b""

    pictures: list[Any] = [PICTURE, PICTURE + 7]
    images = attached(pictures)
    call = next(score_calls(images, ["a", "b"], ["jpeg"]))
    asked = asyncio.run(read_body(call.headers["content-type"], chunks(), Limits()))
    assert list(asked.images) == images
    assert [item.prompt for item in asked.request.items] == ["a", "b"]
    assert asked.request.options.deadline_ms == 1500


@pytest.mark.parametrize("wrong", [answer(1), answer(3), answer(2, reward="clip")])
def test_a_short_or_strange_answer_is_refused(wrong: Reply) -> None:
    images = attached([PICTURE] * 2)
    calls = list(score_calls(images, ["a"] * 2, ["jpeg"]))
    with pytest.raises(BadAnswer, match="did not answer every image"):
        merged(images, ["jpeg"], calls, [wrong])


def test_each_attempt_states_the_time_that_is_left() -> None:
    call = next(score_calls(attached([PICTURE]), ["a"], ["jpeg"]))
    assert b'"deadline_ms":1500' in (call.body(1.5) or b"")
    assert b'"deadline_ms":1}' in (call.body(0.0) or b"")
