"""Renders a scene of the shapes world: 32 x 32 RGB, 4 x 4 times supersampled, on a dark background.

The background is dark because an anti-aliased edge then keeps the direction of its colour, which is what the
verifier reads.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward_services.shapes.captions import Scene, Thing

IMAGE_SIZE = 32
BACKGROUND = (18, 18, 22)
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (230, 50, 50),
    "green": (60, 190, 70),
    "blue": (65, 95, 240),
    "yellow": (240, 215, 60),
    "purple": (175, 70, 215),
    "cyan": (70, 210, 225),
}
RADII: dict[str | None, tuple[float, float]] = {"small": (3.5, 4.1), None: (4.8, 5.3), "large": (6.2, 6.8)}
"""Range of the radius in pixels for each stated size."""
DOMINANCE = 1.5
"""In a stated relation the distance along its axis exceeds the distance across it by this factor."""

Coordinates = NDArray[np.floating[Any]]

_SUPERSAMPLING = 4
_GAP = 2.5
_GAP_BETWEEN_COPIES = 4.0
_MARGIN = 0.5
_TRIES = 2000


def coverage(
    shape: str, radius: float, centre: tuple[float, float], size: int = IMAGE_SIZE
) -> NDArray[np.float32]:
    """Share of each pixel that the shape covers: (size, size) in [0, 1]; centre is (x, y) in pixels."""
    n = size * _SUPERSAMPLING
    axis = (np.arange(n, dtype=np.float32) + 0.5) / _SUPERSAMPLING
    x = (axis[None, :] - centre[0]) / radius
    y = (axis[:, None] - centre[1]) / radius
    inside = _inside(shape, x, y).reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING)
    return np.asarray(inside.mean(axis=(1, 3)), dtype=np.float32)


def render(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw the scene at random places and radii that satisfy it: (32, 32, 3) uint8."""
    things = scene.things * scene.count
    radii = [float(rng.uniform(*RADII[thing.size])) for thing in things]
    centres = _place(scene, radii, rng)
    picture = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
    picture[:] = BACKGROUND
    for thing, radius, centre in zip(things, radii, centres, strict=True):
        _draw(picture, thing, radius, centre)
    return np.asarray(np.rint(picture), dtype=np.uint8)


def _inside(shape: str, x: Coordinates, y: Coordinates) -> NDArray[np.bool_]:
    if shape == "circle":
        return np.asarray(x**2 + y**2 <= 1)
    if shape == "square":
        return np.asarray(np.maximum(abs(x), abs(y)) <= 0.88)
    if shape == "triangle":
        return np.asarray((y <= 0.85) & (y >= -1 + 1.85 * abs(x)))
    arm = 0.34
    near, far = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
    return np.asarray((near <= arm) & (far <= 1))


def _draw(picture: NDArray[np.float32], thing: Thing, radius: float, centre: tuple[float, float]) -> None:
    share = coverage(thing.shape, radius, centre)[..., None]
    picture += share * (np.asarray(PALETTE[thing.colour], dtype=np.float32) - picture)


def _place(scene: Scene, radii: list[float], rng: np.random.Generator) -> list[tuple[float, float]]:
    gap = _GAP_BETWEEN_COPIES if scene.count > 1 else _GAP
    for _ in range(_TRIES):
        centres = [
            (
                float(rng.uniform(r + _MARGIN, IMAGE_SIZE - r - _MARGIN)),
                float(rng.uniform(r + _MARGIN, IMAGE_SIZE - r - _MARGIN)),
            )
            for r in radii
        ]
        if _apart(centres, radii, gap) and _related(scene.relation, centres):
            return centres
    raise RuntimeError(f"found no room for {scene.text!r} in {_TRIES} tries")


def _apart(centres: list[tuple[float, float]], radii: list[float], gap: float) -> bool:
    placed = list(zip(centres, radii, strict=True))
    return all(
        max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= ra + rb + gap / 2
        or np.hypot(a[0] - b[0], a[1] - b[1]) >= 1.25 * (ra + rb) + gap
        for i, (a, ra) in enumerate(placed)
        for b, rb in placed[:i]
    )


def _related(relation: str | None, centres: list[tuple[float, float]]) -> bool:
    if relation is None:
        return True
    (ax, ay), (bx, by) = centres
    along = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}[relation]
    across = abs(ay - by) if relation in ("left of", "right of") else abs(ax - bx)
    return along >= DOMINANCE * across and along > 0
