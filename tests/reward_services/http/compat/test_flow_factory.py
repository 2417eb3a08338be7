"""Flow-Factory's wire format: its requests as it sends them, and answers as it reads them."""

import base64
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from reward_services import DeadlineExceeded, ReplicaLost, ScoreNotFinite

PLACE = "/compat/flow-factory"
JSON = {"content-type": "application/json"}


def body(*images: str, video: bytes = b"null") -> bytes:
    """What the client sends for two prompts, byte for byte."""
    sent = ", ".join(f'"{image}"' for image in images).encode()
    return (
        b'{"prompt": ["a red circle", "a blue square"], "image": [%b], "video": %b, '
        b'"condition_images": null, "condition_videos": null, "kwargs": null}' % (sent, video)
    )


def rewards_of(response: httpx.Response) -> list[float]:
    """As the client does: an error status or an error raises, else there is a number a prompt."""
    response.raise_for_status()
    data = response.json()
    if data.get("error"):
        raise RuntimeError(data["error"])
    rewards = data["rewards"]
    assert isinstance(rewards, list)
    return rewards


@pytest.fixture
def pictures(file_of: Callable[..., bytes]) -> list[str]:
    return [base64.b64encode(file_of(text)).decode() for text in ("a red circle", "a red square")]


def test_health_of_a_reward_that_is_served_and_of_none(api: Any) -> None:
    assert api.get(f"{PLACE}/jpeg/health").json() == {"status": "ok"}
    assert api.get(f"{PLACE}/jepg/health").status_code == 404


def test_pictures_are_scored_in_order(api: Any, pictures: list[str]) -> None:
    response = api.post(f"{PLACE}/verifier/compute", content=body(*pictures), headers=JSON)
    assert rewards_of(response) == [1.0, 0.0]


@pytest.mark.parametrize("data", ["", "AAAA", "no base64", "data:image/png;base64,AAAA"])
def test_one_bad_picture_fails_the_request_and_is_named(api: Any, pictures: list[str], data: str) -> None:
    response = api.post(f"{PLACE}/verifier/compute", content=body(pictures[0], data), headers=JSON)
    assert 400 <= response.status_code < 500
    assert response.json()["detail"].startswith("item 1: ")


@pytest.mark.parametrize("error", [ScoreNotFinite("NaN"), ReplicaLost("gone"), DeadlineExceeded("late")])
def test_one_failed_score_fails_the_request(
    failing_api: Callable[..., Any], pictures: list[str], error: Any
) -> None:
    failing = failing_api(error)
    sent = {"prompt": ["a", "FAIL"], "image": pictures}
    response = failing.post(f"{PLACE}/jpeg/compute", json=sent)
    assert (response.status_code, response.json()["type"]) == (error.status, f"/problems/{error.slug}")
    with pytest.raises(httpx.HTTPStatusError):
        rewards_of(response)


@pytest.mark.parametrize(
    "sent",
    [
        body("AAAA"),
        body("AAAA", "AAAA", video=b'[["AAAA"]]'),
        body("AAAA", "AAAA").replace(b'"condition_images": null', b'"condition_images": [["AAAA"]]'),
        b'{"prompt": ["a"], "image": null}',
        b'{"prompt": [], "image": []}',
        b"[]",
    ],
)
def test_what_cannot_be_scored_is_refused(api: Any, sent: bytes) -> None:
    response = api.post(f"{PLACE}/jpeg/compute", content=sent, headers=JSON)
    assert response.json()["type"] == "/problems/request-invalid"
