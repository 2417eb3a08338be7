"""Who may do what on every route of the OpenAPI document; and no log or problem tells what was sent."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from reward_services.config import Http
from reward_services.http.app import create_app
from reward_services.http.keys import new_key
from reward_services.scorers.jpeg import JpegScorer
from tests.abuse.hostile import PICTURE
from tests.abuse.victim import json_item, png, request
from tests.rewards_here import RewardsHere

OPEN = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/problems/{slug}"}
"""The routes that are documented to answer anyone; another one is a decision, taken here too."""
NAMES = {"reward_id": "jpeg", "slug": "too-large"}
SECRET_PROMPT = "a prompt that nobody else should read"


class Api:
    """The application, called from another machine; `alice` may do all, `bob` may use `other` only."""

    def __init__(self, folder: Path) -> None:
        self.alice, line = new_key("alice")
        self.bob, restricted = new_key("bob")
        keys = line + "\n" + restricted.replace("}", ", rewards: [other]}")
        (folder / "keys.yaml").write_text(keys, encoding="utf-8")
        rewards = RewardsHere({"jpeg": JpegScorer(), "other": JpegScorer()})
        self.app = create_app(rewards, http=Http(host="0.0.0.0", keys=str(folder / "keys.yaml")))
        self.operations: list[tuple[str, str, dict[str, Any]]] = [
            (method.upper(), path, operation)
            for path, operations in self.app.openapi()["paths"].items()
            for method, operation in operations.items()
        ]

    def send(self, method: str, path: str, **content: Any) -> httpx.Response:
        async def sent() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=("192.0.2.1", 1), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.request(method, path.format_map(NAMES), **content)

        return asyncio.run(sent())


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_the_open_routes_are_those_documented(api: Api) -> None:
    documented = {path for _, path, operation in api.operations if operation.get("security") == []}
    assert documented == OPEN
    for method, path, _ in api.operations:
        assert (api.send(method, path).status_code == 401) is (path not in OPEN), (method, path)


MALFORMED: dict[str, Callable[[str], dict[str, Any]]] = {
    "no key": lambda key: {},
    "a wrong key": lambda key: {"headers": bearer("rk_" + "a" * 43)},
    "a key and more": lambda key: {"headers": bearer(key + "a")},
    "all but the last letter": lambda key: {"headers": bearer(key[:-1])},
    "a key in capitals": lambda key: {"headers": bearer(key.upper())},
    "no scheme": lambda key: {"headers": {"authorization": key}},
    "another scheme": lambda key: {"headers": {"authorization": f"Token {key}"}},
    "Basic without encoding": lambda key: {"headers": {"authorization": f"Basic alice:{key}"}},
    "a key as the user of Basic": lambda key: {"auth": (key, "")},
    "a key twice": lambda key: {"headers": bearer(f"{key}, Bearer {key}")},
    "no key after the scheme": lambda key: {"headers": {"authorization": "Bearer"}},
    "other bytes": lambda key: {"headers": {b"authorization": b"Bearer \xff\xfe"}},
    "a long one": lambda key: {"headers": bearer("a" * 10**6)},
    "in the query": lambda key: {"params": {"key": key, "api_key": key, "access_token": key, "token": key}},
    "in a cookie": lambda key: {"headers": {"cookie": f"authorization=Bearer {key}; key={key}"}},
    "in another header": lambda key: {"headers": {"x-api-key": key, "proxy-authorization": f"Bearer {key}"}},
    "a part of the password of Basic": lambda key: {"auth": ("alice", key[:-1])},
}


@pytest.mark.parametrize("way", MALFORMED)
def test_no_route_takes_anything_for_a_key(api: Api, way: str) -> None:
    for method, path, _ in api.operations:
        answer = api.send(method, path, **MALFORMED[way](api.alice))
        if path not in OPEN:
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["type"] == "/problems/key-invalid"
        assert api.alice not in answer.text


def test_a_key_opens_every_route(api: Api) -> None:
    for method, path, _ in api.operations:
        assert api.send(method, path, headers=bearer(api.alice)).status_code not in {401, 403}, (method, path)


def test_methods_and_paths_that_are_not_there_need_a_key_too(api: Api) -> None:
    paths = [path for _, path, _ in api.operations if path not in OPEN]
    for path in [*paths, "/v1", "/v1/scores/", "/%2Flivez", "/livez/../metrics", "/%6detrics", "/LIVEZ"]:
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"):
            assert api.send(method, path).status_code == 401, (method, path)


def test_a_restricted_key_scores_nothing_else(api: Api) -> None:
    for rewards, status in ((["other"], 200), (["jpeg"], 403), (["other", "jpeg"], 403)):
        sent = request(json_item(png(PICTURE)), rewards=rewards)
        answer = api.send("POST", "/v1/scores", json=sent, headers=bearer(api.bob))
        assert answer.status_code == status
        assert (answer.json().get("type") == "/problems/not-permitted") is (status == 403)


def _logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """All that the server logged; httpx here is the caller."""
    return [record.getMessage() for record in caplog.records if not record.name.startswith("httpx")]


def test_prompts_keys_and_images_are_in_no_log_and_no_problem(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    """Good, refused and broken requests, at the most talkative level."""
    caplog.set_level(logging.DEBUG)
    item = json_item(png(PICTURE), prompt=SECRET_PROMPT)
    image = item["image"]["data"]
    good = request(item, rewards=["jpeg"])
    bodies: list[dict[str, Any]] = [
        good,
        {**good, "items": [{**item, "image": image}]},
        {**good, "items": [{**item, "image": {"media_type": "image/tiff", "data": image}}]},
        {**good, "items": [{**item, "image": {**item["image"], "data": image[:-100]}}]},
        {**good, "items": [{**item, "prompt": [SECRET_PROMPT]}]},
        {**good, "items": [{**item, "image": None, "key": api.alice}]},
        {**good, "items": [item] * 300},
        {**good, "options": {"deadline_ms": SECRET_PROMPT}},
    ]
    answers = [api.send("POST", "/v1/scores", json=body, headers=bearer(api.alice)) for body in bodies]
    answers += [
        api.send("POST", "/v1/scores", json=good, headers=bearer("rk_nobody"), params={"k": api.alice})
    ]
    answers += [
        api.send("POST", "/v1/scores", content=b"[" + SECRET_PROMPT.encode(), headers=bearer(api.alice))
    ]
    assert {answer.status_code for answer in answers} >= {200, 401, 413, 415, 422}
    said = [*(answer.text for answer in answers), *_logged(caplog)]
    assert any("caller alice" in one for one in said)
    for text in said:
        for secret in (SECRET_PROMPT, api.alice, "rk_nobody", image[:40]):
            assert secret not in text
