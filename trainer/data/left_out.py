"""Rows that cannot be used: left out and counted, or refused."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trainer.data.files import DataError


@dataclass(slots=True)
class LeftOut:
    """The rows of a source that are left out, and what is wrong with them."""

    source: str
    """What messages call it."""
    strict: bool = False
    """Whether a row that would be left out is refused."""
    _problems: dict[int, tuple[str, str]] = field(default_factory=dict)

    def add(self, row: int, place: str, problem: str, *, fault: bool = True) -> None:
        """Leave a row out.

        Args:
            row: its index, from 0.
            place: where a person finds it in the source, such as `line 3`.
            problem: what is wrong with it, such as `caption is missing`; details come last, in brackets.
            fault: False where nothing is wrong with it, and `strict` does not refuse it.

        Raises:
            DataError: rows must all be good.
        """
        if self.strict and fault:
            raise DataError(
                f"{self.source}, {place}: {problem}; "
                "repair it, or leave such rows out by strict=false, without --strict-data"
            )
        self._problems[row] = place, problem

    def report(self, rows: int) -> str:
        """How many of so many rows are left out, and why, in a line."""
        places: dict[str, list[str]] = {}
        for place, problem in self._problems.values():
            places.setdefault(problem.partition(" (")[0], []).append(place)
        reasons = ", ".join(
            f"{len(found)} whose {problem} (first: {found[0]})"
            for problem, found in sorted(places.items(), key=lambda item: -len(item[1]))
        )
        return f"{len(self)} of {rows} rows of {self.source} are left out" + (reasons and f": {reasons}")

    def __len__(self) -> int:
        return len(self._problems)

    def __iter__(self) -> Iterator[int]:
        return iter(self._problems)

    def __contains__(self, row: int) -> bool:
        return row in self._problems


def text_problem(name: str, text: Any) -> str | None:
    """What is wrong with a row's prompt or caption, as it is named; None where it can be tokenized."""
    if not (isinstance(text, str) and text.strip()):
        return f"{name} is missing or not text"
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can escape one half of a surrogate pair
        return f"{name} has half of a character"
    return None
