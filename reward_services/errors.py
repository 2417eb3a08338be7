"""What can go wrong with a reward, and the one table between errors, problem types and HTTP status.

RewardError
├── RequestRejected           the caller's doing: the same request would fail again
│   ├── RequestMalformed      400  the body is no JSON, or no multipart form
│   ├── RequestInvalid        422  the body is no score request
│   ├── KeyInvalid            401  no key, or one that is not known
│   ├── NotPermitted          403  the caller may not do this
│   ├── RewardUnknown         404  no reward of that name
│   ├── TooLarge              413  more bytes, pixels or items than the limits allow
│   ├── MediaTypeUnsupported  415  a body or an image of a type that is not read
│   ├── ImageInvalid          422  the image cannot be read
│   └── PromptInvalid         422  the reward has no meaning for this prompt
├── ScoringFailed             500  the model has no score for this item
│   └── ScoreNotFinite        500  it answered NaN or infinity
├── ConfigInvalid             500  a configuration or model folder that cannot be used
├── BadAnswer                 502  whatever answered does not speak this API
└── RewardUnavailable         503  may well succeed a little later: retryable
    ├── RewardNotReady        503  still starting, or it never came up
    ├── ReplicaLost           503  the replica died with the request
    ├── ReplicaFailed         500  the replica raised something unforeseen
    ├── ServerUnreachable     503  no connection to the server
    ├── Overloaded            429  the queue is full
    ├── QuotaExceeded         429  the key has scored all it may, for the moment
    ├── BodyTimeout           408  the body came too slowly
    └── DeadlineExceeded      504  no answer within the caller's deadline
"""
# ruff: noqa: N818  an error is named for what is wrong; every name here is one

from __future__ import annotations

from typing import ClassVar

from reward_services.schema import InvalidField, Problem

PROBLEM_PREFIX = "/problems/"


class RewardError(Exception):
    """The root. `detail` is one line for a person: what is wrong and what to do.

    `retryable` says whether the same request may succeed later, `retry_after_s` when to ask again.
    """

    slug: ClassVar[str] = "reward-error"
    title: ClassVar[str] = "The reward failed"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str = "",
        *,
        retry_after_s: float | None = None,
        fields: tuple[InvalidField, ...] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.fields = fields

    def __str__(self) -> str:
        return self.detail or self.title

    def problem(self) -> Problem:
        """This error as it goes over the wire."""
        return Problem(
            type=PROBLEM_PREFIX + self.slug,
            title=self.title,
            status=self.status,
            detail=self.detail or None,
            errors=self.fields,
        )


class RequestRejected(RewardError):
    """The caller's doing: the same request would fail again."""

    slug, title, status = "request-rejected", "The request was rejected", 400


class RequestMalformed(RequestRejected):
    """The body is no JSON, or no multipart form."""

    slug, title, status = "request-malformed", "The body cannot be read", 400


class RequestInvalid(RequestRejected):
    """The body can be read but is no score request."""

    slug, title, status = "request-invalid", "The request is not valid", 422


class KeyInvalid(RequestRejected):
    """No key was sent, or one that is not known."""

    slug, title, status = "key-invalid", "A valid key is needed", 401


class NotPermitted(RequestRejected):
    """The caller may not do this."""

    slug, title, status = "not-permitted", "This is not permitted", 403


class RewardUnknown(RequestRejected):
    """No reward of that name is served."""

    slug, title, status = "reward-unknown", "There is no such reward", 404


class TooLarge(RequestRejected):
    """More bytes, pixels or items than the limits allow."""

    slug, title, status = "too-large", "A limit is exceeded", 413


class MediaTypeUnsupported(RequestRejected):
    """A body that is neither JSON nor a multipart form, or an image that is no PNG, JPEG or WebP."""

    slug, title, status = "media-type-unsupported", "The media type is not supported", 415


class ImageInvalid(RequestRejected):
    """The image cannot be read or has no shape that can be scored."""

    slug, title, status = "image-invalid", "The image could not be read", 422


class PromptInvalid(RequestRejected):
    """The reward has no meaning for this prompt."""

    slug, title, status = "prompt-invalid", "The prompt cannot be scored", 422


class ScoringFailed(RewardError):
    """The model has no score for this item, and would have none the next time."""

    slug, title, status = "scoring-failed", "The item could not be scored", 500


class ScoreNotFinite(ScoringFailed):
    """The model answered NaN or infinity."""

    slug, title, status = "score-not-finite", "The score is not a finite number", 500


class ConfigInvalid(RewardError):
    """A configuration or a model folder that cannot be used."""

    slug, title, status = "config-invalid", "The configuration cannot be used", 500


class BadAnswer(RewardError):
    """Whatever answered does not speak this API: wrong URL, or something in between."""

    slug, title, status = "bad-answer", "The server's answer is not understood", 502


class RewardUnavailable(RewardError):
    """May well succeed a little later."""

    slug, title, status, retryable = "reward-unavailable", "The reward is not available", 503, True


class RewardNotReady(RewardUnavailable):
    """Still starting, or it never came up."""

    slug, title, status = "reward-not-ready", "The reward is not ready", 503


class ReplicaLost(RewardUnavailable):
    """The replica died with the request."""

    slug, title, status = "replica-lost", "The reward's replica was lost", 503


class ReplicaFailed(RewardUnavailable):
    """The replica raised something unforeseen."""

    slug, title, status = "replica-failed", "The reward failed unexpectedly", 500


class ServerUnreachable(RewardUnavailable):
    """No connection to the server."""

    slug, title, status = "server-unreachable", "The server cannot be reached", 503


class Overloaded(RewardUnavailable):
    """The queue is full."""

    slug, title, status = "overloaded", "Too many requests are waiting", 429


class QuotaExceeded(RewardUnavailable):
    """The key has scored all it may, for the moment."""

    slug, title, status = "quota-exceeded", "The key's quota is used up", 429


class BodyTimeout(RewardUnavailable):
    """The body came too slowly."""

    slug, title, status = "body-timeout", "The body came too slowly", 408


class DeadlineExceeded(RewardUnavailable):
    """No answer within the caller's deadline."""

    slug, title, status = "deadline-exceeded", "The deadline has passed", 504


def _tree(root: type[RewardError]) -> list[type[RewardError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


ERRORS: dict[str, type[RewardError]] = {error.slug: error for error in _tree(RewardError)}
"""Problem type (without its prefix) to class: the table that server and client share."""

_BY_STATUS: dict[int, type[RewardError]] = {
    401: KeyInvalid,
    403: NotPermitted,
    404: RewardUnknown,
    408: BodyTimeout,
    413: TooLarge,
    415: MediaTypeUnsupported,
    422: RequestInvalid,
    429: Overloaded,
    500: ReplicaFailed,
    502: ServerUnreachable,  # a proxy in front says so while what is behind it starts again
    503: RewardUnavailable,
    504: DeadlineExceeded,
}


def error_from(problem: Problem, *, retry_after_s: float | None = None) -> RewardError:
    """The error that a problem names; an unknown type falls back to what its HTTP status means."""
    named = ERRORS.get(problem.type.removeprefix(PROBLEM_PREFIX))
    found = named or _BY_STATUS.get(problem.status, RequestRejected if problem.status < 500 else BadAnswer)
    return found(problem.detail or problem.title, retry_after_s=retry_after_s, fields=problem.errors)
