"""What a body asks for: JSON or a multipart form, as one typed request and an image per item."""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from reward_services.errors import (
    MediaTypeUnsupported,
    RequestInvalid,
    RequestMalformed,
    RewardError,
    TooLarge,
)
from reward_services.http.json_values import check_values
from reward_services.http.multipart import REQUEST, Form, Part, read_form
from reward_services.images import Attachment
from reward_services.schema import FormItem, FormRequest, ImageRef, InvalidField, Limits, ScoreRequest

_MOST_FIELDS, _LONGEST_KEY = 20, 64


@dataclass(frozen=True, slots=True)
class Asked:
    """A scoring request, and one image per item, in order; one that could not be taken in is its error."""

    request: ScoreRequest | FormRequest
    images: Sequence[ImageRef | Attachment | RewardError]


async def read_body(content_type: str, chunks: AsyncIterable[bytes], limits: Limits) -> Asked:
    """The request in a body of type application/json or multipart/form-data.

    Raises:
        MediaTypeUnsupported: it has no type, as nothing was sent.
        RequestMalformed: it is neither.
        RequestInvalid: it does not say what to score, or names a part that is not there.
        TooLarge: its form has more parts, or more values in its JSON, than a request has use for.
    """
    if not content_type:
        raise MediaTypeUnsupported("send a body as application/json or multipart/form-data")
    if content_type.partition(";")[0].strip().lower() == "multipart/form-data":
        return _of_form(await read_form(content_type, chunks, limits), limits)
    body = b"".join([chunk async for chunk in chunks])
    try:
        request = ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        raise explained(error) from error
    return Asked(request, [item.image for item in request.items])


def _of_form(form: Form, limits: Limits) -> Asked:
    part = form.get(REQUEST)
    if isinstance(part, TooLarge):
        raise part
    if part is None or part.media_type != "application/json":
        raise RequestMalformed(f"a form has a part {REQUEST!r} of type application/json")
    check_values(part.content, limits)
    try:
        request = FormRequest.model_validate_json(part.content)
    except ValidationError as error:
        raise explained(error) from error
    unused = set(form) - {REQUEST} - {item.image.part for item in request.items}
    if unused:
        raise RequestInvalid(f"no item names the part {min(unused)!r}")
    return Asked(request, [_image(index, item, form) for index, item in enumerate(request.items)])


def _image(index: int, item: FormItem, form: Form) -> Attachment | RewardError:
    part = form.get(item.image.part)
    if part is None or item.image.part == REQUEST:
        field = InvalidField(pointer=f"/items/{index}/image/part", detail="no part of the form has this name")
        raise RequestInvalid(f"{field.pointer}: {field.detail}", fields=(field,))
    return Attachment(part.media_type, part.content, item.image.shape) if isinstance(part, Part) else part


def explained(error: ValidationError) -> RewardError:
    """As `invalid`, of everything that pydantic found."""
    return invalid(error.errors(include_url=False, include_context=False, include_input=False))


def invalid(found: Sequence[Mapping[str, Any]]) -> RewardError:
    """What pydantic found wrong: where and what, never the input, which may be megabytes or private."""
    if any(one["type"] == "json_invalid" for one in found):
        return RequestMalformed("the body is not JSON")
    # Of a list whose items are wrong pydantic says that it is too short, too: none of them is in it.
    outer = {tuple(one["loc"][:depth]) for one in found for depth in range(len(one["loc"]))}
    own = [one for one in found if one["type"] != "too_short" or tuple(one["loc"]) not in outer]
    fields = tuple(
        InvalidField(pointer="".join(_step(part) for part in one["loc"]), detail=one["msg"])
        for one in own[:_MOST_FIELDS]
    )
    return RequestInvalid(f"{fields[0].pointer}: {fields[0].detail}", fields=fields)


def _step(part: str | int) -> str:
    """One step of a JSON pointer (RFC 6901). A key that nobody knows is input too, so not all of it."""
    return "/" + str(part)[:_LONGEST_KEY].replace("~", "~0").replace("/", "~1")
