"""flow_grpo's pickles: what its clients send, and statuses by urllib3's own rule for what it sends again."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from urllib3.util import Retry

from reward_services.errors import ERRORS, RewardError

PLACE = "/compat/flow-grpo"
# As its clients have it.
RETRY = Retry(total=1000, backoff_factor=1, status_forcelist=[500], allowed_methods=False)  # type: ignore[arg-type]  # False is documented
NEVER_RAISED = {"reward-error", "config-invalid", "bad-answer", "server-unreachable"}


def is_sent_again(response: Any) -> bool:
    return RETRY.is_retry("POST", response.status_code, "retry-after" in response.headers)


def outputs_of(response: Any) -> list[float]:
    """As its clients do once nothing is sent again, whatever the status."""
    outputs = pickle.loads(response.content)["outputs"]
    assert isinstance(outputs, list)
    return outputs


def test_deqas_client_sends_pictures_alone(api: Any, rewards: Any, file_of: Callable[..., bytes]) -> None:
    """No Content-Type; PNG here, so that the score is that of the drawing."""
    response = api.post(f"{PLACE}/jpeg", content=pickle.dumps({"images": [file_of("a red circle")] * 2}))
    (exact,) = rewards.scorers["jpeg"].score([rewards.scorers["jpeg"].golden()[0]], [""])
    assert exact.value is not None
    assert len(set(outputs_of(response))) == 1
    alone = api.post(f"{PLACE}/verifier", content=pickle.dumps({"images": [file_of("a red circle")]}))
    assert (alone.status_code, "send prompts" in alone.json()["detail"]) == (422, True)


def test_prompts_as_a_list_are_scored_and_as_an_array_are_not(
    api: Any, file_of: Callable[..., bytes]
) -> None:
    prompts = np.array(["a red circle", "a red square"])
    images = [file_of("a red circle", "JPEG")] * 2
    answered = api.post(
        f"{PLACE}/verifier", content=pickle.dumps({"images": images, "prompts": prompts.tolist()})
    )
    assert outputs_of(answered) == [1.0, 0.0]
    refused = api.post(f"{PLACE}/verifier", content=pickle.dumps({"images": images, "prompts": prompts}))
    assert (refused.status_code, "prompts.tolist()" in refused.json()["detail"]) == (400, True)
    assert not is_sent_again(refused)


def test_genevals_client_is_told_what_to_send(api: Any) -> None:
    described = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "two cats"}
    sent = {"images": [b"a"], "meta_datas": [described], "only_strict": False}
    response = api.post(f"{PLACE}/jpeg", content=pickle.dumps(sent))
    assert (response.status_code, "GenEval's own server" in response.json()["detail"]) == (422, True)
    assert not is_sent_again(response)


@pytest.mark.parametrize("error", [ERRORS[slug] for slug in sorted(set(ERRORS) - NEVER_RAISED)])
@pytest.mark.parametrize("whole", [True, False])
def test_what_may_succeed_later_is_sent_again_and_nothing_else(
    failing_api: Callable[..., Any], file_of: Callable[..., bytes], error: type[RewardError], whole: bool
) -> None:
    """1000 times over 33 hours: what cannot succeed has to end the run instead."""
    sent = pickle.dumps({"images": [file_of("a red circle")], "prompts": ["FAIL"]})
    response = failing_api(error("told"), whole=whole).post(f"{PLACE}/jpeg", content=sent)
    assert is_sent_again(response) is error.retryable
    assert "told" in response.json()["detail"]
    with pytest.raises(pickle.UnpicklingError):
        outputs_of(response)


def test_what_can_be_scored_by_none_is_not_sent_again(api: Any) -> None:
    for path, sent in [("jpg", {"images": [b"a"]}), ("jpeg", {"images": [b"a"]}), ("jpeg", {}), ("jpeg", [])]:
        response = api.post(f"{PLACE}/{path}", content=pickle.dumps(sent))
        assert 400 <= response.status_code < 500
        assert not is_sent_again(response)
