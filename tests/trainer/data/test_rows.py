"""Rows: columns are found by their usual names, bad rows by what they hold, and counted or refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.captioned import picture, rows, write_folder, write_parquet
from trainer.config import DataConfig
from trainer.data.files import DataError
from trainer.data.rows import ImageText, Rows


def opened(path: Path, **settings: Any) -> Rows:
    return Rows(DataConfig(source=str(path), **settings))


@pytest.mark.parametrize(
    ("number", "column", "value", "message"),
    [
        (2, "text", " ", "row 2: caption is missing or not text; repair it, or leave such rows out"),
        (5, "image", b"no picture", "row 5: picture is no picture that can be read"),
    ],
)
def test_strict_data_refuses_them_at_once(
    tmp_path: Path, number: int, column: str, value: object, message: str
) -> None:
    bad = [dict(row) for row in rows()]
    bad[number][column] = value
    with pytest.raises(DataError, match=message):
        opened(write_folder(tmp_path / "bad", bad), strict=True)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (
            {"image": picture("red"), "title": "a"},
            "has no column caption or text or prompt or txt, but image",
        ),
        (
            {"text": "a", "photo": picture("red")},
            r"no column image or jpg or png or webp or img, but photo, text; .* data\.pictures=\[COLUMN\]",
        ),
    ],
)
def test_columns_that_are_not_there_are_named(tmp_path: Path, kept: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(write_folder(tmp_path / "data", [kept]))


def test_pictures_of_another_column(tmp_path: Path) -> None:
    row = {"text": "a", "image": picture("red"), "photo": picture("blue"), "drawing": picture("lime")}
    for number, write in enumerate((write_folder, write_parquet)):
        path = write(tmp_path / str(number), [row] * 2)
        for names, colours in ((["photo"], "B"), (["drawing", "photo"], "GB")):
            found = opened(path, pictures=names)
            items = found.read(0, (16, 16), "")
            assert found.pictures == len(names)
            assert ["RGB"[item.image[0, 0].argmax()] for item in items] == list(colours)
        with pytest.raises(
            DataError, match=r"has no column scan, but drawing, image, photo, text; name that of"
        ):
            opened(path, pictures=["scan"])


def test_ties_and_missing_labels_teach_nothing(tmp_path: Path) -> None:
    two = {"caption": "a", "jpg_0": picture("red"), "jpg_1": picture("blue")}
    labels = ((1.0, 0.0), (0.5, 0.5), (None, None), (math.nan, 1.0), (1.0, math.nan))
    table = [{**two, "label_0": first, "label_1": second} for first, second in labels]
    found = opened(write_parquet(tmp_path / "a", table))
    assert found.pictures == 2
    assert found.usable == [0]
    assert found.report == (
        f"4 of 5 rows of {tmp_path / 'a'} are left out: 3 whose labels are missing (first: row 2), "
        "1 whose preference is a tie (first: row 1)"
    )
    with pytest.raises(DataError, match="row 2: labels are missing"):
        opened(tmp_path / "a", strict=True)


def test_sizes_are_read_where_they_are_needed(tmp_path: Path) -> None:
    wide = {"text": "wide", "image": picture("red", 40, 20)}
    found = opened(write_folder(tmp_path / "a", [*rows(1), wide]), buckets=True)
    assert found.sizes() == [(16, 24), (20, 40)]
    assert (found.pictures, len(found.left_out)) == (1, 0)


def test_sizes_are_in_the_order_of_sdxls_conditioning() -> None:
    """Height before width: of the original, of what was cut off, of the picture as it is learned."""
    pixels = np.zeros((5, 6, 3), np.uint8)
    assert ImageText("a", pixels, original_size=(1, 2), crop_top_left=(3, 4)).sizes == (1, 2, 3, 4, 5, 6)
