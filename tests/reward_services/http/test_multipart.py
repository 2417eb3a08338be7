"""Forms: exact however they are cut, bounded part by part, and refused when they are no forms."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from reward_services import Limits, RequestMalformed, TooLarge
from reward_services.http.multipart import Form, Part, read_form

LIMITS = Limits(max_items=3, max_image_bytes=100, max_image_pixels=50)
RAW = "application/octet-stream"


def form_of(body: bytes, content_type: str = "multipart/form-data; boundary=cut", size: int = 7) -> Form:
    async def chunks() -> AsyncIterator[bytes]:
        for first in range(0, len(body), size):
            yield body[first : first + size]

    return asyncio.run(read_form(content_type, chunks(), LIMITS))


def part(name: str, content: bytes, media_type: str = "image/png") -> bytes:
    head = f'--cut\r\nContent-Disposition: form-data; name="{name}"\r\nContent-Type: {media_type}\r\n\r\n'
    return head.encode() + content + b"\r\n"


END = b"--cut--\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_parts_are_exact_however_the_body_is_cut(size: int) -> None:
    tricky = b"\r\n--cu\r\n--\r\n\x00\xff--cut"
    body = (
        part("request", b"{}", "application/json; charset=utf-8") + part("a", tricky) + part("b", b"") + END
    )
    assert form_of(body, size=size) == {
        "request": Part("application/json", b"{}"),
        "a": Part("image/png", tricky),
        "b": Part("image/png", b""),
    }


def test_what_another_client_writes_is_read() -> None:
    files: Any = {
        "request": (None, b"{}", "application/json"),
        "dög": ("picture.png", b"12", "image/png"),
        "b": ("b.bin", b"3", RAW),
    }
    request = httpx.Request("POST", "http://test", files=files)
    form = form_of(request.read(), request.headers["content-type"])
    assert form == {
        "request": Part("application/json", b"{}"),
        "dög": Part("image/png", b"12"),
        "b": Part(RAW, b"3"),
    }


def test_a_part_that_is_too_large_is_an_error_in_its_place() -> None:
    body = (
        part("a", b"x" * 100)
        + part("b", b"x" * 101)
        + part("c", b"x" * 150, RAW)
        + part("d", b"x" * 151, RAW)
    )
    form = form_of(body + END)
    assert [isinstance(one, TooLarge) for one in form.values()] == [False, True, False, True]
    assert str(form["b"]) == "the part 'b' has more than 100 bytes"


def test_the_parts_are_counted() -> None:
    within = b"".join(part(name, b"") for name in "abcd")
    assert len(form_of(within + END)) == 4, "three items and the request"
    with pytest.raises(TooLarge, match="more than 3 parts"):
        form_of(within + part("e", b"") + END)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"\x80\x04K\x01.",
        part("a", b"1"),
        END[:-4],
        part("a", b"1") + part("a", b"2") + END,
        part("", b"1") + END,
        part("a" * 65, b"1") + END,
        b"--cut\r\nContent-Type: image/png\r\n\r\n1\r\n" + END,
        b"--cut\r\nContent-Disposition: attachment; name=a\r\n\r\n1\r\n" + END,
        b"--cut\r\nno colon\r\n\r\n1\r\n" + END,
        b"--cut\r\n" + b"X-Much: 1\r\n" * 100 + b"\r\n1\r\n" + END,
        b"--cut\r\nContent-Disposition: " + b"x" * 100_000 + b"\r\n\r\n1\r\n" + END,
    ],
)
def test_what_is_no_form_is_refused(body: bytes) -> None:
    with pytest.raises(RequestMalformed):
        form_of(body, size=4096)


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", f"multipart/form-data; boundary={'x' * 300}"],
)
def test_a_boundary_is_needed(content_type: str) -> None:
    with pytest.raises(RequestMalformed):
        form_of(part("a", b"1") + END, content_type)
