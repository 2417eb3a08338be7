"""The description: it has every problem with its example, both bodies, keys, and resolves by itself."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest

from reward_services import Problem, ScoreRequest
from reward_services.config import Http
from reward_services.errors import ERRORS
from reward_services.http.app import create_app
from reward_services.http.openapi import EXAMPLE
from reward_services.scorers.jpeg import JpegScorer


@pytest.fixture(scope="module")
def document(rewards_here: Callable[..., Any]) -> dict[str, Any]:
    return create_app(rewards_here({"jpeg": JpegScorer()})).openapi()


def within(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a document."""
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from within(one)


def contents(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every body and answer that is described: media type, and schema with examples."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for described in [operation.get("requestBody", {}), *operation["responses"].values()]:
                yield from described.get("content", {}).items()


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for one in within(document):
        if isinstance(one.get("$ref"), str):
            place: Any = document
            for step in one["$ref"].removeprefix("#/").split("/"):
                place = place[step]


def test_every_example_is_what_its_schema_says(document: dict[str, Any]) -> None:
    seen = 0
    for media_type, content in contents(document):
        if media_type in {"multipart/form-data", "text/plain"}:
            continue
        examples = [one["value"] for one in content.get("examples", {}).values()]
        examples += [content["example"]] if "example" in content else []
        schema = {**content["schema"], "components": document["components"]}
        for example in examples:
            jsonschema.validate(example, schema)
            seen += 1
    assert seen > 20
    form = document["paths"]["/v1/scores"]["post"]["requestBody"]["content"]["multipart/form-data"]
    schema = {"$ref": "#/components/schemas/FormRequest", "components": document["components"]}
    jsonschema.validate(form["example"]["request"], schema)


def test_the_example_can_be_sent(rewards_here: Callable[..., Any]) -> None:
    import asyncio

    import httpx

    async def run() -> httpx.Response:
        app = create_app(rewards_here({"jpeg": JpegScorer(), "clip": JpegScorer()}))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/v1/scores", json=EXAMPLE.model_dump(mode="json"))

    answer = asyncio.run(run()).json()
    assert answer["items"][0]["scores"]["jpeg"]["value"] < 0


def test_every_error_that_is_served_has_its_example(document: dict[str, Any]) -> None:
    shown: dict[str, Problem] = {}
    for media_type, content in contents(document):
        if media_type == "application/problem+json":
            shown |= {
                slug: Problem.model_validate(example["value"])
                for slug, example in content["examples"].items()
            }
    unseen = {"config-invalid", "server-unreachable", "bad-answer"}
    assert set(shown) == set(ERRORS) - unseen
    assert all(shown[slug].status == ERRORS[slug].status for slug in shown)


def test_problems_are_the_only_failures_and_carry_the_request_id(document: dict[str, Any]) -> None:
    operations = [one for of_path in document["paths"].values() for one in of_path.values()]
    for status, response in (found for one in operations for found in one["responses"].items()):
        assert "X-Request-Id" in response["headers"]
        assert status == "200" or list(response["content"]) == ["application/problem+json"]
    assert not re.findall("HTTPValidationError", str(document))


def test_every_body_is_described(rewards_here: Callable[..., Any]) -> None:
    """The dialects' too, those of bytes as bytes."""
    rewards = rewards_here({"jpeg": JpegScorer()})
    paths = create_app(rewards, http=Http(pickle_routes=True)).openapi()["paths"]
    bodies = {
        path: operations["post"]["requestBody"] for path, operations in paths.items() if "post" in operations
    }
    assert len(bodies) == 8
    for path, body in bodies.items():
        assert body["required"], path
        assert all(content["schema"] for content in body["content"].values()), path
    pickles = {path for path, body in bodies.items() if list(body["content"]) == ["application/octet-stream"]}
    assert pickles == {"/compat/verl-omni/{reward_id}", "/compat/flow-grpo/{reward_id}"}


def test_statuses_of_the_hot_path(document: dict[str, Any]) -> None:
    scores = document["paths"]["/v1/scores"]["post"]
    stated = {int(status) for status in scores["responses"]}
    assert stated == {200, 400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504}
    assert set(scores["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
    reference = scores["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    assert reference.endswith(ScoreRequest.__name__)
