"""Rows in files of this machine: tar shards, and folders of pictures with metadata or captions beside them.

Pictures stay where they are until `content_of` reads them: a row has the place of each.
"""

import csv
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

_LARGEST_TEXT = 1 << 20
"""Bytes of a caption or of what else is said of a picture."""
_METADATA = ("metadata.jsonl", "metadata.csv")


class DataError(ValueError):
    """Data that cannot be used; the message is one line that names the place and says what to do."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some bytes of a file."""

    path: Path
    start: int = 0
    length: int = -1
    """-1 is up to the end."""


def content_of(value: Any) -> bytes:
    """The encoded picture in a row's column. Raises OSError or ValueError where there is none."""
    match value:
        case bytes():
            return value
        case Stretch(path, start, length):
            with path.open("rb") as file:
                file.seek(start)
                return file.read(length)
        case {"bytes": bytes(content)}:
            return content
        case {"path": str(name)}:
            return Path(name).read_bytes()
        case _:
            raise ValueError("is missing")


def shard_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a tar; what is no text is left in it. Raises DataError where it is none, or is cut off."""
    try:
        with tarfile.open(path, "r:") as archive:
            for _, members in groupby(filter(tarfile.TarInfo.isfile, archive), _key):
                yield {
                    column: value for member in members for column, value in _member(path, member, archive)
                }
            end = content_of(Stretch(path, archive.offset, tarfile.BLOCKSIZE))
        if end != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile takes one that is cut off for a shorter one
            raise DataError(f"{path} is cut off at byte {path.stat().st_size}; copy the shard again")
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} cannot be read as a tar ({told(error)}); write the shard again") from None


def _key(member: tarfile.TarInfo) -> str:
    """What the files of one row have in common: the name up to the first dot, with its folder."""
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _member(path: Path, member: tarfile.TarInfo, archive: tarfile.TarFile) -> Iterable[tuple[str, Any]]:
    extension = member.name.removeprefix(_key(member)).lstrip(".").lower()
    prefix, _, last = extension.rpartition(".")
    if f".{last}" in PICTURE_SUFFIXES:
        return [(prefix or "image", Stretch(path, member.offset_data, member.size))]
    file = archive.extractfile(member)
    if last not in ("txt", "json") or member.size > _LARGEST_TEXT or file is None:
        return []
    text = file.read().decode("utf-8", errors="replace")
    return _json_object(text).items() if last == "json" else [(extension, text)]


def _json_object(text: str) -> dict[str, Any]:
    """An object's keys as columns; nothing where it is none, which shows as what is missing then."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # also numbers and nesting beyond what Python reads
        return {}
    return value if isinstance(value, dict) else {}


def folder_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of its metadata files, or else its pictures, each with the text beside it."""
    metadata = sorted(file for file in folder.rglob("metadata.*") if file.name in _METADATA)
    for file in metadata:
        for values in _lines(file):
            yield _named(file.parent, values)
    if metadata:
        return
    for picture in sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES):
        caption = picture.with_suffix(".txt")
        text = caption.read_text(encoding="utf-8", errors="replace") if caption.exists() else None
        yield {"image": Stretch(picture), "text": text}


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        if file.suffix == ".csv":
            yield from _csv_rows(lines)
        else:
            yield from (_json_object(line) for line in lines if line.strip())


def _csv_rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file; one that cannot be read, such as of a column without end, has no columns."""
    reader = csv.DictReader(lines, restkey="")
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield {}


def _named(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metadata with the pictures it names, if they lie in its folder."""
    row: dict[str, Any] = {}
    for column, value in values.items():
        if column != "file_name" and not column.endswith("_file_name"):
            row[column] = value
        elif _lies_in(folder, picture := folder / str(value)):
            row[column.removesuffix("file_name").removesuffix("_") or "image"] = Stretch(picture)
    return row


def _lies_in(folder: Path, picture: Path) -> bool:
    try:
        return picture.resolve().is_relative_to(folder.resolve())
    except ValueError:  # no file has such a name: it holds a NUL, or half of a character
        return False


def told(error: Exception) -> str:
    """What an error of another library says, in a line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
