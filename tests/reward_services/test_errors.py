"""The error tree: every error survives the wire, statuses mean something, retryable is what it says."""

import re
from typing import Any

import pytest

import reward_services
from reward_services import errors
from reward_services.errors import ERRORS, RewardError, error_from
from reward_services.schema import InvalidField, Problem

EVERY = list(ERRORS.values())


@pytest.mark.parametrize("error", EVERY)
def test_every_error_survives_the_wire(error: type[RewardError]) -> None:
    fields = (InvalidField(pointer="/items/0", detail="no"),)
    problem = Problem.model_validate_json(error("why", fields=fields).problem().model_dump_json())
    back = error_from(problem, retry_after_s=2.0)
    assert type(back) is error
    assert (str(back), back.fields, back.retry_after_s) == ("why", fields, 2.0)


@pytest.mark.parametrize("error", EVERY)
def test_every_error_can_cross_processes(error: type[RewardError]) -> None:
    # What a pickler does, without one: rebuild from what `__reduce_ex__` hands out.
    parts: Any = error("why", retry_after_s=3.0).__reduce_ex__(2)
    back: Any = parts[0](*parts[1])
    back.__dict__.update(parts[2])
    assert type(back) is error
    assert (str(back), back.retry_after_s) == ("why", 3.0)


def test_slugs_are_one_per_class() -> None:
    assert len(ERRORS) == len({id(error) for error in EVERY})
    assert all(re.fullmatch(r"[a-z-]+", slug) for slug in ERRORS)


def test_the_drawing_is_the_tree() -> None:
    drawn = re.findall(r"^ *[│ ]*(?:├── |└── )?(\w+) +(\d{3})? ", errors.__doc__ or "", flags=re.MULTILINE)
    stated = {name: int(status) for name, status in drawn if status}
    assert stated == {error.__name__: error.status for error in EVERY if error.__name__ in stated}
    assert set(stated) == {error.__name__ for error in EVERY} - {"RewardError", "RequestRejected"}


def test_only_what_may_pass_is_retryable() -> None:
    assert {error for error in EVERY if error.retryable} == {
        error for error in EVERY if issubclass(error, reward_services.RewardUnavailable)
    }


@pytest.mark.parametrize(
    ("status", "retryable"),
    [
        *((status, False) for status in (400, 403, 404, 413, 415, 422)),
        *((status, True) for status in (408, 429, 500, 502, 503, 504)),
    ],
)
def test_an_unknown_type_means_what_its_status_means(status: int, retryable: bool) -> None:
    error = error_from(Problem(type="about:blank", title="Internal Server Error", status=status))
    assert error.retryable is retryable
    assert str(error) == "Internal Server Error"


def test_every_error_is_public() -> None:
    public = {getattr(reward_services, name) for name in reward_services.__all__}
    assert set(EVERY) <= public
