"""Captions of the shapes world: every caption is its own specification, and `parse(scene.text) == scene`.

Five categories mirror T2I-CompBench (arXiv 2307.06350): attribute, count, binding, spatial and complex.
Captions are held out by combination: when a pair of things is held out, so is every sentence about that pair,
in either order and in every category that speaks of pairs.
"""

import itertools
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Category = Literal["attribute", "count", "binding", "spatial", "complex"]
CATEGORIES: tuple[Category, ...] = ("attribute", "count", "binding", "spatial", "complex")

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")
COUNTS = {2: "two", 3: "three"}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

_PLURAL = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}
_HELD_OUT_PAIRS_PERCENT = 20


@dataclass(frozen=True, order=True, slots=True)
class Thing:
    """One object: a colour and a shape, and a size where the caption states one."""

    colour: str
    shape: str
    size: str | None = None

    @property
    def text(self) -> str:
        """The noun phrase, such as `a small red circle`."""
        return " ".join(word for word in ("a", self.size, self.colour, self.shape) if word)


@dataclass(frozen=True, slots=True)
class Scene:
    """What a caption says: one or two different things, or `count` copies of one, and how the two stand."""

    things: tuple[Thing, ...]
    count: int = 1
    relation: str | None = None

    @property
    def text(self) -> str:
        """The caption."""
        first = self.things[0]
        if self.count > 1:
            return f"{COUNTS[self.count]} {first.colour} {_PLURAL[first.shape]}"
        if len(self.things) == 1:
            return first.text
        return f"{first.text} {self.relation or 'and'} {self.things[1].text}"

    @property
    def category(self) -> Category:
        """The T2I-CompBench category that the caption mirrors."""
        if self.count > 1:
            return "count"
        if len(self.things) == 1:
            return "attribute"
        if self.relation is None:
            return "binding"
        return "complex" if self.things[0].size else "spatial"

    @property
    def combination(self) -> tuple[tuple[str, str], ...]:
        """The (colour, shape) pairs that the caption speaks of, sorted: the unit of the held-out split."""
        return tuple(sorted((thing.colour, thing.shape) for thing in self.things))


def parse(text: str) -> Scene:
    """Read a caption.

    Raises:
        ValueError: the text is not a caption of this world; the message says which words would be.
    """
    for pattern, build in _GRAMMAR:
        found = pattern.fullmatch(text.strip())
        if found:
            scene = build(found)
            if len(scene.things) == 1 or scene.things[0].colour != scene.things[1].colour:
                return scene
    raise ValueError(
        f"{text!r} is not a caption of the shapes world; say for example 'a small red circle', "
        f"'two blue squares' or 'a green cross above a cyan triangle' "
        f"(colours {', '.join(COLOURS)}; shapes {', '.join(SHAPES)})"
    )


def all_scenes(category: Category) -> Iterator[Scene]:
    """Every scene of a category, in a fixed order."""
    plain = [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]
    sized = [Thing(thing.colour, thing.shape, size) for thing in plain for size in SIZES]
    if category == "attribute":
        yield from (Scene((thing,)) for thing in plain + sized)
    elif category == "count":
        yield from (Scene((thing,), count=count) for thing in plain for count in COUNTS)
    elif category == "binding":
        yield from (Scene(pair) for pair in _pairs(plain))
    else:
        things = plain if category == "spatial" else sized
        yield from (Scene(pair, relation=relation) for pair in _pairs(things) for relation in RELATIONS)


def is_held_out(scene: Scene) -> bool:
    """Whether the scene belongs to the held-out split, decided by its combination alone.

    A quarter of the single (colour, shape) combinations are held out, each colour and each shape among them,
    and a fifth of the pairs.
    """
    if len(scene.things) == 1:
        thing = scene.things[0]
        return SHAPES.index(thing.shape) == COLOURS.index(thing.colour) % len(SHAPES)
    return zlib.crc32(repr(scene.combination).encode()) % 100 < _HELD_OUT_PAIRS_PERCENT


def _pairs(things: list[Thing]) -> Iterator[tuple[Thing, Thing]]:
    return ((a, b) for a, b in itertools.permutations(things, 2) if a.colour != b.colour)


def _any(words: tuple[str, ...]) -> str:
    return "(" + "|".join(words) + ")"


def _thing(found: re.Match[str], start: int) -> Thing:
    size, colour, shape = found.groups()[start : start + 3]
    return Thing(colour, shape, size or None)


_SINGULAR = {plural: shape for shape, plural in _PLURAL.items()}
_NUMBER = {word: count for count, word in COUNTS.items()}
_PLAIN = f"a()? {_any(COLOURS)} {_any(SHAPES)}"
_SIZED = f"a {_any(SIZES)} {_any(COLOURS)} {_any(SHAPES)}"
_GRAMMAR: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Scene]], ...] = (
    (re.compile(_PLAIN), lambda found: Scene((_thing(found, 0),))),
    (re.compile(_SIZED), lambda found: Scene((_thing(found, 0),))),
    (
        re.compile(f"{_any(tuple(_NUMBER))} {_any(COLOURS)} {_any(tuple(_SINGULAR))}"),
        lambda found: Scene((Thing(found[2], _SINGULAR[found[3]]),), count=_NUMBER[found[1]]),
    ),
    (re.compile(f"{_PLAIN} and {_PLAIN}"), lambda found: Scene((_thing(found, 0), _thing(found, 3)))),
    (
        re.compile(f"{_PLAIN} {_any(RELATIONS)} {_PLAIN}"),
        lambda found: Scene((_thing(found, 0), _thing(found, 4)), relation=found[4]),
    ),
    (
        re.compile(f"{_SIZED} {_any(RELATIONS)} {_SIZED}"),
        lambda found: Scene((_thing(found, 0), _thing(found, 4)), relation=found[4]),
    ),
)
