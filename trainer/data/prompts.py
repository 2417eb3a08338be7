"""Prompt files, and the seeded stream of prompts that ranks share and a resumed run continues."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from trainer.data.files import DataError
from trainer.data.left_out import LeftOut, text_problem
from trainer.data.order import Order, shuffled
from trainer.data.sources import Source, is_table, open_table
from trainer.records import Prompt

COLUMNS = ("prompt", "caption", "text")
"""Columns of a table in which prompts are looked for, in this order."""


class PromptFileError(DataError):
    """A prompt file that cannot be used; the message is one line that names file, line and remedy."""


class Prompts(list[Prompt]):
    """The prompts of a source in order, and the rows of it that have none."""

    def __init__(self, source: str, *, strict: bool) -> None:
        super().__init__()
        self.left_out = LeftOut(source, strict)

    @property
    def report(self) -> str:
        """How many rows were left out, and why."""
        return self.left_out.report(len(self) + len(self.left_out))


def read_prompts(source: str | Path, *, strict: bool = False) -> Prompts:
    """The prompts of a .txt, .jsonl or .csv file, a folder of .txt or a table; see `PromptsConfig`.

    Blank lines are skipped; further keys or columns are kept in `extra`. The prompts of each file of a folder
    are a category, named as the file without its ending: T2I-CompBench's layout.

    Args:
        source: what is read.
        strict: whether a row without a prompt is refused; otherwise it is left out.

    Raises:
        PromptFileError: a file of lines cannot be used, or no row of the source can.
        DataError: a table, or with `strict` a row, cannot be used.
    """
    path, text = Path(source), str(source)
    if categories := sorted(path.glob("*.txt")):
        rows: Iterable[_Row] = chain.from_iterable(map(_read_category, categories))
    else:
        rows = _read_table(text) if is_table(text) else _read_file(path)
    prompts = Prompts(text, strict=strict)
    for index, (place, values) in enumerate(rows):
        if isinstance(values, str):
            prompts.left_out.add(index, place, values)
        else:
            prompts.append(Prompt(index, values.pop("prompt").strip(), values))
    if prompts:
        return prompts
    if prompts.left_out:
        raise PromptFileError(f"{prompts.report}; none can be used")
    raise PromptFileError(f"{source}: holds no prompt; write one a line")


def evenly(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """So many prompts from evenly all over: files of benchmarks are in the order of their categories."""
    return [prompts[index * len(prompts) // count] for index in range(count)]


_Row = tuple[str, dict[str, Any] | str]
"""Where a row is, and its columns, among them a prompt, or else what is wrong with it."""


def _read_table(text: str) -> Iterator[_Row]:
    source = Source.parse(text)
    table = open_table(source)
    wanted = (source.column,) if source.column else COLUMNS
    column = next((name for name in wanted if name in table.columns), None)
    if column is None:
        raise PromptFileError(f"{text}: has no column {' or '.join(wanted)}; write SOURCE#SPLIT:COLUMN")
    for number, values in enumerate(table.rows):
        said = {name: value for name, value in values.items() if isinstance(value, str | int | float)}
        yield f"row {number}", _checked({**said, "prompt": values.get(column)})


def _read_category(path: Path) -> Iterator[_Row]:
    for place, values in _read_file(path):
        yield (
            f"{path.name}, {place}",
            {**values, "category": path.stem} if isinstance(values, dict) else values,
        )


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


def _read_txt(_path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"line {number}", {"prompt": line}


def _read_jsonl(_path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _parsed(line)


def _parsed(line: str) -> dict[str, Any] | str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"text is not JSON ({str(error).partition(':')[0]})"
    return _checked(value) if isinstance(value, dict) else 'text is not like {"prompt": "..."}'


def _read_csv(path: Path, text: str) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="")
    if text.strip() and "prompt" not in (reader.fieldnames or ()):
        raise PromptFileError(f"{path}, line 1: has no column prompt; name the columns in the first line")
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            yield f"line {reader.line_num}", f"text is not CSV ({error})"
            continue
        if values is None:
            return
        yield f"line {reader.line_num}", _checked(values)


def _checked(values: dict[str, Any]) -> dict[str, Any] | str:
    """A row's columns, or what is wrong with its prompt."""
    return text_problem("prompt", values.get("prompt")) or values


class PromptStream:
    """Endless prompts: every epoch in a new seeded order, dealt to the ranks."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        left_out: Iterable[int] = (),
    ) -> None:
        self._prompts = list(prompts)
        self.left_out = frozenset(left_out)
        """Rows of the source that have no prompt, as all ranks know."""
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
