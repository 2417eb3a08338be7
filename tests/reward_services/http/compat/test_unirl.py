"""UniRL's wire format: scores by reward, failures beside them, identities echoed."""

import base64
from collections.abc import Callable
from typing import Any

import pytest

from reward_services import Overloaded, ReplicaLost

PLACE = "/compat/unirl"


@pytest.fixture
def circle(file_of: Callable[..., bytes]) -> str:
    return base64.b64encode(file_of("a red circle", "JPEG")).decode()


def item(text: str, image: str, **more: Any) -> dict[str, Any]:
    turn = {"text": text, "image_b64": image, "video_b64": None, "video_path": None}
    return {"history": [turn], "required_rewards": ["jpeg", "verifier"], "metadata": None, **more}


def test_health_and_rewards_name_what_is_served(api: Any) -> None:
    """Its client takes the keys of `rewards`, and stops when one that it needs is not among them."""
    health = api.get(f"{PLACE}/health").json()
    assert sorted(health["rewards"]) == ["jpeg", "verifier"]
    assert api.get(f"{PLACE}/rewards").json() == {"rewards": ["jpeg", "verifier"]}


def test_a_failed_reward_is_absent_and_has_its_reason(api: Any, circle: str) -> None:
    items = [item("a red circle", circle), item("an astronaut", circle), item("a red circle", "AAAA")]
    answer = api.post(f"{PLACE}/score", json={"requests": items}).json()
    good, no_caption, no_picture = answer["results"]
    assert good["verifier"] == {"verifier": 1.0}
    assert set(no_caption) == {"jpeg"}
    assert no_picture == {}
    assert answer["errors"][0] == {}
    assert answer["errors"][1]["verifier"].startswith("PromptInvalid: ")
    assert set(answer["errors"][2]) == {"jpeg", "verifier"}


def test_identities_come_back_as_they_were_sent(api: Any, circle: str) -> None:
    """A client that asks for it compares these keys, absent ones as null."""
    sent = {"request_id": "r", "sample_id": 7, "source_rank": 3, "idempotency_key": "k"}
    items = [item("a red circle", circle, **sent, policy_version=2), item("a red circle", circle)]
    answer = api.post(f"{PLACE}/score", json={"protocol_version": "1", "requests": items}).json()
    assert answer["protocol_version"] == "1"
    for key in ("request_id", "sample_id", "group_id", "source_rank", "policy_version", "idempotency_key"):
        assert [one.get(key) for one in answer["identities"]] == [one.get(key) for one in items]


def test_nothing_asked_is_nothing_answered(api: Any) -> None:
    answer = api.post(f"{PLACE}/score", json={"requests": []}).json()
    assert (answer["results"], answer["errors"]) == ([], [])


@pytest.mark.parametrize(("error", "status"), [(ReplicaLost("gone"), 503), (Overloaded("full"), 429)])
def test_what_may_succeed_later_has_a_status_that_is_sent_again(
    failing_api: Callable[..., Any], circle: str, error: Any, status: int
) -> None:
    """429 and 5xx, not other 4xx."""
    sent = {"requests": [item("FAIL", circle, required_rewards=["jpeg"])]}
    assert failing_api(error).post(f"{PLACE}/score", json=sent).status_code == status


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"required_rewards": ["jpg"]}, 404),
        ({"required_rewards": []}, 422),
        ({"history": []}, 422),
        ({"history": [{"text": "a", "image_b64": "AAAA"}] * 2}, 422),
        ({"history": [{"text": "a", "image_b64": None, "video_b64": "AAAA"}]}, 422),
        ({"scorer_version": "2"}, 422),
    ],
)
def test_what_cannot_be_scored_is_raised_at_once(
    api: Any, circle: str, change: dict[str, Any], status: int
) -> None:
    sent = {"requests": [item("a red circle", circle) | change]}
    assert api.post(f"{PLACE}/score", json=sent).status_code == status


def test_items_of_a_request_have_the_same_rewards(api: Any, circle: str) -> None:
    items = [item("a red circle", circle), item("a red circle", circle, required_rewards=["jpeg"])]
    response = api.post(f"{PLACE}/score", json={"requests": items})
    assert (response.status_code, "send others apart" in response.text) == (422, True)
