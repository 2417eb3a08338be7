"""Rows that are left out: each counted once, with reasons and where to look; or the first is refused."""

import pytest

from trainer.data.files import DataError
from trainer.data.left_out import LeftOut


def test_reasons_are_counted_the_most_frequent_first() -> None:
    left_out = LeftOut("cats.jsonl")
    assert not left_out
    left_out.add(4, "line 5", "prompt is missing")
    for row in (6, 7, 7):
        left_out.add(row, f"line {row + 1}", f"text is not JSON ({row})")
    assert (list(left_out), 6 in left_out, 5 in left_out) == ([4, 6, 7], True, False)
    assert left_out.report(9) == (
        "3 of 9 rows of cats.jsonl are left out: 2 whose text is not JSON (first: line 7), "
        "1 whose prompt is missing (first: line 5)"
    )


def test_where_all_must_be_good_a_fault_is_refused() -> None:
    left_out = LeftOut("pairs", strict=True)
    left_out.add(0, "row 0", "preference is a tie", fault=False)
    with pytest.raises(
        DataError, match=r"^pairs, row 1: labels are missing; repair it, or leave such rows out"
    ):
        left_out.add(1, "row 1", "labels are missing")
    assert list(left_out) == [0]
