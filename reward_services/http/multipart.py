"""Multipart forms (RFC 7578) read as they arrive: each part within its limit, all of them in memory.

A part that is too large is dropped while it arrives and is an error in its place; the other parts stand.
Parsing is python-multipart's, whose header limits (8 headers of 4 KiB a part) hold here too.
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from reward_services.errors import RequestMalformed, TooLarge
from reward_services.images import RAW_MEDIA_TYPE
from reward_services.schema import Limits

REQUEST = "request"
"""The name of the part that holds the JSON."""

_LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its Content-Type without parameters, and its bytes."""

    media_type: str
    content: bytes = field(repr=False)


Form = dict[str, Part | TooLarge]


async def read_form(content_type: str, chunks: AsyncIterable[bytes], limits: Limits) -> Form:
    """The parts of a form by name, in order.

    Raises:
        RequestMalformed: this is no complete form, or two parts have one name.
        TooLarge: there are more parts than items may be.
    """
    try:
        reading = _Reading(parse_options_header(content_type)[1].get(b"boundary", b""), limits)
        async for chunk in chunks:
            reading.feed(chunk)
    except FormParserError as error:
        raise RequestMalformed(f"the body is no multipart form: {error}") from error
    return reading.form()


class _Reading:
    """A form under way: what the parser calls, and what has come of it."""

    def __init__(self, boundary: bytes, limits: Limits) -> None:
        if not boundary:
            raise RequestMalformed("the Content-Type of a multipart form names its boundary")
        self._limits = limits
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_begin": self._begin_header,
                "on_header_field": self._extend_field,
                "on_header_value": self._extend_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._extend_part,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )
        self._form: Form = {}
        self._is_complete = False
        self._begin_part()

    def feed(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def form(self) -> Form:
        if not self._is_complete:
            raise RequestMalformed("the form ends before its closing boundary")
        return self._form

    def _begin_part(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._chunks: list[bytes] = []
        self._begin_header()

    def _begin_header(self) -> None:
        self._field, self._value = b"", b""

    def _extend_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _extend_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._field.lower()] = self._value

    def _end_headers(self) -> None:
        disposition, named = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = named.get(b"name", b"").decode("utf-8", "replace")
        if disposition != b"form-data" or not 0 < len(self._name) <= _LONGEST_NAME:
            raise RequestMalformed(f"every part has a name of at most {_LONGEST_NAME} characters")
        if self._name in self._form:
            raise RequestMalformed(f"two parts are called {self._name!r}")
        if len(self._form) > self._limits.max_items:
            raise TooLarge(f"more than {self._limits.max_items} parts besides {REQUEST!r}")
        media_type = parse_options_header(self._headers.get(b"content-type"))[0]
        self._media_type = media_type.decode("latin-1")
        self._most = self._left = self._most_bytes()

    def _most_bytes(self) -> int:
        if self._name == REQUEST:
            return self._limits.max_body_bytes
        if self._media_type == RAW_MEDIA_TYPE:
            return 3 * self._limits.max_image_pixels
        return self._limits.max_image_bytes

    def _extend_part(self, data: bytes, start: int, end: int) -> None:
        self._left -= end - start
        if self._left >= 0:
            self._chunks.append(data[start:end])
        else:
            self._chunks.clear()

    def _end_part(self) -> None:
        if self._left < 0:
            self._form[self._name] = TooLarge(f"the part {self._name!r} has more than {self._most} bytes")
        else:
            self._form[self._name] = Part(self._media_type, b"".join(self._chunks))

    def _end(self) -> None:
        self._is_complete = True
