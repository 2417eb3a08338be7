"""Where rows of data come from: a folder of pictures, tar shards, parquet files, a Hugging Face dataset.

    folder/                    metadata.jsonl or metadata.csv (column file_name, or *_file_name for several
                               pictures of a row), or a .txt of the same name beside each picture
    shards/ or shards/*.tar    webdataset: files of one row share their name up to the first dot;
                               {000..127}.tar takes so many, none of which may be missing
    rows/ or rows/*.parquet    columns; pictures are encoded bytes
    saved/                     a dataset's save_to_disk
    hf://USER/NAME@REVISION    a dataset on the Hugging Face hub, at a commit or tag

`#SPLIT` or `#SPLIT:COLUMN` after it takes another split than train, or the text from a column.
"""

import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from trainer.data.files import DataError, folder_rows, shard_rows, told

HUB = "hf://"

_HUB_SOURCE = re.compile(r"hf://(?P<name>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_SAVED = ("dataset_info.json", "dataset_dict.json")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class Source:
    """A source of rows as a configuration names it."""

    place: str
    """A path, a pattern of paths, or hf://USER/NAME@REVISION."""
    split: str = "train"
    column: str | None = None
    """Where the text is; None looks for the usual names."""

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Take PLACE#SPLIT:COLUMN apart."""
        place, _, fragment = text.partition("#")
        split, _, column = fragment.partition(":")
        return cls(place, split or "train", column or None)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, read one at a time; pictures in them wait for `content_of`."""

    name: str
    """What messages call it."""
    rows: Sequence[Mapping[str, Any]]
    columns: frozenset[str]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> Iterable[Any]:
        """What every row has in a column, without reading the others."""
        of_others = (row.get(name) for row in self.rows)
        return self.rows[name] if isinstance(self.rows, datasets.Dataset) else of_others


def is_table(source: str) -> bool:
    """Whether a source of prompts has columns and is no file of lines."""
    place = Source.parse(source).place
    return place.startswith(HUB) or place.endswith(".parquet") or Path(place).is_dir()


def absolute(source: str) -> str:
    """The same source for a process with another working directory."""
    return source if source.startswith(HUB) else str(Path(source).absolute())


def open_table(source: Source) -> Table:
    """The rows of a source, without their pictures. Raises DataError."""
    place, path = source.place, Path(source.place)
    files = _files(f"{glob.escape(place)}/*" if path.is_dir() else place)
    if place.startswith(HUB) or any(file.name in _SAVED for file in files):
        return _of_dataset(place, _dataset(source))
    if compressed := [file for file in files if file.name.endswith((".tar.gz", ".tgz"))]:
        raise DataError(
            f"{compressed[0]} is compressed, and pictures are read from the middle of shards; gunzip it"
        )
    of_kind = {kind: [file for file in files if file.suffix == kind] for kind in (".tar", ".parquet")}
    if of_kind[".parquet"]:
        return _of_dataset(place, _parquet(place, of_kind[".parquet"]))
    if of_kind[".tar"]:
        rows = [row for shard in of_kind[".tar"] for row in shard_rows(shard)]
    elif path.is_dir():
        rows = list(folder_rows(path))
    else:
        raise DataError(
            f"{place} is no folder, .tar, .parquet or hf:// dataset that can be found; {_hint(place)}"
        )
    if not any(rows):
        raise DataError(f"{place} holds no rows that can be read; check it in the config")
    return Table(place, rows, frozenset(column for row in rows for column in row))


def _files(pattern: str) -> list[Path]:
    """The files of a pattern in order; of those that a {range} names none may be missing."""
    patterns = _without_ranges(pattern)
    found = [sorted(glob.glob(one)) for one in patterns]
    if len(patterns) > 1 and [] in found:
        missing = patterns[found.index([])]
        raise DataError(f"{missing} of {pattern} cannot be found; copy it there, or take fewer")
    return [Path(name) for names in found for name in names]


def _without_ranges(pattern: str) -> list[str]:
    """A pattern for each number in its {first..last}, which have the digits of the first."""
    before, *rest = _RANGE.split(pattern, maxsplit=1)
    if not rest:
        return [pattern]
    first, last, after = rest
    numbers = (f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1))
    return [one for number in numbers for one in _without_ranges(f"{before}{number}{after}")]


def _hint(place: str) -> str:
    """What was probably meant by a place that is not there."""
    named = _HUB_SOURCE.fullmatch(HUB + place)
    if named and "/" in place and not Path(place).parent.exists():
        return f"for the dataset on the hub write {HUB}{place}"
    return "check it in the config"


def _of_dataset(name: str, rows: Any) -> Table:
    for column, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return Table(name, rows, frozenset(rows.column_names))


def _parquet(place: str, files: Sequence[Path]) -> Any:
    _quiet()
    try:
        return datasets.Dataset.from_parquet([str(file) for file in files])
    except Exception as error:  # noqa: BLE001  Arrow, pandas and fsspec have errors of their own, all for bad files
        raise DataError(f"{place} cannot be read as parquet ({told(error)}); write it again") from None


def _dataset(source: Source) -> Any:
    _quiet()
    try:
        if not source.place.startswith(HUB):
            loaded = datasets.load_from_disk(source.place)
            return loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        named = _HUB_SOURCE.fullmatch(source.place)
        if named is None:
            raise DataError(f"{source.place} is no dataset; write it as hf://USER/NAME@REVISION#SPLIT")
        return datasets.load_dataset(named["name"], revision=named["revision"], split=source.split)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001  as above, and those of the hub's client
        raise DataError(
            f"{source.place}#{source.split} cannot be loaded ({told(error)}); check name, revision and split"
        ) from None


def _quiet() -> None:
    """What datasets would log is in the error."""
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
