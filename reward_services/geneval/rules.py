"""GenEval's rules: what was found in a picture against what its prompt asks for. No model, no pixels.

Ghosh et al. (arXiv 2310.11513) and github.com/djghosh13/geneval, evaluation/evaluate_images.py. A prompt is a
line of its evaluation_metadata.jsonl; boxes are (left, top, right, bottom) in pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from reward_services.errors import ConfigInvalid

Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]
COLOURS: tuple[Colour, ...] = get_args(Colour)
CONFIDENCE, COUNTING_CONFIDENCE = 0.3, 0.9
"""Below it nothing was found; prompts that ask for a number want to be surer of each."""
MOST_OBJECTS = 16
"""Of a class in one picture."""
_NEAR, _SLANT = 0.1, 0.5
"""Share of both sizes within which places do not differ, and of the distance that makes a direction."""

Place = Literal["left of", "right of", "above", "below"]


class Clause(BaseModel):
    """So many objects of a class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    class_name: str = Field(alias="class")
    count: int = Field(ge=1)


class Wanted(Clause):
    """What must be there."""

    color: Colour | None = None
    position: tuple[Place, int] | None = None
    """Where it is, seen from the objects of the clause of that number."""


class Task(BaseModel):
    """A prompt and what its picture must hold."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    tag: str
    include: tuple[Wanted, ...]
    exclude: tuple[Clause, ...] = ()
    """What must not be there, in such numbers or more."""

    @property
    def confidence(self) -> float:
        """How sure the detector must be of an object."""
        return COUNTING_CONFIDENCE if self.tag == "counting" else CONFIDENCE

    @property
    def classes(self) -> set[str]:
        """All that are spoken of."""
        return {clause.class_name for clause in (*self.include, *self.exclude)}


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """An object that a detector sees."""

    class_name: str
    confidence: float
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_]
    """(H, W) the pixels that are its own."""


Colouring = Callable[[str, Sequence[Found]], Sequence[str]]
"""A class and objects of it to their colours, each of `COLOURS`."""


def read_tasks(path: Path) -> dict[str, Task]:
    """The tasks of an evaluation_metadata.jsonl, by prompt.

    Raises:
        ConfigInvalid: the file cannot be read, or a line of it is no task; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"cannot read {path} ({type(error).__name__}); name GenEval's metadata") from None
    tasks = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            task = _read(line, f"{path}, line {number}")
            tasks[task.prompt] = task
    if not tasks:
        raise ConfigInvalid(f"{path} holds no task; name GenEval's evaluation_metadata.jsonl")
    return tasks


def is_right(task: Task, found: Sequence[Found], colours_of: Colouring) -> bool:
    """Whether a picture holds all that its prompt wants and nothing that it does not.

    Colours and places are those of the objects that the detector is surest of, as many as are wanted.
    """
    seen = _surest(found, task.confidence)
    groups: list[Sequence[Found]] = []
    for clause in task.include:
        objects = seen.get(clause.class_name, [])[: clause.count]
        if not _holds(clause, objects, groups, colours_of):
            return False
        groups.append(objects)
    return all(len(seen.get(clause.class_name, [])) < clause.count for clause in task.exclude)


def places(box: Sequence[float], other: Sequence[float]) -> set[str]:
    """Where a box lies, seen from another: none, one or two of left of, right of, above, below.

    Centres must be further apart than a tenth of both boxes' sizes, and what is beyond that more than half of
    the distance between the centres.
    """
    offsets = [(box[axis] + box[axis + 2] - other[axis] - other[axis + 2]) / 2 for axis in (0, 1)]
    sizes = [box[axis + 2] - box[axis] + other[axis + 2] - other[axis] for axis in (0, 1)]
    beyond = [max(abs(offset) - _NEAR * size, 0.0) for offset, size in zip(offsets, sizes, strict=True)]
    if max(beyond) < 1e-3:
        return set()
    names = (("left of", "right of"), ("above", "below"))
    distance = math.hypot(*offsets)
    return {names[axis][offsets[axis] > 0] for axis in (0, 1) if beyond[axis] / distance > _SLANT}


def _holds(
    clause: Wanted, objects: Sequence[Found], groups: Sequence[Sequence[Found]], colours_of: Colouring
) -> bool:
    if len(objects) < clause.count:
        return False
    if clause.color is not None and set(colours_of(clause.class_name, objects)) != {clause.color}:
        return False
    if clause.position is None:
        return True
    place, group = clause.position
    return all(place in places(one.box, other.box) for one in objects for other in groups[group])


def _surest(found: Sequence[Found], confidence: float) -> Mapping[str, list[Found]]:
    seen: dict[str, list[Found]] = {}
    for one in sorted(found, key=lambda one: -one.confidence):
        if one.confidence > confidence and len(seen.setdefault(one.class_name, [])) < MOST_OBJECTS:
            seen[one.class_name].append(one)
    return seen


def _read(line: str, place: str) -> Task:
    try:
        task = Task.model_validate(json.loads(line))
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigInvalid(f"{place} is no task of GenEval: {reason}") from None
    for number, clause in enumerate(task.include):
        if clause.position is not None and not 0 <= clause.position[1] < number:
            raise ConfigInvalid(
                f"{place}: a position is seen from an earlier clause, not {clause.position[1]}"
            )
    return task
