"""Prompt files, and the seeded stream of prompts that ranks share and a resumed run continues."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.data.order import Order, shuffled
from trainer.data.sources import Source, is_table, open_table
from trainer.records import Prompt

COLUMNS = ("prompt", "caption", "text")
"""Columns of a table in which prompts are looked for, in this order."""


class PromptFileError(ValueError):
    """A prompt file that cannot be used; the message is one line that names file, line and remedy."""


def read_prompts(source: str | Path) -> list[Prompt]:
    """The prompts of a .txt, .jsonl or .csv file, a folder of .txt or a table, in order; see `PromptsConfig`.

    Blank lines are skipped; further keys or columns are kept in `extra`. The prompts of each file of a folder
    are a category, named as the file without its ending: T2I-CompBench's layout.

    Raises:
        PromptFileError: a file of lines cannot be used.
        DataError: a table cannot be used.
    """
    path = Path(source)
    if categories := sorted(path.glob("*.txt")):
        rows = [row for file in categories for row in _read_category(file)]
    else:
        rows = list(_read_table(str(source)) if is_table(str(source)) else _read_file(path))
    if not rows:
        raise PromptFileError(f"{source}: holds no prompt; write one a line")
    return [Prompt(index, text, extra) for index, (text, extra) in enumerate(rows)]


_Row = tuple[str, dict[str, Any]]


def _read_table(text: str) -> Iterator[_Row]:
    source = Source.parse(text)
    table = open_table(source)
    wanted = (source.column,) if source.column else COLUMNS
    column = next((name for name in wanted if name in table.columns), None)
    if column is None:
        raise PromptFileError(f"{text}: has no column {' or '.join(wanted)}; write SOURCE#SPLIT:COLUMN")
    for number, values in enumerate(table.rows):
        said = {name: value for name, value in values.items() if isinstance(value, str | int | float)}
        yield _row(f"{text}, row {number}", {**said, "prompt": values.get(column)})


def _read_category(path: Path) -> Iterator[_Row]:
    return ((text, {"category": path.stem}) for text, _ in _read_file(path))


def _read_file(path: Path) -> Iterator[_Row]:
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".csv": _read_csv}
    if path.suffix not in readers:
        known = ", ".join([*readers, ".parquet"])
        raise PromptFileError(f"{path}: unknown kind of prompt file; use {known} or hf://USER/NAME@REVISION")
    try:
        # utf-8-sig: spreadsheets put a byte order mark before their UTF-8.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PromptFileError(
            f"{path}: cannot be read ({error.strerror}); check prompts in the config"
        ) from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise PromptFileError(f"{path}, line {line}: is not UTF-8; save the file as UTF-8") from None
    return readers[path.suffix](path, text)


def _read_txt(path: Path, text: str) -> Iterator[_Row]:
    for line in text.splitlines():
        if line.strip():
            yield line.strip(), {}


def _read_jsonl(path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _row(f"{path}, line {number}", _parse(f"{path}, line {number}", line))


def _parse(place: str, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptFileError(f'{place}: is not JSON ({error.msg}); write {{"prompt": "..."}}') from None
    if not isinstance(value, dict) or "prompt" not in value:
        raise PromptFileError(f'{place}: has no prompt; write {{"prompt": "..."}}')
    return value


def _read_csv(path: Path, text: str) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="")
    if text.strip() and "prompt" not in (reader.fieldnames or ()):
        raise PromptFileError(f"{path}, line 1: has no column prompt; name the columns in the first line")
    try:
        for record in reader:
            yield _row(f"{path}, line {reader.line_num}", dict(record))
    except csv.Error as error:
        line = reader.line_num + 1
        raise PromptFileError(f"{path}, line {line}: is not CSV ({error}); quote the field") from None


def _row(place: str, value: dict[str, Any]) -> _Row:
    text = value.pop("prompt")
    if not isinstance(text, str) or not text.strip():
        raise PromptFileError(
            f"{place}: the prompt is empty or not text; write a sentence or remove the line"
        )
    return text.strip(), value


class PromptStream:
    """Endless prompts: every epoch in a new seeded order, dealt to the ranks."""

    def __init__(self, prompts: Sequence[Prompt], *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self._prompts = list(prompts)
        self._order = Order(shuffled(len(self._prompts)), seed=seed, rank=rank, world_size=world_size)

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts of this rank."""
        return [self._prompts[self._order.row(position)] for position in self._order.take(count)]

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands; the same on every rank."""
        return self._order.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where a stream of the same prompts and seed stood, on any world size.

        Raises ValueError when the prompts or the seed are not those of the state.
        """
        self._order.load_state_dict(state)
