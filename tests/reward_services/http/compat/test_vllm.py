"""vLLM's /score: every way to write its two sides, pairs as it makes them, no image fetched."""

import base64
from collections.abc import Callable
from typing import Any

import pytest

from reward_services import ScoringFailed

PLACE = "/compat/vllm"


@pytest.fixture
def images(file_of: Callable[..., bytes]) -> list[dict[str, Any]]:
    """A red circle and a red square as parts of a content; their media type is wrong, as vLLM's example's."""
    files = [base64.b64encode(file_of(text)).decode() for text in ("a red circle", "a red square")]
    return [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}} for data in files]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def scores(api: Any, first: Any, second: Any, names: tuple[str, str] = ("data_1", "data_2")) -> list[float]:
    sent = {"model": "verifier", names[0]: first, names[1]: second}
    response = api.post(f"{PLACE}/score", json=sent)
    response.raise_for_status()
    answer = response.json()
    assert (answer["object"], answer["model"]) == ("list", "verifier")
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    return [one["score"] for one in answer["data"]]


def test_models_are_the_rewards(api: Any) -> None:
    assert api.get(f"{PLACE}/v1/models").json()["data"][0]["id"] == "jpeg"


@pytest.mark.parametrize(
    "names", [("data_1", "data_2"), ("queries", "documents"), ("queries", "items"), ("text_1", "text_2")]
)
def test_one_prompt_goes_with_each_part_of_a_content(
    api: Any, images: list[dict[str, Any]], names: tuple[str, str]
) -> None:
    assert scores(api, "a red square", {"content": images}, names) == [0.0, 1.0]


def test_each_prompt_goes_with_its_own_image(api: Any, images: list[dict[str, Any]]) -> None:
    prompts = ["a red circle", "a red circle"]
    alone = [{"content": [image]} for image in images]
    assert scores(api, prompts, alone) == [1.0, 0.0]
    assert scores(api, alone, prompts) == [1.0, 0.0]
    assert scores(api, {"content": [text(prompt) for prompt in prompts]}, {"content": images}) == [1.0, 0.0]


def test_one_image_goes_with_each_prompt(api: Any, images: list[dict[str, Any]]) -> None:
    assert scores(api, {"content": images[:1]}, ["a red square", "a red circle"]) == [0.0, 1.0]


def test_sides_that_make_no_pairs_are_refused(api: Any, images: list[dict[str, Any]]) -> None:
    circle, square = ({"content": [image]} for image in images)
    for first, second in [
        (["a", "b"], [circle]),
        ("a", "b"),
        (circle, square),
        (["a", circle], [square, "b"]),
        ([{"content": images}], ["a"]),
        ({"content": []}, {"content": []}),
        ([], []),
    ]:
        sent = {"model": "jpeg", "data_1": first, "data_2": second}
        assert api.post(f"{PLACE}/score", json=sent).status_code == 422, (first, second)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.png", "file:///etc/passwd", ""])
def test_no_image_is_fetched(api: Any, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    response = api.post(
        f"{PLACE}/score", json={"model": "jpeg", "data_1": "a", "data_2": {"content": [part]}}
    )
    assert (response.status_code, "no image is fetched" in response.text) == (422, True)


def test_one_failed_score_fails_the_request(
    failing_api: Callable[..., Any], images: list[dict[str, Any]]
) -> None:
    sent = {"model": "jpeg", "queries": ["a", "FAIL"], "documents": [{"content": [one]} for one in images]}
    response = failing_api(ScoringFailed("no answer")).post(f"{PLACE}/score", json=sent)
    assert (response.status_code, response.json()["detail"]) == (500, "item 1: no answer")
