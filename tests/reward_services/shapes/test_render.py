"""What is drawn: the right places, sizes and colours, the same picture for the same seed."""

import numpy as np
import pytest

from reward_services.shapes.captions import (
    CATEGORIES,
    COLOURS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    Category,
    Scene,
    Thing,
    all_scenes,
)
from reward_services.shapes.render import BACKGROUND, IMAGE_SIZE, PALETTE, RADII, coverage, render

AREAS = {
    "circle": np.pi,
    "square": (2 * 0.88) ** 2,
    # From its tip at y = -1 to its foot at y = 0.85 the width grows from 0 to 2.
    "triangle": 1.85,
    # Two bars of 2 by 0.68 that share a square of 0.68.
    "cross": 2 * 2 * 0.68 - 0.68**2,
}
"""Area of each shape of radius 1."""


def draw(scene: Scene, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return render(scene, np.random.default_rng(seed))


def test_the_colours_and_shapes_of_captions_can_be_drawn() -> None:
    assert set(PALETTE) == set(COLOURS)
    assert set(AREAS) == set(SHAPES)


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_is_the_area_of_the_shape(shape: str) -> None:
    share = coverage(shape, 6.0, (16.3, 15.1))
    assert share.shape == (IMAGE_SIZE, IMAGE_SIZE)
    assert share.min() == 0
    assert share.max() == 1
    assert share.sum() == pytest.approx(AREAS[shape] * 36, rel=0.03)


def test_coverage_follows_its_centre() -> None:
    share = coverage("circle", 5.0, (10.0, 20.0))
    y, x = (float((axis * share).sum() / share.sum()) for axis in np.indices(share.shape) + 0.5)
    assert (x, y) == pytest.approx((10.0, 20.0), abs=0.05)


def test_a_triangle_points_up() -> None:
    widths = coverage("triangle", 6.0, (16.0, 16.0)).sum(axis=1)
    rows = np.flatnonzero(widths)
    assert widths[rows[0]] < widths[rows[-1]]


def test_edges_are_blends_of_thing_and_background() -> None:
    picture = draw(Scene((Thing("yellow", "circle"),)), 0).astype(float)
    step = np.asarray(PALETTE["yellow"]) - np.asarray(BACKGROUND)
    away = picture - np.asarray(BACKGROUND)
    share = away @ step / (step @ step)
    assert ((share > 0.1) & (share < 0.9)).any()
    assert np.abs(away - share[..., None] * step).max() <= 1


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_same_seed_draws_the_same_picture(category: Category) -> None:
    scene = next(all_scenes(category))
    picture = draw(scene, 3)
    assert picture.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert picture.dtype == np.uint8
    assert (draw(scene, 3) == picture).all()
    assert (draw(scene, 4) != picture).any()


@pytest.mark.parametrize("size", RADII)
def test_a_size_is_a_range_of_radii(size: str | None) -> None:
    smallest, largest = RADII[size]
    for seed in range(10):
        step = np.asarray(PALETTE["red"], dtype=float) - BACKGROUND
        away = draw(Scene((Thing("red", "circle", size),)), seed) - np.asarray(BACKGROUND, dtype=float)
        radius = np.sqrt((away @ step / (step @ step)).sum() / np.pi)
        assert smallest - 0.1 < radius < largest + 0.1


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_is_the_larger_distance(relation: str) -> None:
    for seed in range(10):
        picture = draw(Scene((Thing("red", "circle"), Thing("cyan", "cross")), relation=relation), seed)
        red, cyan = (centre(picture, colour) for colour in ("red", "cyan"))
        dx, dy = cyan - red
        signed = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}
        assert max(signed, key=lambda name: signed[name]) == relation
        assert signed[relation] == -signed[OPPOSITE[relation]]


def centre(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], colour: str) -> np.ndarray:
    """(x, y) of the pixels that are exactly of this colour."""
    y, x = np.nonzero((picture == PALETTE[colour]).all(axis=-1))
    return np.array([x.mean(), y.mean()])


def test_three_copies_always_find_room() -> None:
    for seed in range(200):
        draw(Scene((Thing("green", "square"),), count=3), seed)


def test_what_finds_no_room_says_so() -> None:
    with pytest.raises(RuntimeError, match="found no room for 'a large red circle and "):
        render(Scene((Thing("red", "circle", "large"),) * 9), np.random.default_rng(0))
