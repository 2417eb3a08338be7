"""Captioned pictures and preference pairs: from every source, in one order, without the rows that are bad."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.captioned import (
    CAPTIONS,
    COLOURS,
    picture,
    rows,
    write_captions,
    write_folder,
    write_parquet,
    write_saved,
    write_shards,
)
from trainer.config import DataConfig
from trainer.data.files import DataError
from trainer.data.pairs import ImageTextStream, PreferenceStream, picture_sizes
from trainer.data.rows import Rows

SQUARE = [(16, 16)]
WRITERS: dict[str, Callable[[Path, Sequence[Any]], Path]] = {
    "folder": write_folder,
    "captions": write_captions,
    "shards": write_shards,
    "parquet": write_parquet,
    "saved": write_saved,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", rows())


def opened(path: Path, **settings: Any) -> Rows:
    return Rows(DataConfig(source=str(path), **settings))


def prompts(stream: ImageTextStream, count: int) -> list[str]:
    return [item.prompt for item in stream.take(count)]


def colour(pixels: NDArray[np.uint8]) -> tuple[int, ...]:
    return tuple(int(value) for value in pixels[0, 0])


@pytest.mark.parametrize("kind", WRITERS)
def test_every_source_gives_captioned_pictures(tmp_path: Path, kind: str) -> None:
    stream = ImageTextStream(opened(WRITERS[kind](tmp_path / kind, rows())), SQUARE, seed=1)
    items = {item.prompt: item for item in stream.take(8)}
    assert set(items) == set(CAPTIONS)
    red = items["a red picture"]
    assert red.image.shape == (16, 16, 3)
    assert colour(red.image) == (255, 0, 0)
    assert (red.original_size, red.crop_top_left) == ((16, 24), (0, 4))


def test_the_seed_decides_order_and_crops(folder: Path) -> None:
    rows = opened(folder, crop="random")
    streams = [ImageTextStream(rows, SQUARE, seed=seed) for seed in (1, 1, 2)]
    first, same, other = ([(item.prompt, item.crop_top_left) for item in s.take(20)] for s in streams)
    assert first == same != other
    assert len({corner for _, corner in first}) > 2


def test_ranks_share_one_stream_and_resume_on_another_world_size(folder: Path) -> None:
    rows = opened(folder, crop="random")
    single = ImageTextStream(rows, SQUARE, seed=3)
    ranks = [ImageTextStream(rows, SQUARE, seed=3, rank=rank, world_size=2) for rank in range(2)]
    expected = [(item.prompt, item.crop_top_left) for item in single.take(18)]
    dealt = [(item.prompt, item.crop_top_left) for rank in ranks for item in rank.take(3)]
    resumed = [ImageTextStream(rows, SQUARE, seed=3, rank=rank, world_size=3) for rank in range(3)]
    for rank in resumed:
        rank.load_state_dict(ranks[1].state_dict())
        dealt += [(item.prompt, item.crop_top_left) for item in rank.take(4)]
    assert dealt == expected


def test_a_state_of_other_data_is_refused(folder: Path, tmp_path: Path) -> None:
    fewer = ImageTextStream(opened(write_captions(tmp_path / "fewer", rows(7))), SQUARE, seed=3)
    with pytest.raises(ValueError, match="is another one"):
        ImageTextStream(opened(folder), SQUARE, seed=3).load_state_dict(fewer.state_dict())


@pytest.fixture(params=["folder", "shards", "parquet"])
def with_bad_rows(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Eight rows: one without caption, one with an empty one, one with no picture and one that ends early."""
    bad = [dict(row) for row in rows()]
    bad[1]["text"], bad[3]["text"] = None, "  "
    bad[4]["image"] = b"no picture"
    bad[6]["image"] = picture("red", 400, 400)[:-200]
    return WRITERS[request.param](tmp_path / "bad", bad)


