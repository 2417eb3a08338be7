"""The gate: who passes, who does not, on every route there is, and that nobody's body is read first."""

import asyncio
import base64
import hashlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from reward_services.config import Http
from reward_services.http.app import create_app
from reward_services.http.gate import Gate
from reward_services.http.keys import Key, Keys, new_key
from reward_services.scorers.jpeg import JpegScorer

KEYS = Keys([Key(name="alice", sha256=hashlib.sha256(b"rk_a").hexdigest(), lane="train")])


async def caller_name(scope: Any, receive: Any, send: Any) -> None:
    caller = scope.get("state", {}).get("caller")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": (caller.name if caller else "-").encode()})


def get(
    path: str, *, keys: Keys | None = KEYS, client: tuple[str, int] = ("127.0.0.1", 1), **headers: str
) -> httpx.Response:
    async def sent() -> httpx.Response:
        transport = httpx.ASGITransport(Gate(caller_name, keys), client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.get(path, headers=headers)

    return asyncio.run(sent())


@pytest.mark.parametrize("header", ["Bearer rk_a", "bearer rk_a", "BEARER  rk_a "])
def test_a_key_lets_in(header: str) -> None:
    response = get("/v1/scores", authorization=header)
    assert (response.status_code, response.text) == (200, "alice")


@pytest.mark.parametrize("url", ["http://any:rk_a@test/v1/scores", "http://:rk_a@test/v1/scores"])
def test_a_key_in_the_url_lets_in_clients_that_are_told_no_more(url: str) -> None:
    assert get(url).text == "alice"


@pytest.mark.parametrize(
    "header",
    [
        *("", "rk_a", "Bearer", "Bearer rk_b", "Basic rk_a", "Bearer rk_a, Bearer rk_b", "Basic", "Basic ="),
        *(
            f"Basic {base64.b64encode(pair).decode()}"
            for pair in (b"rk_a", b"rk_a:", b"any:rk_b", b"a: rk_a")
        ),
        f"Other {base64.b64encode(b'any:rk_a').decode()}",
    ],
)
def test_anything_else_does_not(header: str) -> None:
    response = get("/v1/scores", authorization=header)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.json()["type"] == "/problems/key-invalid"


@pytest.mark.parametrize(
    "path", ["/", "/static/page.js", "/livez", "/readyz", "/openapi.json", "/docs", "/problems/too-large"]
)
def test_some_routes_answer_anyone(path: str) -> None:
    assert get(path, client=("10.0.0.1", 1)).text == "-"


@pytest.mark.parametrize(
    "path",
    ["/%2F", "/static", "/livez/", "/readyz/x", "/%2Flivez", "/problems", "/metrics", "/v1/load", "/unknown"],
)
def test_what_is_not_known_is_closed(path: str) -> None:
    assert get(path).status_code == 401


def test_without_keys_only_this_machine_is_answered() -> None:
    assert get("/v1/rewards", keys=None).text == "anyone"
    assert get("/v1/rewards", keys=None, client=("::1", 1)).text == "anyone"
    refused = get("/v1/rewards", keys=None, client=("10.0.0.1", 1))
    assert refused.status_code == 403
    assert "set http.keys" in refused.json()["detail"]


def test_a_caller_of_unknown_address_is_not_this_machine() -> None:
    async def run() -> Any:
        sent: list[Any] = []

        async def collect(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            raise AssertionError("the body was read")

        scope: dict[str, Any] = {"type": "http", "path": "/v1/scores", "headers": [], "client": None}
        await Gate(caller_name, None)(scope, receive, collect)
        return sent[0]["status"]

    assert asyncio.run(run()) == 403


class Api:
    """The whole application before a gate of two keys: `alice` may do all, `bob` may use jpeg only."""

    def __init__(self, rewards_here: Callable[..., Any], folder: Path) -> None:
        keys = {name: new_key(name) for name in ("alice", "bob")}
        lines = keys["alice"][1] + "\n" + keys["bob"][1].replace("}", ", rewards: [jpeg]}")
        (folder / "keys.yaml").write_text(lines, encoding="utf-8")
        self.keys = {name: key for name, (key, _) in keys.items()}
        self.rewards = rewards_here({"jpeg": JpegScorer(), "other": JpegScorer()})
        http = Http(host="0.0.0.0", keys=str(folder / "keys.yaml"), pickle_routes=True)
        self.app = create_app(self.rewards, http=http)

    def routes(self) -> list[tuple[str, str, bool]]:
        """Method, path and whether it is open, of every route that the OpenAPI document lists."""
        return [
            (method.upper(), path.format(reward_id="jpeg", slug="too-large"), "security" in operation)
            for path, operations in self.app.openapi()["paths"].items()
            for method, operation in operations.items()
        ]

    def send(self, method: str, path: str, app: Any = None, **content: Any) -> httpx.Response:
        async def sent() -> httpx.Response:
            transport = httpx.ASGITransport(app or self.app, client=("192.0.2.1", 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                return await http.request(method, path, **content)

        return asyncio.run(sent())


@pytest.fixture
def api(rewards_here: Callable[..., Any], tmp_path: Path) -> Api:
    return Api(rewards_here, tmp_path)


def test_every_route_of_the_description_is_open_or_asks_for_a_key(api: Api) -> None:
    walked = api.routes()
    probes = {"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"}
    assert {path for _, path, is_open in walked if is_open} == {*probes, "/problems/too-large"}
    closed = {path for _, path, is_open in walked if not is_open}
    assert closed >= {"/v1/scores", "/metrics", "/v2/models/jpeg/infer", "/compat/verl-omni/jpeg"}
    for method, path, is_open in walked:
        for wrong in ({}, {"authorization": "Bearer rk_no"}, {"authorization": f"Basic {api.keys['alice']}"}):
            response = api.send(method, path, headers=wrong)
            assert response.status_code == (200 if is_open else 401), (method, path)
            assert is_open or response.json()["type"] == "/problems/key-invalid"
        known = api.send(method, path, headers={"authorization": f"Bearer {api.keys['alice']}"})
        assert known.status_code in ({400, 415, 422} if method == "POST" else {200}), (method, path)


def test_without_keys_every_closed_route_refuses_another_machine(api: Api) -> None:
    keyless = create_app(api.rewards, http=Http(pickle_routes=True))
    for method, path, is_open in api.routes():
        assert api.send(method, path, keyless).status_code == (200 if is_open else 403), (method, path)


@pytest.mark.parametrize(("rewards", "status"), [(["jpeg"], 200), (["jpeg", "other"], 403)])
def test_a_key_for_one_reward_opens_no_other(
    api: Api, json_item: Callable[..., Any], draw: Callable[..., Any], rewards: list[str], status: int
) -> None:
    request = {"rewards": rewards, "items": [json_item(draw(1)[0])]}
    response = api.send(
        "POST", "/v1/scores", json=request, headers={"authorization": f"Bearer {api.keys['bob']}"}
    )
    assert response.status_code == status
    assert ("may not use other" in response.text) is (status == 403)


def test_a_dialect_opens_no_other_reward_either(
    api: Api, json_item: Callable[..., Any], draw: Callable[..., Any]
) -> None:
    sent = {"prompt": ["a"], "image": [json_item(draw(1)[0])["image"]["data"]]}
    for reward, status in (("jpeg", 200), ("other", 403)):
        place = f"http://any:{api.keys['bob']}@test/compat/flow-factory/{reward}/compute"
        assert api.send("POST", place, json=sent).status_code == status


def test_a_stranger_is_refused_before_he_sends_a_body(api: Api, served: Callable[..., Any]) -> None:
    """Over a real connection: 60 MB are announced, nothing of them is sent, and the server hangs up."""
    with (
        served(api.app) as url,
        socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), 30) as wire,
    ):
        head = "POST /v1/scores HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        wire.sendall(f"{head}content-length: 60000000\r\n\r\n".encode())
        answer = b"".join(iter(lambda: wire.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"www-authenticate: Bearer" in answer
