"""Rows of captions and pictures: which columns hold what, which rows can be used, what others lack."""

import logging
import math
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.config.data import DataConfig
from trainer.data.files import DataError, content_of
from trainer.data.left_out import LeftOut, text_problem
from trainer.data.pictures import Size, decode, fit, size_of
from trainer.data.sources import Source, open_table

log = logging.getLogger(__name__)

CAPTIONS = ("caption", "text", "prompt", "txt")
"""Columns in which captions are looked for, in this order."""
PICTURES = ("image", "jpg", "png", "webp", "img")
CHOSEN_AND_REJECTED = (("image_chosen", "image_rejected"), ("chosen", "rejected"))
LABELLED = ("jpg_0", "jpg_1", "label_0", "label_1")
"""Pick-a-Pic's columns: two pictures, and how much of the preference each has, 0.5 and 0.5 being a tie."""

_TIE = "preference is a tie"
_REPORTED = 3
"""Pictures that break while they are read, of which each is told."""
_READERS = 16


@dataclass(frozen=True, slots=True)
class ImageText:
    """A captioned picture at the size at which it is learned, with what SDXL is told of it (section 2.2)."""

    prompt: str
    image: NDArray[np.uint8]
    """(H, W, 3)"""
    original_size: Size
    """(height, width) before it was scaled."""
    crop_top_left: Size
    """How far (down, right) it was cut from the scaled picture's corner."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Original size, crop and own size, six numbers in the order in which SDXL is told of them."""
        return *self.original_size, *self.crop_top_left, *self.image.shape[:2]


class Rows:
    """The usable rows of a source."""

    def __init__(self, config: DataConfig) -> None:
        """Open a source and look at every row's caption, and at its pictures' headers where that is needed.

        Raises:
            DataError: the source cannot be used, or with `strict` a row of it.
        """
        source = Source.parse(config.source)
        self.config = config
        self._table = open_table(source)
        self._caption = self._column(
            (source.column,) if source.column else CAPTIONS, "captions by SOURCE#SPLIT:COLUMN"
        )
        self._pictures, self._labels = self._picture_columns()
        self.left_out = LeftOut(self.name, config.strict)
        """Rows that were left out so far."""
        problems, self._sizes = self._inspected()
        self.usable = [row for row, problem in enumerate(problems) if problem is None]
        """Which rows can be used, as far as is known yet."""
        for row, problem in enumerate(problems):
            if problem is not None:
                self.left_out.add(row, f"row {row}", problem, fault=problem != _TIE)
        self._bad_at_once = len(self.left_out)
        if not self.usable:
            raise DataError(f"{self.report}; none can be used")

    @property
    def name(self) -> str:
        """What messages call the source."""
        return self._table.name

    @property
    def pictures(self) -> int:
        """How many a row has: captioned ones have one, preferences two."""
        return len(self._pictures)

    @property
    def report(self) -> str:
        """How many of its rows were left out so far, and why."""
        return self.left_out.report(len(self._table))

    def sizes(self) -> list[Size]:
        """The size of each usable row's first picture. Only where the configuration asks for buckets."""
        return [self._sizes[row] for row in self.usable]

    def read(self, row: int, size: Size, seed: str) -> list[ImageText]:
        """A row's pictures, cut to a size. Raises OSError or ValueError where one cannot be used."""
        values = self._table.rows[row]
        prompt = str(values[self._caption]).strip()
        crop = random.Random(seed) if self.config.crop == "random" else None
        items = []
        for column in self._ordered(values):
            picture = decode(content_of(values.get(column)))
            pixels, corner = fit(picture, size, crop)
            items.append(ImageText(prompt, pixels, (picture.height, picture.width), corner))
        return items

    def leave_out(self, row: int, problem: str) -> None:
        """Leave out a row whose picture broke while it was read. Raises DataError where all must be good."""
        self.left_out.add(row, f"row {row}", problem)
        if len(self.left_out) - self._bad_at_once <= _REPORTED:
            log.warning("%s, row %d: %s; it is left out", self.name, row, problem)

    def _column(self, names: Sequence[str], how: str) -> str:
        """The first of these columns that is there; `how` says how to name another."""
        for name in names:
            if name in self._table.columns:
                return name
        raise DataError(
            f"{self.name} has no column {' or '.join(names)}, but {', '.join(sorted(self._table.columns))}; "
            f"name that of the {how}"
        )

    def _picture_columns(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The columns of the pictures, and those of labels that say which is preferred, if they do."""
        another = "pictures by data.pictures=[COLUMN]"
        if self.config.pictures:
            return tuple(self._column((name,), another) for name in self.config.pictures), ()
        for names in (*CHOSEN_AND_REJECTED, LABELLED):
            if self._table.columns >= set(names):
                return names[:2], names[2:]
        return (self._column(PICTURES, another),), ()

    def _ordered(self, values: Any) -> tuple[str, ...]:
        """The columns of the pictures, the preferred one first."""
        if not self._labels:
            return self._pictures
        first, second = (values[label] for label in self._labels)
        return self._pictures if first > second else self._pictures[::-1]

    def _inspected(self) -> tuple[list[str | None], dict[int, Size]]:
        """What is wrong with each row, and the sizes of the first pictures of those that are right."""
        problems = [text_problem("caption", text) for text in self._table.column(self._caption)]
        if self._labels:
            labels = zip(*(self._table.column(label) for label in self._labels))
            problems = [known or _label_problem(*both) for known, both in zip(problems, labels)]
        if not (self.config.buckets or self.config.strict):
            return problems, {}
        good = [row for row, problem in enumerate(problems) if problem is None]
        with ThreadPoolExecutor(_READERS) as threads:
            seen = dict(zip(good, threads.map(self._size_or_problem, good)))
        for row, found in seen.items():
            problems[row] = found if isinstance(found, str) else None
        return problems, {row: found for row, found in seen.items() if not isinstance(found, str)}

    def _size_or_problem(self, row: int) -> Size | str:
        values = self._table.rows[row]
        try:
            sizes = [size_of(content_of(values.get(column))) for column in self._ordered(values)]
        except (OSError, ValueError) as error:
            return picture_problem(error)
        return sizes[0]


def _label_problem(first: Any, second: Any) -> str | None:
    # pandas writes a missing number as NaN.
    if any(not isinstance(label, int | float) or math.isnan(label) for label in (first, second)):
        return "labels are missing"
    return _TIE if first == second else None


def picture_problem(error: Exception) -> str:
    """What is wrong with a row whose picture could not be read."""
    reason = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
    return f"picture {reason}"
