"""verl-omni's pickles: its request as it is sent, answers by which it goes on, and the switch that is off."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from reward_services import Overloaded, ReplicaLost, ScoringFailed
from reward_services.config import Http

PLACE = "/compat/verl-omni"
BYTES = {"content-type": "application/octet-stream"}


def request(image: bytes, prompt: str) -> bytes:
    """What its client sends, for protocol 4 byte for byte: a JPEG file, a prompt, no metadata."""
    assert len(image) > 255
    frame = b"".join(
        [
            b"}\x94(\x8c\x06images\x94]\x94B" + len(image).to_bytes(4, "little") + image,
            b"\x94a\x8c\x07prompts\x94]\x94\x8c" + bytes([len(prompt)]) + prompt.encode(),
            b"\x94a\x8c\x08metadata\x94}\x94u.",
        ]
    )
    return b"\x80\x04\x95" + len(frame).to_bytes(8, "little") + frame


def score_of(response: Any) -> float:
    """As its client does: another status than 200 raises, as an error or no scores do."""
    assert response.status_code == 200
    data = pickle.loads(response.content)
    assert "error" not in data
    assert data.get("scores")
    return float(data["scores"][0])


def test_one_picture_is_scored(api: Any, file_of: Callable[..., bytes]) -> None:
    image = file_of("a red circle", "JPEG")
    sent = request(image, "a red circle")
    assert sent == pickle.dumps({"images": [image], "prompts": ["a red circle"], "metadata": {}}, protocol=4)
    assert score_of(api.post(f"{PLACE}/verifier", content=sent, headers=BYTES)) == 1.0
    wrong = request(image, "a red square")
    assert score_of(api.post(f"{PLACE}/verifier", content=wrong, headers=BYTES)) == 0.0


@pytest.mark.parametrize("error", [Overloaded("full"), ReplicaLost("gone"), ScoringFailed("no answer")])
@pytest.mark.parametrize("whole", [True, False])
def test_a_failure_is_a_status_and_no_number(
    failing_api: Callable[..., Any], file_of: Callable[..., bytes], error: Any, whole: bool
) -> None:
    """Its client shows the text of an answer that is no pickle."""
    sent = request(file_of("a red circle", "JPEG"), "FAIL")
    response = failing_api(error, whole=whole).post(f"{PLACE}/jpeg", content=sent, headers=BYTES)
    assert response.status_code == error.status
    assert str(error) in response.json()["detail"]
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(response.content)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 400),
        (b"{}", 400),
        (b"cos\nmkdir\n(X\x01\0\0\0atR.", 400),
        (pickle.dumps({"images": ["text"], "prompts": ["a"]}), 422),
        (pickle.dumps({"images": [b"GIF89a"], "prompts": ["a"]}), 415),
        (pickle.dumps({"images": [b"a"] * 9, "prompts": ["a"] * 9}), 413),
        (pickle.dumps({"images": [b"a"], "prompts": ["\ud83d"]}), 422),
        (pickle.dumps([]), 422),
        (b"\x80\x04}(\x8c\x06images](\x8c\x07prompts]q\x00h\x00au.", 400),
        (b"\x80\x04}(\x8c\x06images]\x8c\x07prompts]q\x00h\x00au.", 422),
    ],
)
def test_what_cannot_be_scored_is_refused(api: Any, sent: bytes, status: int) -> None:
    response = api.post(f"{PLACE}/jpeg", content=sent, headers=BYTES)
    assert response.status_code == status, response.text


def test_billions_of_texts_in_a_few_bytes_are_refused_at_once(api: Any) -> None:
    """Each list has ten times the one before, and the prompts ten times the thirtieth."""
    lists = b"](]q\x00" + b"".join(b"](" + b"h%c" % n * 10 + b"eq%c" % (n + 1) for n in range(30)) + b"e"
    prompts = b"](" + b"h\x1e" * 10 + b"e"
    sent = b"\x80\x04}(\x8c\x08metadata" + lists + b"\x8c\x06images]\x8c\x07prompts" + prompts + b"u."
    response = api.post(f"{PLACE}/jpeg", content=sent, headers=BYTES)
    assert (response.status_code, len(response.content) < 4000) == (422, True)
    assert response.json()["errors"][0]["pointer"] == "/prompts/0"


def test_without_the_switch_there_is_no_such_route(api_of: Callable[..., Any], rewards: Any) -> None:
    assert not Http().pickle_routes
    off = api_of(rewards, pickle_routes=False)
    for path in (f"{PLACE}/jpeg", "/compat/flow-grpo/jpeg"):
        assert off.post(path, content=pickle.dumps({}), headers=BYTES).status_code == 415
        assert off.post(path, json={}).status_code == 404
        assert path.rpartition("/")[0] + "/{reward_id}" not in off.app.openapi()["paths"]
