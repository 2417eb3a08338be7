"""Bodies and headers of ill will: a 4xx or a closed door, never a 5xx, a hang or a flood of memory."""

import gzip
import json
import re
from collections.abc import Callable

import pytest

from tests.abuse.hostile import PICTURE
from tests.abuse.victim import LIMITS, Victim, json_item, png, request

JSON, FORM = b"application/json", b"multipart/form-data; boundary=b"
MEMORY, SECONDS = 200 * 2**20, 30.0
GOOD = json.dumps(request(json_item(png(PICTURE)))).encode()
PICKLE = (
    b"\x80\x04\x95\x1c\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94."
)
REWARDS = b'{"rewards":["jpeg"],'


def post(content_type: bytes, body: bytes, *headers: bytes) -> bytes:
    """A request that is well-formed as HTTP."""
    length = b"content-length: %d" % len(body)
    lines = [b"POST /v1/scores HTTP/1.1", b"host: t", b"connection: close", length, *headers]
    return b"\r\n".join([*lines, *([b"content-type: " + content_type] if content_type else []), b"", body])


def head(*headers: bytes) -> bytes:
    return b"\r\n".join(
        [b"POST /v1/scores HTTP/1.1", b"host: t", b"content-type: " + JSON, *headers, b"", b""]
    )


def part(name: bytes, content: bytes = b"x", headers: bytes = b"") -> bytes:
    return b'--b\r\ncontent-disposition: form-data; name="%s"\r\n%s\r\n%s\r\n' % (name, headers, content)


