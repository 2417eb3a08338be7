"""The wire types: what travels over HTTP and between processes.

The bottom layer: it imports pydantic and nothing of this package. What a caller sends, and a `Score`, forbid
unknown keys; what else a server answers ignores them, so that a field added later breaks no older client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

if TYPE_CHECKING:
    from reward_services.errors import RewardError

Modality = Literal["text", "image"]
Whole = Annotated[int, Field(gt=0, strict=True)]
"""A positive integer that is written as one: neither `true` nor "1"."""
Lane = Literal["train", "eval", "others"]
"""Who goes first where callers wait: `train` before `eval` before `others`."""


def _absent(value: object) -> bool:
    return value is None


class _Sent(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Answered(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class InvalidField(_Answered):
    """One place of a request that is wrong: a JSON pointer and what is expected there."""

    pointer: str
    detail: str


class Problem(_Answered):
    """What went wrong, as RFC 9457 says it; `type` is stable and names the error class.

    `request_id` is that of the X-Request-Id header, under which the server's log has the request.
    """

    type: str = "about:blank"
    title: str
    status: int = Field(ge=400, le=599)
    detail: str | None = Field(default=None, exclude_if=_absent)
    errors: tuple[InvalidField, ...] | None = Field(default=None, exclude_if=_absent)
    request_id: str | None = Field(default=None, exclude_if=_absent)


class Score(_Sent):
    """One image's score by one reward: a finite value, or the problem why there is none.

    `parts` is an optional named breakdown of the value, as the verifier's `{"colour": 1.0, "shape": 0.0}`.
    """

    value: FiniteFloat | None = Field(default=None, exclude_if=_absent)
    parts: dict[str, FiniteFloat] | None = Field(default=None, exclude_if=_absent)
    error: Problem | None = Field(default=None, exclude_if=_absent)
    revision: str | None = Field(default=None, exclude=True)
    """Of the reward that computed it; on the wire it is said once for all scores of a reward."""

    @model_validator(mode="after")
    def _value_or_error(self) -> Self:
        if (self.value is None) == (self.error is None):
            raise ValueError("a score is a value or an error: give exactly one of them")
        if self.error is not None and self.parts is not None:
            raise ValueError("a failed score has no parts")
        return self

    @classmethod
    def of(cls, value: float, parts: dict[str, float] | None = None) -> Self:
        """A score that was computed; raises pydantic's ValidationError unless everything is finite."""
        return cls(value=value, parts=parts)

    @classmethod
    def failed(cls, error: RewardError) -> Self:
        """A score that could not be computed, and why."""
        return cls(error=error.problem())

    def by(self, revision: str) -> Self:
        """The same score, as one that a reward's revision computed; a failure is nobody's."""
        return self.model_copy(update={"revision": revision}) if self.ok else self

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.error is None


class Limits(_Answered):
    """What one scoring request may contain; served with the list of rewards."""

    max_body_bytes: PositiveInt = 64 * 2**20
    max_items: PositiveInt = 256
    max_image_bytes: PositiveInt = 16 * 2**20
    max_image_pixels: PositiveInt = 4096 * 4096
    max_request_pixels: PositiveInt = 256 * 1024 * 1024
    max_prompt_bytes: PositiveInt = 8192
    max_deadline_ms: PositiveInt = 120_000
    body_timeout_s: float = Field(default=15.0, gt=0)


class RewardInfo(_Answered):
    """What a caller must know to use a reward. `range` is (lowest, highest) value; None is unbounded.

    `revision` changes whenever scores may change; `max_items` is the most images scored as one batch.
    """

    id: str
    revision: str
    range: tuple[float | None, float | None]
    higher_is_better: bool
    deterministic: bool
    modality: tuple[Modality, ...]
    max_items: PositiveInt
    ready: bool


class RewardList(_Answered):
    """The answer to `GET /v1/rewards`; `missing` are rewards that have never answered, and why."""

    data: tuple[RewardInfo, ...]
    missing: dict[str, Problem] = {}
    limits: Limits


class Latency(_Answered):
    """Percentiles of the time that requests took, in ms."""

    p50: float
    p95: float


class RewardLoad(_Answered):
    """How busy a reward is; everything but `in_flight_images` is of the last `window_s` seconds.

    In flight are the images of requests that are not answered yet, whether they wait for their turn or are
    being scored. `images_per_s` counts scores, `failed_images` what has none. `latency_ms` is of the requests
    that name the reward, waiting and their other rewards included; None where none was answered.
    """

    id: str
    in_flight_images: NonNegativeInt
    images_per_s: float
    failed_images: NonNegativeInt
    latency_ms: Latency | None


class LoadReport(_Answered):
    """The answer to `GET /v1/load`; each replica of the endpoint tells of the requests it took itself."""

    window_s: float
    data: tuple[RewardLoad, ...]


class ImageRef(_Sent):
    """An encoded image: its media type (PNG, JPEG or WebP) and its bytes in base64."""

    media_type: str = Field(max_length=64)
    data: str = Field(repr=False)


class PartRef(_Sent):
    """An image that is a part of the multipart form, by the part's name.

    Without `shape` the part is a PNG, JPEG or WebP file, as its Content-Type says; with the (height, width,
    3) of an array it is the array's bytes, row by row, and its Content-Type is application/octet-stream.
    """

    part: str = Field(max_length=64)
    shape: tuple[Whole, Whole, Literal[3]] | None = Field(default=None, exclude_if=_absent)
    dtype: Literal["uint8"] = "uint8"


class _Item(_Sent):
    id: str | None = Field(default=None, max_length=256, exclude_if=_absent)
    prompt: str


class ScoreItem(_Item):
    """One image with its prompt. `id` is the caller's own name for it and comes back with the scores."""

    image: ImageRef


class FormItem(_Item):
    """As `ScoreItem`, with its image in a part of the form; several items may name the same part."""

    image: PartRef


class ScoreOptions(_Sent):
    """How to score: `deadline_ms` is the longest wait, after which what is missing has failed."""

    deadline_ms: Whole = 30_000


class _Request(_Sent):
    rewards: tuple[Annotated[str, Field(max_length=64)], ...] = Field(min_length=1, max_length=64)
    options: ScoreOptions = ScoreOptions()

    @model_validator(mode="after")
    def _each_reward_once(self) -> Self:
        if len(set(self.rewards)) != len(self.rewards):
            raise ValueError("rewards must not repeat")
        return self


class ScoreRequest(_Request):
    """The JSON body of `POST /v1/scores`: every item is scored by every reward named."""

    items: tuple[ScoreItem, ...] = Field(min_length=1)


class FormRequest(_Request):
    """The part `request` of a multipart body of `POST /v1/scores`: as `ScoreRequest`, its images in parts."""

    items: tuple[FormItem, ...] = Field(min_length=1)


class ScoredItem(_Answered):
    """The scores of the item at `index` of the request, by reward."""

    id: str
    index: NonNegativeInt
    scores: dict[str, Score]


class ScoreResponse(_Answered):
    """The answer to `POST /v1/scores`: items in the request's order, a score or a problem per reward each."""

    id: str
    model_revisions: dict[str, str]
    items: tuple[ScoredItem, ...]
    timing_ms: dict[str, float]
