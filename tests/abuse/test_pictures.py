"""Bombs, torn files and lies, in JSON and forms: typed failures, bounded memory, exact neighbours."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.abuse.hostile import PICTURE, PNG, bombs, broken, odd
from tests.abuse.victim import Victim, json_item, png, request

RAW = "application/octet-stream"
MEMORY, SECONDS = 256 * 2**20, 60.0
GOOD = png(PICTURE)


def form(
    parts: Mapping[str, tuple[str, bytes, tuple[int, ...] | None]], rewards: list[str]
) -> dict[str, Any]:
    """A form with an item a part: media type, bytes, and the shape of an array."""
    items = [
        {"prompt": "a red circle", "image": {"part": name} | ({"shape": shape} if shape else {})}
        for name, (_, _, shape) in parts.items()
    ]
    asked = json.dumps({"rewards": rewards, "items": items})
    files = {name: (name, content, media_type) for name, (media_type, content, _) in parts.items()}
    return {"files": {"request": (None, asked, "application/json"), **files}}


def scores(answer: httpx.Response) -> list[dict[str, Any]]:
    """The jpeg scores of the items, no batch's affair; a request never fails for its pictures."""
    assert answer.status_code == 200, answer.text
    return [item["scores"]["jpeg"] for item in answer.json()["items"]]


def status(score: dict[str, Any]) -> int:
    return int(score["error"]["status"]) if "error" in score else 200


def exact(victim: Victim, picture: NDArray[np.uint8]) -> dict[str, Any]:
    """The score of a picture that is sent plainly."""
    (score,) = scores(victim.post(json=request(json_item(png(picture)), rewards=["jpeg"])))
    assert "value" in score
    return score


@pytest.mark.parametrize("pictures", [bombs, broken])
def test_hostile_pictures_fail_alone(victim: Victim, pictures: Any) -> None:
    made: Iterable[tuple[str, str, bytes, set[int]]] = pictures()
    expected = exact(victim, PICTURE)
    for name, media_type, encoded, statuses in made:
        with victim.bounded(MEMORY, within_s=SECONDS):
            items = [json_item(GOOD), json_item(encoded, media_type), json_item(GOOD)]
            parts = {"a": (PNG, GOOD, None), "b": (media_type, encoded, None), "c": (PNG, GOOD, None)}
            for sent in ({"json": request(*items, rewards=["jpeg"])}, form(parts, ["jpeg"])):
                first, bad, last = scores(victim.post(**sent))
                assert status(bad) in statuses, (name, bad)
                assert first == last == expected, name


def test_a_request_full_of_bombs_is_one_bomb(victim: Victim) -> None:
    """64 pictures at the limit of pixels each, of which no request may decode so many."""
    largest = png(np.zeros((4096, 4096), np.uint8))
    with victim.bounded(2 * 2**30, within_s=3 * SECONDS):
        answered = scores(victim.post(json=request(*[json_item(largest)] * 64, rewards=["jpeg"])))
    assert [status(score) for score in answered] == [200] * 16 + [413] * 48


@pytest.mark.parametrize(
    ("shape", "content", "said"),
    [
        ((60_000, 60_000, 3), b"", 413),
        ((2**62, 2**62, 3), b"", 413),
        ((10, 10, 3), bytes(299), 422),
        ((10, 10, 3), bytes(301), 422),
        ((4097, 4096, 3), bytes(3 * 4097 * 4096), 413),
    ],
)
def test_arrays_that_are_not_what_they_say(
    victim: Victim, shape: tuple[int, ...], content: bytes, said: int
) -> None:
    with victim.bounded(MEMORY, within_s=SECONDS):
        parts = {"a": (RAW, content, shape), "b": (RAW, PICTURE.tobytes(), PICTURE.shape)}
        bad, good = scores(victim.post(**form(parts, ["jpeg"])))
    assert status(bad) == said
    assert good == exact(victim, PICTURE)


def test_odd_pictures_score_as_the_decoder_promises(victim: Victim) -> None:
    for name, media_type, encoded, picture in odd():
        expected = exact(victim, np.asarray(picture.convert("RGB")))
        assert scores(victim.post(json=request(json_item(encoded, media_type), rewards=["jpeg"]))) == [
            expected
        ], name
        parts = {"a": (media_type, encoded, None)}
        assert scores(victim.post(**form(parts, ["jpeg"]))) == [expected], name
