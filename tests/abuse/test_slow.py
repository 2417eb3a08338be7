"""Slow bodies are cut at their deadline while other callers are served; slow headers cost others nothing."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.abuse.hostile import PICTURE
from tests.abuse.victim import LIMITS, Victim, json_item, png, request

MANY, GOOD_S = 40, 30.0
HEAD = b"POST /v1/scores HTTP/1.1\r\nhost: t\r\ncontent-type: %s\r\n%s\r\n\r\n"
FORM = b"multipart/form-data; boundary=b"
JSON_BODY = HEAD % (b"application/json", b"content-length: 1000") + b"{"
CHUNKED_FORM = HEAD % (FORM, b"transfer-encoding: chunked") + b"3\r\n--b\r\n"
HALF_A_HEADER = b"POST /v1/scores HTTP/1.1\r\nhost: t\r\nx-slow: "


@contextmanager
def connected(victim: Victim, opening: bytes) -> Iterator[list[socket.socket]]:
    """Connections that have sent so much and go on a byte at a time when told to."""
    with ExitStack() as stack:
        wires = [
            stack.enter_context(socket.create_connection(("127.0.0.1", victim.port), 60)) for _ in range(MANY)
        ]
        for wire in wires:
            wire.sendall(opening)
        yield wires


def dribble(wires: list[socket.socket], victim: Victim, seconds: float) -> float:
    """A byte on every wire, then a good request, over and over; returns the longest that one took."""
    ends, longest = time.monotonic() + seconds, 0.0
    while time.monotonic() < ends:
        for wire in wires:
            wire.sendall(b" ")
        started = time.monotonic()
        answer = victim.post(json=request(json_item(png(PICTURE))))
        assert answer.status_code == 200
        assert "value" in answer.json()["items"][0]["scores"]["clip"]
        longest = max(longest, time.monotonic() - started)
        time.sleep(0.1)
    return longest


def test_slow_bodies_are_cut_while_others_are_served(victim: Victim) -> None:
    """In JSON and in forms: those who dribble are told 408 once their time is over."""
    with (
        victim.bounded(100 * 2**20, within_s=60),
        connected(victim, JSON_BODY) as json_wires,
        connected(victim, CHUNKED_FORM) as form_wires,
    ):
        assert dribble(json_wires, victim, LIMITS.body_timeout_s / 2) < GOOD_S
        for wire in [*json_wires, *form_wires]:
            assert wire.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_slow_headers_cost_others_nothing(victim: Victim) -> None:
    """The server waits for headers as long as they come: a proxy in front cuts them, as README says."""
    with victim.bounded(100 * 2**20, within_s=60), connected(victim, HALF_A_HEADER) as wires:
        assert dribble(wires, victim, LIMITS.body_timeout_s) < GOOD_S


def test_callers_who_hang_up_leave_nothing_behind(victim: Victim) -> None:
    with victim.bounded(100 * 2**20, within_s=60):
        for opening in (JSON_BODY, CHUNKED_FORM, HALF_A_HEADER):
            with connected(victim, opening):
                pass
