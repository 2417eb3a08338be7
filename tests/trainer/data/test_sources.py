"""Every kind of source gives the same rows; what cannot be opened is one line that says what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.captioned import (
    CAPTIONS,
    rows,
    write_captions,
    write_folder,
    write_parquet,
    write_saved,
    write_shards,
)
from trainer.data.files import DataError, content_of
from trainer.data.sources import Source, absolute, is_table, open_table

WRITERS: dict[str, Callable[[Path], str]] = {
    "metadata.jsonl": lambda folder: str(write_folder(folder / "a", rows())),
    "metadata.csv": lambda folder: str(write_folder(folder / "a", rows(), "metadata.csv")),
    "captions": lambda folder: str(write_captions(folder / "a", rows())),
    "shards": lambda folder: str(write_shards(folder / "a", rows())),
    "a pattern of shards": lambda folder: f"{write_shards(folder / 'a', rows())}/0000?.tar",
    "a range of shards": lambda folder: f"{write_shards(folder / 'a', rows())}/{{00000..00001}}.tar",
    "a shard with .json": lambda folder: (
        f"{write_shards(folder / 'a', rows(), shards=1, sidecar=True)}/00000.tar"
    ),
    "parquet files": lambda folder: str(write_parquet(folder / "a", rows())),
    "a pattern of parquet files": lambda folder: f"{write_parquet(folder / 'a', rows())}/[01].parquet",
    "a saved dataset": lambda folder: f"{write_saved(folder / 'a', rows())}#train",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_source_has_the_same_rows(tmp_path: Path, kind: str) -> None:
    table = open_table(Source.parse(WRITERS[kind](tmp_path)))
    caption = next(name for name in ("text", "txt") if name in table.columns)
    found = {
        str(text).strip(): content_of(row["image"]) for text, row in zip(table.column(caption), table.rows)
    }
    assert found == {row["text"]: row["image"] for row in rows()}
    if "shard" not in kind:
        assert tuple(found) == CAPTIONS


def test_a_source_is_taken_apart() -> None:
    assert Source.parse("hf://user/name@v1.0#test:title") == Source("hf://user/name@v1.0", "test", "title")
    assert Source.parse("a b/rows.parquet") == Source("a b/rows.parquet", "train", None)
    assert Source.parse("rows.parquet#:title").column == "title"


def test_paths_become_absolute_and_hub_names_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("shards/*.tar#test") == f"{tmp_path}/shards/*.tar#test"
    assert absolute("hf://user/name@main") == "hf://user/name@main"


def test_a_file_of_lines_is_no_table(tmp_path: Path) -> None:
    assert [is_table(name) for name in ("a.txt", "a.jsonl", "nowhere/")] == [False] * 3
    assert [is_table(name) for name in ("a.parquet#test", "hf://user/name", str(tmp_path))] == [True] * 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "is no folder, .tar, .parquet or hf:// dataset that can be found"),
        ("hf://a b", "is no dataset; write it as hf://USER/NAME@REVISION#SPLIT"),
        ("broken.parquet", "cannot be read as parquet"),
        ("broken.tar", "cannot be read as a tar"),
        ("saved#test", r"saved#test cannot be loaded .*; check name, revision and split"),
    ],
)
def test_what_cannot_be_opened_is_one_line(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "broken.tar").write_bytes(b"no tar" * 200)
    write_saved(tmp_path / "saved", rows(2))
    place = source if source.startswith("hf://") else f"{tmp_path}/{source}"
    with pytest.raises(DataError, match=message) as caught:
        open_table(Source.parse(place))
    assert "\n" not in str(caught.value)


def test_of_a_range_of_shards_none_may_be_missing(tmp_path: Path) -> None:
    write_shards(tmp_path / "a-7", rows(), shards=3)
    ranged = f"{tmp_path}/a-{{6..8}}/{{00000..00002}}.tar"
    with pytest.raises(DataError, match=r"a-6/00000\.tar of .*/a-{6\.\.8}/.* cannot be found; copy it there"):
        open_table(Source.parse(ranged))
    assert len(open_table(Source.parse(ranged.replace("{6..8}", "{7..7}")))) == len(rows())


@pytest.mark.parametrize("name", ["00000.tar.gz", "00000.tgz"])
def test_a_compressed_shard_is_refused_not_passed_over(tmp_path: Path, name: str) -> None:
    folder = write_shards(tmp_path / "a", rows())
    (folder / "00000.tar").rename(folder / name)
    with pytest.raises(DataError, match=f"{name} is compressed, and .*; gunzip it"):
        open_table(Source.parse(str(folder)))


def test_an_id_on_the_hub_is_known_by_its_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for place, hint in (("user/name@v1.0", "write hf://user/name@v1.0"), ("data/name", "check it in the")):
        with pytest.raises(DataError, match=f"can be found; .*{hint}"):
            open_table(Source.parse(place))
