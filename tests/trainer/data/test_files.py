"""Shards and folders: what is wrong in one row hides no other, what is cut off or outside is not read."""

import tarfile
from pathlib import Path

import pytest

from tests.captioned import (
    CAPTIONS,
    rows,
    write_captions,
    write_folder,
    write_shards,
)
from trainer.data.files import DataError, content_of
from trainer.data.sources import Source, open_table


def test_a_shard_that_is_cut_off_is_refused_not_read_in_part(tmp_path: Path) -> None:
    """Between two files, and within the head of one."""
    folder = write_shards(tmp_path / "a", rows(), shards=1)
    shard = folder / "00000.tar"
    whole = shard.read_bytes()
    with tarfile.open(shard) as archive:
        middle = archive.getmembers()[2].offset
    for length in (middle, middle + 100):
        shard.write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"00000.tar is cut off at byte {length}; copy the shard again"):
            open_table(Source.parse(str(folder)))


def test_metadata_reaches_no_picture_outside_its_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "inside", rows(1))
    (tmp_path / "secret.png").write_bytes(rows(1)[0]["image"])
    with (tmp_path / "inside" / "metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"file_name": "../secret.png", "text": "b"}\n')
        file.write(f'{{"file_name": "{tmp_path}/secret.png", "text": "c"}}\n')
    table = open_table(Source(str(tmp_path / "inside")))
    assert ["image" in row for row in table.rows] == [True, False, False]


def test_what_is_wrong_in_a_row_does_not_hide_the_others(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", rows(1))
    with (folder / "metadata.jsonl").open("a", encoding="utf-8") as file:
        file.write('no json\n{"file_name": "gone.png", "text": 3}\n[1]\n')
    table = open_table(Source(str(folder)))
    assert [row.get("text") for row in table.rows] == [CAPTIONS[0], None, 3, None]
    with pytest.raises(FileNotFoundError):
        content_of(table.rows[2]["image"])
    with pytest.raises(ValueError, match="is missing"):
        content_of(table.rows[1].get("image"))


def test_folders_within_a_shard_are_told_apart(tmp_path: Path) -> None:
    first = write_captions(tmp_path / "one", rows(2)), write_captions(tmp_path / "two", rows(2))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for folder in first:
            archive.add(folder, arcname=folder.name)
    table = open_table(Source(str(tmp_path / "a.tar")))
    assert len(table) == 4
    assert all(set(row) == {"image", "txt"} for row in table.rows)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("metadata.csv", ["file_name,text", f'a.png,"{"x" * 200_000}"', "a.png,good"]),
        ("metadata.jsonl", ['{"file_name": "a\\u0000.png"}', '{"file_name": "a.png", "text": "good"}']),
        ("metadata.jsonl", ['{"file_name": "\\ud800.png"}', '{"file_name": "a.png", "text": "good"}']),
        ("metadata.jsonl", [f'{{"n": {"9" * 5000}}}', '{"file_name": "a.png", "text": "good"}']),
        ("metadata.jsonl", ["[" * 100_000, '{"file_name": "a.png", "text": "good"}']),
    ],
    ids=["a column without end", "a NUL", "half of a character", "a number without end", "nesting"],
)
def test_a_row_that_cannot_be_read_leaves_the_others(tmp_path: Path, name: str, lines: list[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"a picture")
    (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    broken, good = open_table(Source(str(tmp_path))).rows
    assert broken == {}
    assert (good["text"], content_of(good["image"])) == ("good", b"a picture")


def test_metadata_without_rows_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").touch()
    with pytest.raises(DataError, match="holds no rows that can be read; check it in the config"):
        open_table(Source(str(tmp_path)))
