"""The verifier accepts what was drawn to a caption and refuses whatever differs from it in one respect."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from reward_services.shapes.captions import (
    CATEGORIES,
    COLOURS,
    OPPOSITE,
    SHAPES,
    SIZES,
    Category,
    Scene,
    Thing,
    all_scenes,
)
from reward_services.shapes.render import BACKGROUND, render
from reward_services.shapes.verify import read, verify

SCENES = {category: tuple(all_scenes(category)) for category in CATEGORIES}
Picture = NDArray[np.uint8]


def some_scenes(category: Category, count: int, rng: np.random.Generator) -> list[Scene]:
    return [SCENES[category][index] for index in rng.integers(len(SCENES[category]), size=count)]


@pytest.mark.parametrize("category", CATEGORIES)
def test_clean_renders_are_accepted(category: Category) -> None:
    rng = np.random.default_rng(1)
    scenes = some_scenes(category, 300, rng)
    verdicts = [verify(render(scene, rng), scene.text) for scene in scenes]
    assert np.mean([verdict.correct for verdict in verdicts]) >= 0.99
    assert {verdict.category for verdict in verdicts} == {category}
    assert all(verdict.correct == all(verdict.parts.values()) for verdict in verdicts)


def swapped_colours(scene: Scene) -> Scene | None:
    if len(scene.things) == 1 or scene.things[0].shape == scene.things[1].shape:
        return None
    a, b = scene.things
    return replace(scene, things=(replace(a, colour=b.colour), replace(b, colour=a.colour)))


def flipped_relation(scene: Scene) -> Scene | None:
    return replace(scene, relation=OPPOSITE[scene.relation]) if scene.relation else None


def other_axis(scene: Scene) -> Scene | None:
    turned = {"left of": "above", "right of": "below", "above": "left of", "below": "right of"}
    return replace(scene, relation=turned[scene.relation]) if scene.relation else None


def one_colour(scene: Scene) -> Scene:
    taken = {thing.colour for thing in scene.things}
    other = next(colour for colour in COLOURS if colour not in taken)
    return replace(scene, things=(replace(scene.things[0], colour=other), *scene.things[1:]))


def one_shape(scene: Scene) -> Scene:
    *before, last = scene.things
    other = SHAPES[(SHAPES.index(last.shape) + 1) % len(SHAPES)]
    return replace(scene, things=(*before, replace(last, shape=other)))


def one_size(scene: Scene) -> Scene | None:
    *before, last = scene.things
    if last.size is None:
        return None
    other = SIZES[1 - SIZES.index(last.size)]
    return replace(scene, things=(*before, replace(last, size=other)))


def other_count(scene: Scene) -> Scene | None:
    return replace(scene, count=5 - scene.count) if scene.count > 1 else None


def extra_thing(scene: Scene) -> Scene | None:
    """One more small thing of a colour that the caption does not name."""
    if scene.relation or scene.count > 1:
        return None
    taken = {thing.colour for thing in scene.things}
    other = next(colour for colour in COLOURS if colour not in taken)
    return replace(scene, things=(*scene.things, Thing(other, "circle", "small")))


def extra_copy(scene: Scene) -> Scene | None:
    return replace(scene, count=2) if scene.category == "attribute" else None


WRONG: dict[Callable[[Scene], Scene | None], str] = {
    swapped_colours: "binding",
    flipped_relation: "relation",
    other_axis: "relation",
    one_colour: "colour",
    one_shape: "shape",
    one_size: "size",
    other_count: "count",
    extra_thing: "count",
    extra_copy: "count",
}
"""Each way to be wrong and the part of the verdict that must say so."""


def wrong_pictures(change: Callable[[Scene], Scene | None], count: int) -> Iterator[tuple[Picture, str]]:
    rng = np.random.default_rng(2)
    for category in CATEGORIES:
        for scene in some_scenes(category, count, rng):
            changed = change(scene)
            if changed is not None:
                yield render(changed, rng), scene.text


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_minimally_wrong_pictures_are_refused(change: Callable[[Scene], Scene | None]) -> None:
    pictures = list(wrong_pictures(change, 40))
    assert len(pictures) >= 25
    verdicts = [verify(picture, caption) for picture, caption in pictures]
    assert [caption for verdict, (_, caption) in zip(verdicts, pictures) if verdict.correct] == []
    assert all(not verdict.parts[WRONG[change]] for verdict in verdicts)


def test_parts_say_what_is_wrong() -> None:
    rng = np.random.default_rng(3)
    picture = render(Scene((Thing("red", "circle"), Thing("blue", "cross")), relation="above"), rng)
    all_hold = dict.fromkeys(("count", "colour", "shape", "binding", "relation"), True)
    assert verify(picture, "a red circle above a blue cross").parts == all_hold
    assert verify(picture, "a red circle below a blue cross").parts == {**all_hold, "relation": False}
    swapped = {**all_hold, "binding": False, "relation": False}
    assert verify(picture, "a blue circle above a red cross").parts == swapped
    assert verify(picture, "a blue cross and a red circle").correct
    lonely = verify(picture, "a red circle").parts
    assert not any(lonely.values())


def test_a_relation_with_a_missing_thing_does_not_hold() -> None:
    picture = render(Scene((Thing("red", "circle"),)), np.random.default_rng(0))
    assert not verify(picture, "a red circle above a blue cross").parts["relation"]


def test_an_empty_picture_shows_nothing() -> None:
    empty = np.broadcast_to(np.asarray(BACKGROUND, np.uint8), (32, 32, 3))
    assert read(empty) == []
    assert not verify(empty, "a red circle").correct


def test_read_gives_place_and_size() -> None:
    for seed in range(10):
        (seen,) = read(render(Scene((Thing("purple", "square", "large"),)), np.random.default_rng(seed)))
        assert (seen.colour, seen.shape, seen.size) == ("purple", "square", "large")
        assert seen.radius == pytest.approx(6.5, abs=0.5)
        assert all(6 < place < 26 for place in seen.centre)


@pytest.mark.parametrize(("deviation", "accepted"), [(6, 0.98), (12, 0.95)])
def test_noise_is_forgiven(deviation: float, accepted: float) -> None:
    rng = np.random.default_rng(4)
    scenes = [scene for category in CATEGORIES for scene in some_scenes(category, 60, rng)]
    noisy = [render(scene, rng) + rng.normal(scale=deviation, size=(32, 32, 3)) for scene in scenes]
    pictures = [picture.clip(0, 255).astype(np.uint8) for picture in noisy]
    correct = [verify(picture, scene.text).correct for picture, scene in zip(pictures, scenes)]
    assert np.mean(correct) >= accepted


def test_a_speck_is_no_thing() -> None:
    picture = render(Scene((Thing("red", "circle"),)), np.random.default_rng(0))
    corner = picture.copy()
    corner[:3, :3] = (65, 95, 240)
    assert verify(corner, "a red circle").correct
    corner[:5, :5] = (65, 95, 240)
    assert not verify(corner, "a red circle").correct


def test_a_colour_without_a_shape_is_no_shape() -> None:
    stripe = np.broadcast_to(np.asarray(BACKGROUND, np.uint8), (32, 32, 3)).copy()
    stripe[15:17] = (230, 50, 50)
    assert [seen.shape for seen in read(stripe)] == [None]


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((32, 32), np.uint8),
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((32, 32, 3), np.float32),
    ],
)
def test_another_shape_or_type_is_refused(picture: Picture) -> None:
    with pytest.raises(ValueError, match=r"the verifier reads \(32, 32, 3\) uint8, not \("):
        verify(picture, "a red circle")


def test_another_text_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a caption of the shapes world; say for example"):
        verify(np.zeros((32, 32, 3), np.uint8), "a photo of a cat")