def filled(piece: bytes, size: int = LIMITS.max_body_bytes - 1000) -> bytes:
    """As many of it as a body may have."""
    return piece * (size // len(piece))


TYPES = [
    ("pickle as JSON", lambda: post(JSON, PICKLE), 400),
    ("pickle as what it is", lambda: post(b"application/octet-stream", PICKLE), 415),
    ("pickle as nothing", lambda: post(b"", PICKLE), 415),
    ("a form's fields", lambda: post(b"application/x-www-form-urlencoded", b"rewards=jpeg"), 415),
    ("XML", lambda: post(b"application/xml", b'<!DOCTYPE a [<!ENTITY b "b">]><a>&b;</a>'), 415),
    ("gzip", lambda: post(JSON, gzip.compress(GOOD), b"content-encoding: gzip"), 415),
    ("a gzip bomb", lambda: post(JSON, gzip.compress(bytes(10**8)), b"content-encoding: gzip"), 415),
    ("two types", lambda: post(JSON, GOOD, b"content-type: text/plain"), 415),
    ("UTF-16", lambda: post(JSON, GOOD.decode().encode("utf-16")), 400),
    ("no UTF-8", lambda: post(JSON, b'{"rewards":["\xff"]}'), 400),
]
LENGTHS = [
    ("a length of 5000 digits", lambda: head(b"content-length: " + b"9" * 5000), 400),
    ("two lengths", lambda: head(b"content-length: 2", b"content-length: 3") + b"{}", 400),
    (
        "length and chunks",
        lambda: head(b"content-length: 2", b"transfer-encoding: chunked") + b"0\r\n\r\n",
        400,
    ),
    ("a negative length", lambda: head(b"content-length: -1"), 400),
    ("more announced than may be", lambda: head(b"content-length: 999999999"), 413),
    ("more sent than announced", lambda: head(b"content-length: 1") + b"{}{}{}", 400),
    ("less sent than announced", lambda: head(b"content-length: 1000") + b"{}", None),
    ("a chunk of a bad length", lambda: head(b"transfer-encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n", 400),
    ("a chunk of a huge length", lambda: head(b"transfer-encoding: chunked") + b"f" * 15 + b"\r\n{}", None),
    (
        "chunks beyond the limit",
        lambda: head(b"transfer-encoding: chunked") + filled(b"100000\r\n" + bytes(2**20) + b"\r\n", 2**27),
        413,
    ),
]
VALUES = [
    ("nothing", lambda: b"", 400),
    ("millions of numbers", lambda: REWARDS + b'"items":[' + filled(b"0,") + b"0]}", 413),
    ("millions of objects", lambda: REWARDS + b'"items":[' + filled(b"{},") + b"0]}", 413),
    ("millions of keys", lambda: b"{" + filled(b'"aaaa":0,') + b'"b":0}', 413),
    ("millions of names", lambda: b'{"items":[],"rewards":[' + filled(b'"a",') + b'"a"]}', 413),
    ("depth of millions", lambda: filled(b"["), 413),
    ("depth of thousands", lambda: b"[" * 5000 + b"]" * 5000, 400),
    ("broad depth", lambda: b"[" + filled(b"[" * 150 + b"]" * 150 + b",") + b"0]", 413),
    ("one long name", lambda: b'{"rewards":["' + filled(b"a") + b'"],"items":[{}]}', 422),
    ("one long key", lambda: b'{"' + filled(b"a") + b'":0}', 422),
    ("one long prompt", lambda: REWARDS + b'"items":[{"prompt":"' + filled(b"a") + b'"}]}', 422),
    (
        "one long number",
        lambda: REWARDS + b'"items":[],"options":{"deadline_ms":' + filled(b"9") + b"}}",
        400,
    ),
    ("a number beyond all", lambda: REWARDS + b'"items":[],"options":{"deadline_ms":1e999}}', 422),
    ("no numbers", lambda: b'{"rewards":NaN,"items":Infinity,"options":{"deadline_ms":-Infinity}}', 422),
    ("lone surrogates", lambda: REWARDS + b'"items":[{"prompt":"\\ud800"}]}', 400),
    ("a lone surrogate as key", lambda: b'{"\\udfff":0}', 400),
    ("one reward twice", lambda: b'{"rewards":["jpeg","jpeg"],"items":[{}]}', 422),
    ("keys twice", lambda: REWARDS + GOOD[1:].replace(b'"items"', b'"items":[],"items"'), 200),
    ("nul bytes", lambda: b"\0" * 1000, 400),
]
FORMS = [
    ("no boundary", lambda: post(b"multipart/form-data", part(b"request")), 400),
    ("an empty boundary", lambda: post(b"multipart/form-data; boundary=", part(b"request")), 400),
    ("a long boundary", lambda: post(b"multipart/form-data; boundary=" + b"b" * 5000, b"--b"), 400),
    ("a boundary of other bytes", lambda: post(b'multipart/form-data; boundary="\xff\\""', b"--b"), 400),
    ("no end", lambda: post(FORM, part(b"request", GOOD)), 400),
    ("no part", lambda: post(FORM, b"--b--\r\n"), 400),
    ("another boundary", lambda: post(FORM, b"--c\r\n\r\n\r\n--c--\r\n"), 400),
    ("thousands of one name", lambda: post(FORM, filled(part(b"a"), 10**6) + b"--b--\r\n"), 400),
    (
        "thousands of parts",
        lambda: post(FORM, b"".join(part(b"%d" % n) for n in range(9999)) + b"--b--\r\n"),
        413,
    ),
    ("a huge header", lambda: post(FORM, part(b"a", headers=filled(b"x: y") + b"\r\n") + b"--b--\r\n"), 400),
    ("many headers", lambda: post(FORM, part(b"a", headers=b"x: y\r\n" * 10**6) + b"--b--\r\n"), 400),
    ("no name", lambda: post(FORM, part(b"") + b"--b--\r\n"), 400),
    ("a long name", lambda: post(FORM, part(b"a" * 65) + b"--b--\r\n"), 400),
    ("the name of a file", lambda: post(FORM, part(b"../../etc/passwd") + b"--b--\r\n"), 400),
    ("nearly boundaries", lambda: post(FORM, part(b"a", filled(b"\r\n--", 2**25)) + b"--b--\r\n"), 400),
    ("only line ends", lambda: post(FORM, part(b"a", filled(b"\r\n", 2**25)) + b"--b--\r\n"), 400),
    (
        "millions of values in its JSON",
        lambda: post(
            FORM,
            part(b"request", filled(b"[0,", 2**25), b"content-type: application/json\r\n") + b"--b--\r\n",
        ),
        413,
    ),
]
HEADERS = [
    ("ten thousand headers", lambda: get(b"".join(b"x-%d: a\r\n" % n for n in range(10_000))), 200),
    ("a header of 256 KiB", lambda: get(b"x: " + b"a" * 2**18 + b"\r\n"), 200),
    ("a path of megabytes", lambda: b"GET /" + b"a" * 10**6 + b" HTTP/1.1\r\nhost: t\r\n\r\n", 400),
    ("a path of other bytes", lambda: b"GET /\xff HTTP/1.1\r\nhost: t\r\n\r\n", 400),
    ("a method of its own", lambda: b"BREW /v1/scores HTTP/1.1\r\nhost: t\r\n\r\n", 400),
    ("no HTTP", lambda: b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", 400),
    ("HTTP/2", lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ("a line of its own in the id", lambda: get(b"x-request-id: a\rset-cookie: b\r\n"), 400),
]
RAW = [*TYPES, *LENGTHS, *FORMS, *HEADERS]


def get(headers: bytes) -> bytes:
    return b"GET /livez HTTP/1.1\r\nhost: t\r\nconnection: close\r\n" + headers + b"\r\n"


def statuses(answer: bytes) -> list[int]:
    """Of the responses on a connection, in order."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


@pytest.mark.parametrize(("sent", "status"), [case[1:] for case in RAW], ids=[case[0] for case in RAW])
def test_hostile_requests(victim: Victim, sent: Callable[[], bytes], status: int | None) -> None:
    """`status` None: the connection ends without an answer, as the request never was complete."""
    with victim.bounded(MEMORY, within_s=SECONDS):
        answered = statuses(victim.say(sent()))
    assert answered[:1] == ([] if status is None else [status])
    assert all(later == 400 for later in answered[1:])


@pytest.mark.parametrize(("body", "status"), [case[1:] for case in VALUES], ids=[case[0] for case in VALUES])
def test_hostile_json(victim: Victim, body: Callable[[], bytes], status: int) -> None:
    """As a body, and as the part of a form that says what to score; the answer never repeats it."""
    with victim.bounded(8 * LIMITS.max_body_bytes, within_s=SECONDS):
        answer = victim.post(content=body(), headers={"content-type": "application/json"})
        assert answer.status_code == status, answer.text[:300]
        assert status == 200 or len(answer.content) < 5000