@pytest.mark.parametrize("buckets", [False, True])
def test_bad_rows_are_left_out_and_counted(
    with_bad_rows: Path, buckets: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With buckets headers are read first: a row that is no picture has no place in the order."""
    config = DataConfig(source=str(with_bad_rows), buckets=buckets)
    with caplog.at_level(logging.WARNING):
        rows = Rows(config)
        sizes = picture_sizes(config, 16, 8)
        streams = [ImageTextStream(rows, sizes, seed=seed, micro_batch=2) for seed in (1, 1)]
        assert len(rows.usable) == (5 if buckets else 6)
        first, again = (prompts(stream, 12) for stream in streams)
    assert first == again
    assert set(first) == {CAPTIONS[row] for row in (0, 2, 5, 7)}
    assert len(streams[0].left_out) == 4
    assert "picture is a broken picture (image file is truncated); it is left out" in caplog.text
    assert "caption" not in caplog.text, "what all ranks find at once is told by the command"
    assert (
        f"4 of 8 rows of {with_bad_rows} are left out: 2 whose caption is missing or not text (first: row "
        in rows.report
    )


def test_every_position_has_one_row_whoever_met_the_bad_ones(with_bad_rows: Path) -> None:
    unbroken = prompts(ImageTextStream(opened(with_bad_rows), SQUARE, seed=5), 12)
    ranks = [
        ImageTextStream(opened(with_bad_rows), SQUARE, seed=5, rank=rank, world_size=3) for rank in range(3)
    ]
    assert [text for rank in ranks for text in prompts(rank, 4)] == unbroken


def test_strict_data_refuses_what_breaks_later(tmp_path: Path) -> None:
    broken = {"text": "a", "image": picture("red", 400, 400)[:-200]}
    stream = ImageTextStream(opened(write_folder(tmp_path / "bad", [broken]), strict=True), SQUARE, seed=0)
    with pytest.raises(DataError, match="row 0: picture is a broken picture"):
        stream.take(1)


def test_data_without_a_row_that_can_be_used_is_refused(tmp_path: Path) -> None:
    broken = [{"text": "a", "image": picture("red", 400, 400)[:-200]}] * 2
    stream = ImageTextStream(opened(write_folder(tmp_path / "bad", broken)), SQUARE, seed=0)
    with pytest.raises(
        DataError, match=r"2 of 2 rows of .* are left out: 2 whose picture is .*; none is left"
    ):
        stream.take(1)
    with pytest.raises(DataError, match=r"1 of 1 rows of .* left out: 1 whose caption .*; none can be used"):
        opened(write_captions(tmp_path / "silent", [{"text": None, "image": picture("red")}]))


def test_captions_of_another_column(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "data", [{**row, "title": f"title {n}"} for n, row in enumerate(rows(2))])
    stream = ImageTextStream(Rows(DataConfig(source=f"{path}#:title")), SQUARE, seed=0)
    assert set(prompts(stream, 2)) == {"title 0", "title 1"}


def of_shapes(*shapes: tuple[int, int]) -> list[Any]:
    """One row of each width and height."""
    return [
        {"text": f"{width}x{height} {number}", "image": picture("red", width, height)}
        for number, (width, height) in enumerate(shapes)
    ]


def test_a_micro_batch_has_one_bucket(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "data", of_shapes(*[(32, 32)] * 5, *[(64, 32)] * 4))
    config = DataConfig(source=str(path), buckets=True)
    sizes = picture_sizes(config, 64, 8)
    stream = ImageTextStream(Rows(config), sizes, seed=1, micro_batch=2)
    shapes, seen = set(), set()
    for _ in range(5):
        batch = stream.take(2)
        assert len({item.image.shape for item in batch}) == 1
        shapes.add(batch[0].image.shape)
        seen |= {item.prompt for item in batch}
    assert shapes == {(64, 64, 3), (48, 96, 3)}
    assert len(seen) == 9
    with pytest.raises(ValueError, match="3 items are no whole micro-batches of 2"):
        stream.take(3)


def test_ranks_and_micro_batches_agree_on_buckets(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "data", of_shapes(*[(32, 32)] * 5, *[(64, 32)] * 4))
    rows = opened(path, buckets=True)
    sizes = picture_sizes(rows.config, 64, 8)
    single = ImageTextStream(rows, sizes, seed=1, micro_batch=2)
    ranks = [
        ImageTextStream(rows, sizes, seed=1, rank=rank, world_size=2, micro_batch=2) for rank in range(2)
    ]
    assert [text for rank in ranks for text in prompts(rank, 4)] == prompts(single, 8)


def test_a_bucket_that_fills_no_micro_batch_joins_the_next(tmp_path: Path) -> None:
    """The one 4:1 picture is learned with the 2:1 ones; alone it would come four times an epoch."""
    path = write_folder(tmp_path / "data", of_shapes(*[(32, 32)] * 4, *[(64, 32)] * 3, (128, 32)))
    rows = opened(path, buckets=True)
    stream = ImageTextStream(rows, picture_sizes(rows.config, 64, 8), seed=1, micro_batch=4)
    items = stream.take(8)
    assert len({item.prompt for item in items}) == 8
    assert {item.image.shape for item in items} == {(64, 64, 3), (48, 96, 3)}


def preferences(count: int = 6) -> list[Any]:
    """The chosen one is the colour that the caption names; the rejected one is black."""
    return [
        {
            "caption": CAPTIONS[n],
            "image_chosen": picture(COLOURS[n]),
            "image_rejected": picture("black", 16, 30),
        }
        for n in range(count)
    ]


def pick_a_pic() -> list[Any]:
    """The same in Pick-a-Pic's columns, the chosen one second in every other row, and a tie at the end."""
    rows = []
    for number, row in enumerate(preferences()):
        pictures = row["image_chosen"], row["image_rejected"]
        swapped = number % 2
        labels = (0.0, 1.0) if swapped else (1.0, 0.0)
        first, second = pictures[::-1] if swapped else pictures
        rows.append({"caption": row["caption"], "jpg_0": first, "jpg_1": second})
        rows[-1] |= {"label_0": labels[0], "label_1": labels[1]}
    return [*rows, {**rows[0], "caption": "a tie", "label_0": 0.5, "label_1": 0.5}]


@pytest.mark.parametrize("kind", ["folder", "shards", "parquet", "pick-a-pic"])
@pytest.mark.parametrize("buckets", [False, True])
def test_preference_pairs(tmp_path: Path, kind: str, buckets: bool) -> None:
    if kind == "pick-a-pic":
        rows = opened(write_parquet(tmp_path / "a", pick_a_pic()), buckets=buckets, strict=True)
    else:
        rows = opened(WRITERS[kind](tmp_path / "a", preferences()), buckets=buckets)
    assert rows.pictures == 2
    stream = PreferenceStream(rows, picture_sizes(rows.config, 16, 8), seed=1, micro_batch=2)
    pairs = {pair.prompt: pair for pair in stream.take(6)}
    assert set(pairs) == set(CAPTIONS[:6])
    for pair in pairs.values():
        assert pair.chosen.prompt == pair.rejected.prompt == pair.prompt
        assert colour(pair.rejected.image) == (0, 0, 0)
        assert pair.chosen.image.shape == pair.rejected.image.shape
        assert (pair.chosen.original_size, pair.rejected.original_size) == ((16, 24), (30, 16))
    assert colour(pairs["a blue picture"].chosen.image) == (0, 0, 255)


def test_a_stream_of_the_other_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    pairs = opened(write_folder(tmp_path / "a", preferences()))
    for stream, given in ((PreferenceStream, opened(folder)), (ImageTextStream, pairs)):
        with pytest.raises(DataError, match=r"holds [12] pictures a row, [12] are wanted"):
            stream(given, SQUARE, seed=0)
