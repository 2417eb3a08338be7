"""The rule-based verifier of the shapes world: reads a picture back and says which parts of its caption hold.

A pixel's colour is the direction in which it leaves the background, so the blends of anti-aliased edges keep
their colour; the length of that step is how much of the pixel is covered. Connected components of one colour
are then compared with a bank of templates by soft intersection over union.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from reward_services.shapes.captions import SHAPES, Category, Scene, parse
from reward_services.shapes.render import BACKGROUND, IMAGE_SIZE, PALETTE, coverage

MIN_AREA = 12.0
"""A component smaller than this, in pixels, is noise; every larger one counts as a thing."""
MIN_OVERLAP = 0.70
"""Below this intersection over union with every template a component is no shape of this world."""
SIZE_EDGES = (4.45, 5.75)
"""Radii in pixels that separate small from unstated and unstated from large."""
MIN_DISTANCE = 3.0
"""Pixels by which centres must differ along the axis of a relation."""

_RADII = np.arange(3.0, 7.6, 0.35)
_PATCH = 19
_MIN_COVERED = 0.25


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing found in a picture."""

    colour: str
    shape: str | None
    """None when it resembles no shape of this world."""
    radius: float
    """In pixels."""
    centre: tuple[float, float]
    """(x, y) in pixels."""

    @property
    def size(self) -> str | None:
        """`small`, `large`, or None between the two."""
        small, large = SIZE_EDGES
        return "small" if self.radius < small else "large" if self.radius > large else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the whole caption holds, and which of its parts do."""

    correct: bool
    parts: dict[str, bool]
    category: Category


def verify(image: NDArray[np.uint8], text: str) -> Verdict:
    """Check a (32, 32, 3) uint8 picture against a caption.

    Raises:
        ValueError: the text is no caption of this world, or the picture has another shape or type.
    """
    scene = parse(text)
    seen = read(image)
    parts = _parts(scene, seen)
    return Verdict(correct=all(parts.values()), parts=parts, category=scene.category)


def read(image: NDArray[np.uint8]) -> list[Seen]:
    """Everything that stands in a (32, 32, 3) uint8 picture, in reading order of the palette."""
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"the verifier reads ({IMAGE_SIZE}, {IMAGE_SIZE}, 3) uint8, not {image.shape} {image.dtype}"
        )
    names, directions, lengths = _palette()
    step = image.astype(np.float32) - np.asarray(BACKGROUND, dtype=np.float32)
    norm = np.linalg.norm(step, axis=-1)
    cosine = np.einsum("hwc,nc->hwn", step, directions) / np.maximum(norm, 1e-6)[..., None]
    nearest = cosine.argmax(axis=-1)
    covered = np.clip(norm / lengths[nearest], 0, 1)
    seen: list[Seen] = []
    for index, name in enumerate(names):
        mask = (nearest == index) & (covered >= _MIN_COVERED)
        labels, count = ndimage.label(mask)
        for label in range(1, count + 1):
            alpha = np.where(labels == label, covered, 0).astype(np.float32)
            if alpha.sum() >= MIN_AREA:
                seen.append(_classify(name, alpha))
    return seen


def _parts(scene: Scene, seen: list[Seen]) -> dict[str, bool]:
    things = scene.things * scene.count
    parts = {
        "count": len(seen) == len(things),
        "colour": sorted(s.colour for s in seen) == sorted(t.colour for t in things),
        "shape": sorted(str(s.shape) for s in seen) == sorted(t.shape for t in things),
        "binding": sorted((s.colour, str(s.shape)) for s in seen)
        == sorted((t.colour, t.shape) for t in things),
    }
    if things[0].size is not None:
        by_colour = {s.colour: s.size for s in seen}
        parts["size"] = all(by_colour.get(t.colour) == t.size for t in things)
    if scene.relation is not None:
        parts["relation"] = _relation_holds(scene, seen)
    return parts


def _relation_holds(scene: Scene, seen: list[Seen]) -> bool:
    centres = {s.colour: s.centre for s in seen}
    first, second = (centres.get(thing.colour) for thing in scene.things)
    if first is None or second is None:
        return False
    dx, dy = second[0] - first[0], second[1] - first[1]
    along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[str(scene.relation)]
    across = abs(dy) if scene.relation in ("left of", "right of") else abs(dx)
    return along >= MIN_DISTANCE and along > across


@lru_cache(maxsize=1)
def _palette() -> tuple[list[str], NDArray[np.float32], NDArray[np.float32]]:
    steps = np.asarray(list(PALETTE.values()), dtype=np.float32) - np.asarray(BACKGROUND, dtype=np.float32)
    lengths = np.linalg.norm(steps, axis=1)
    return list(PALETTE), steps / lengths[:, None], lengths


@lru_cache(maxsize=1)
def _templates() -> tuple[list[tuple[str, float]], NDArray[np.float32]]:
    """Centred templates of every shape and radius at four sub-pixel places: labels and (N, patch * patch)."""
    labels: list[tuple[str, float]] = []
    rows: list[NDArray[np.float32]] = []
    middle = _PATCH / 2
    for shape, radius, dx, dy in itertools.product(SHAPES, _RADII, (0.0, 0.5), (0.0, 0.5)):
        share = coverage(shape, float(radius), (middle + dx, middle + dy), size=_PATCH)
        labels.append((shape, float(radius)))
        rows.append(_centred(share).ravel())
    return labels, np.stack(rows)


def _centred(alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """Move the bounding box to the upper left corner of a (patch, patch) array, cutting what does not fit."""
    ys, xs = np.nonzero(alpha > _MIN_COVERED)
    box = alpha[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1][:_PATCH, :_PATCH]
    patch = np.zeros((_PATCH, _PATCH), dtype=np.float32)
    patch[: box.shape[0], : box.shape[1]] = np.where(box > _MIN_COVERED, box, 0)
    return patch


def _classify(colour: str, alpha: NDArray[np.float32]) -> Seen:
    labels, templates = _templates()
    patch = _centred(alpha).ravel()
    overlap = np.minimum(templates, patch).sum(axis=1) / np.maximum(templates, patch).sum(axis=1)
    best = int(overlap.argmax())
    y, x = ndimage.center_of_mass(alpha)
    shape, radius = labels[best]
    return Seen(colour, shape if overlap[best] >= MIN_OVERLAP else None, radius, (float(x), float(y)))
