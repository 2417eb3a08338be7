"""JSON of more values than a request needs is refused at no great cost; marks in prompts are no values."""

import contextlib
import json
import time

import pytest

from reward_services import Limits, TooLarge
from reward_services.http.json_values import check_values

LIMITS = Limits(max_items=4, max_prompt_bytes=1000)
MOST = 64 * 4 + 512


@pytest.mark.parametrize("marks", [",", "[{", '\\"', "\\\\", '\\\\\\"['])
def test_prompts_may_be_full_of_marks(marks: str) -> None:
    prompt = json.loads(f'"{marks * (900 // len(marks))}"')
    check_values(json.dumps({"items": [{"prompt": prompt}] * 4}).encode(), LIMITS)


def test_exactly_so_many_values() -> None:
    check_values(b"[" + b"0," * (MOST - 1), LIMITS)
    with pytest.raises(TooLarge, match=f"more than {MOST} values"):
        check_values(b"[" + b"0," * MOST, LIMITS)


@pytest.mark.parametrize("values", [b"{},", b"[", b'"":0,', b'"",', b'"\\"",', b'"[",'])
def test_many_values_however_they_are_written(values: bytes) -> None:
    with pytest.raises(TooLarge):
        check_values(b'{"items":[' + values * 800, LIMITS)


@pytest.mark.parametrize(
    "body",
    [b'"' * 4000, b'"\\' * 2000 + b"x" * 10**7, b'"' * 1001 + b"\\" * 10**7, b"[" * 10**7, b'"[' * 2000],
)
def test_no_body_takes_long(body: bytes) -> None:
    """What is not closed, or all escapes, is gone through once: 10 MB in a moment."""
    started = time.process_time()
    with contextlib.suppress(TooLarge):
        check_values(body, LIMITS)
    assert time.process_time() - started < 2
