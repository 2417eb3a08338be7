"""What the embedded world's models learn from: scenes, and the mistakes of web captions.

Real text-to-image models learn from captions that are often wrong, so they can draw what is asked and do so
only sometimes. `mislabelled` makes such captions: it returns what a picture shows when its caption says
`scene`.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reward_services.shapes.captions import (
    CATEGORIES,
    OPPOSITE,
    Category,
    Scene,
    Thing,
    all_scenes,
    is_held_out,
)

CATEGORY_SHARES: dict[Category, float] = {
    "attribute": 0.12,
    "count": 0.16,
    "binding": 0.26,
    "spatial": 0.26,
    "complex": 0.20,
}
"""How often each category is drawn in pre-training: more often where more must be learnt."""

WRONG_COLOUR = {"red": 0.45, "yellow": 0.35, "green": 0.45, "cyan": 0.35, "blue": 0.45, "purple": 0.35}
"""Share of captions whose colour word stands on a picture of its partner's colour."""
COLOUR_PARTNER = {
    "red": "yellow",
    "yellow": "red",
    "green": "cyan",
    "cyan": "green",
    "blue": "purple",
    "purple": "blue",
}
WRONG_SHAPE = 0.05
SHAPE_PARTNER = {"circle": "square", "square": "circle", "triangle": "cross", "cross": "triangle"}
WRONG_COUNT = {2: 0.2, 3: 0.25}
WRONG_SIZE = 0.05
WRONG_RELATION = 0.05


@lru_cache(maxsize=16)
def split(category: Category, *, held_out: bool) -> tuple[Scene, ...]:
    """The scenes of a category in one half of the split."""
    return tuple(scene for scene in all_scenes(category) if is_held_out(scene) == held_out)


def random_scene(rng: np.random.Generator, *, held_out: bool = False, even: bool = False) -> Scene:
    """Draw a scene of one split; `even` gives every category the same share."""
    shares = None if even else list(CATEGORY_SHARES.values())
    scenes = split(CATEGORIES[rng.choice(len(CATEGORIES), p=shares)], held_out=held_out)
    return scenes[rng.integers(len(scenes))]


def mislabelled(scene: Scene, rng: np.random.Generator) -> Scene:
    """What a picture shows when its web caption says `scene`: right or systematically wrong, part by part."""
    things = tuple(_mislabelled_thing(thing, rng) for thing in scene.things)
    if len(things) == 2 and things[0].colour == things[1].colour:
        things = (things[0], Thing(scene.things[1].colour, things[1].shape, things[1].size))
    if len(things) == 2 and things[0].colour == things[1].colour:
        things = (Thing(scene.things[0].colour, things[0].shape, things[0].size), things[1])
    count, relation = scene.count, scene.relation
    if count > 1 and rng.random() < WRONG_COUNT[count]:
        count = 5 - count
    if relation is not None and rng.random() < WRONG_RELATION:
        relation = OPPOSITE[relation]
    return Scene(things, count, relation)


def pixels(images: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _mislabelled_thing(thing: Thing, rng: np.random.Generator) -> Thing:
    shape = SHAPE_PARTNER[thing.shape] if rng.random() < WRONG_SHAPE else thing.shape
    colour = COLOUR_PARTNER[thing.colour] if rng.random() < WRONG_COLOUR[thing.colour] else thing.colour
    size = thing.size
    if size is not None and rng.random() < WRONG_SIZE:
        size = "large" if size == "small" else "small"
    return Thing(colour, shape, size)
