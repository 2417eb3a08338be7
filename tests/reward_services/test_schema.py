"""The wire types: a score is a value or an error, the absent stays out of the JSON, requests are strict."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from reward_services import (
    FormRequest,
    ImageInvalid,
    Problem,
    RewardInfo,
    Score,
    ScoredItem,
    ScoreNotFinite,
    ScoreRequest,
    ScoreResponse,
)

PROBLEM = Problem(title="no", status=422)
ITEM = {"prompt": "a red cube", "image": {"media_type": "image/png", "data": "AAAA"}}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"value": 1.0, "error": PROBLEM},
        {"value": float("nan")},
        {"value": float("inf")},
        {"value": 1.0, "parts": {"colour": float("nan")}},
        {"error": PROBLEM, "parts": {"colour": 1.0}},
        {"value": 1.0, "colour": 1.0},
    ],
)
def test_a_score_is_a_finite_value_or_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Score(**wrong)


def test_zero_is_a_score() -> None:
    assert Score.of(0.0).ok
    assert not Score.failed(ImageInvalid("torn")).ok


def test_json_leaves_the_absent_out() -> None:
    assert json.loads(Score.of(0.5).model_dump_json()) == {"value": 0.5}
    assert json.loads(Score.of(1.0, {"colour": 1.0}).model_dump_json()) == {
        "value": 1.0,
        "parts": {"colour": 1.0},
    }
    failed = json.loads(Score.failed(ScoreNotFinite()).model_dump_json())
    assert failed == {
        "error": {
            "type": "/problems/score-not-finite",
            "title": "The score is not a finite number",
            "status": 500,
        }
    }


def test_a_response_survives_the_round_trip() -> None:
    scores = {"clip": Score.of(31.2), "verifier": Score.failed(ImageInvalid("torn"))}
    response = ScoreResponse(
        id="scr_1",
        model_revisions={"clip": "sha256:0"},
        items=(ScoredItem(id="a", index=0, scores=scores),),
        timing_ms={"decode": 1.0},
    )
    assert ScoreResponse.model_validate_json(response.model_dump_json()) == response


def test_unbounded_ends_of_a_range_stay_in_the_json() -> None:
    info = RewardInfo(
        id="jpeg",
        revision="1",
        range=(None, 0.0),
        higher_is_better=True,
        deterministic=True,
        modality=("image",),
        max_items=4,
        ready=True,
    )
    assert json.loads(info.model_dump_json())["range"] == [None, 0.0]


def test_answers_may_grow_fields() -> None:
    assert Problem.model_validate({"title": "no", "status": 503, "request_id": "r1"}).status == 503


@pytest.mark.parametrize(
    "wrong",
    [
        {"rewards": [], "items": [ITEM]},
        {"rewards": ["clip"], "items": []},
        {"rewards": ["clip", "clip"], "items": [ITEM]},
        {"rewards": ["clip"], "items": [ITEM], "weights": {}},
        {"rewards": ["clip"], "items": [{**ITEM, "url": "http://example.org/a.png"}]},
        {"rewards": ["clip"], "items": [ITEM], "options": {"deadline_ms": 0}},
        {"rewards": ["clip"], "items": [ITEM], "options": {"deadline_ms": True}},
        {"rewards": ["clip"], "items": [ITEM], "options": {"deadline_ms": "30"}},
        {"rewards": ["c" * 65], "items": [ITEM]},
    ],
)
def test_requests_are_strict(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ScoreRequest.model_validate(wrong)


FORM_ITEM = {"prompt": "a red cube", "image": {"part": "0", "shape": [4, 4, 3]}}


@pytest.mark.parametrize(
    "image",
    [
        {"part": "0", "shape": [4, 4]},
        {"part": "0", "shape": [4, 4, 1]},
        {"part": "0", "shape": [0, 4, 3]},
        {"part": "0", "shape": [True, 4, 3]},
        {"part": "0", "dtype": "float32"},
        {"part": "0" * 65},
        ITEM["image"],
    ],
)
def test_images_of_a_form_are_strict(image: dict[str, Any]) -> None:
    assert FormRequest.model_validate({"rewards": ["clip"], "items": [FORM_ITEM]}).items[0].image.part == "0"
    with pytest.raises(ValidationError):
        FormRequest.model_validate({"rewards": ["clip"], "items": [{**FORM_ITEM, "image": image}]})
