"""OpenRLHF's wire format: pictures at the end of its queries, a reward for each or an error status."""

import base64
from collections.abc import Callable
from typing import Any

import pytest

from reward_services import ReplicaLost

PLACE = "/compat/openrlhf/verifier/get_reward"


@pytest.fixture
def circle(file_of: Callable[..., bytes]) -> str:
    return base64.b64encode(file_of("a red circle")).decode()


def body(*queries: str) -> bytes:
    """What the client sends for a circle and a square, byte for byte."""
    sent = ", ".join(f'"{query}"' for query in queries)
    return f'{{"query": [{sent}], "prompts": ["a red circle", "a red square"], "labels": ["", ""]}}'.encode()


@pytest.mark.parametrize("before", ["", "data:image/png;base64,", "a data:, then data:image/png;base64,"])
def test_the_picture_is_at_the_end_of_its_query(api: Any, circle: str, before: str) -> None:
    headers = {"content-type": "application/json"}
    response = api.post(PLACE, content=body(before + circle, before + circle), headers=headers)
    response.raise_for_status()
    assert response.json().get("rewards") == [1.0, 0.0]


def test_a_text_is_no_picture(api: Any, circle: str) -> None:
    sent = {"query": [circle, "Paris is the capital of France."], "prompts": ["a red circle"] * 2}
    response = api.post(PLACE, json=sent)
    assert response.status_code in {415, 422}
    assert response.json()["detail"].startswith("item 1: ")


def test_one_failed_score_fails_the_request(failing_api: Callable[..., Any], circle: str) -> None:
    sent = {"query": [circle, circle], "prompts": ["a", "FAIL"]}
    response = failing_api(ReplicaLost("gone")).post("/compat/openrlhf/jpeg/get_reward", json=sent)
    assert response.status_code == 503
    assert "rewards" not in response.json()
