"""Problems as responses: their media type, the request's id, and the headers that statuses ask for."""

import json

import pytest

from reward_services import KeyInvalid, Overloaded, ReplicaFailed, RewardError, TooLarge
from reward_services.http.problems import refusal

SCOPE = {"type": "http", "state": {"request_id": "r1"}}


def test_a_problem_says_what_and_of_which_request() -> None:
    response = refusal(TooLarge("65 items"), SCOPE)
    assert response.status_code == 413
    assert response.headers["content-type"] == "application/problem+json"
    expected = {"type": "/problems/too-large", "title": "A limit is exceeded", "status": 413}
    assert json.loads(bytes(response.body)) == {**expected, "detail": "65 items", "request_id": "r1"}
    assert "request_id" not in json.loads(bytes(refusal(TooLarge(), {"type": "http"}).body))


def test_clients_of_open_inference_find_their_error() -> None:
    """RFC 9457 allows members of one's own; elsewhere there is none."""
    for error, told in [(TooLarge("65 items"), "65 items"), (TooLarge(), "A limit is exceeded")]:
        body = json.loads(bytes(refusal(error, {**SCOPE, "path": "/v2/models/jpeg/infer"}).body))
        assert (body["error"], body["type"]) == (told, "/problems/too-large")
    assert b"error" not in bytes(refusal(TooLarge(), {**SCOPE, "path": "/v1/scores"}).body)


@pytest.mark.parametrize(
    ("error", "header", "value"),
    [
        (Overloaded(retry_after_s=2.1), "retry-after", "3"),
        (Overloaded(), "retry-after", "1"),
        (ReplicaFailed(), "retry-after", None),
        (KeyInvalid(), "www-authenticate", 'Bearer realm="rewards"'),
        (KeyInvalid(), "connection", "close"),
        (TooLarge(), "www-authenticate", None),
        (Overloaded(), "connection", None),
    ],
)
def test_headers_of_statuses(error: RewardError, header: str, value: str | None) -> None:
    assert refusal(error, SCOPE).headers.get(header) == value
