"""Statistics of pictures, on pictures whose values are known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.statistics import colour_entropy, dark_share, edge_density, image_statistics


def plain(value: int, side: int = 8) -> NDArray[np.uint8]:
    return np.full((side, side, 3), value, np.uint8)


def halves(side: int = 8) -> NDArray[np.uint8]:
    """Black on the left, white on the right."""
    picture = plain(0, side)
    picture[:, side // 2 :] = 255
    return picture


def test_dark_is_what_is_nearly_black() -> None:
    assert [dark_share(picture) for picture in (plain(0), plain(31), plain(33), halves())] == [1, 1, 0, 0.5]
    blue = plain(0)
    blue[..., 2] = 255
    assert dark_share(blue) == 1, "full blue has a luma of 29"


def test_edges_lie_between_pixels() -> None:
    # Of 7 x 7 pixels that have a neighbour on the right and below, one column is on the edge.
    assert edge_density(halves()) == pytest.approx(7 / 49)
    assert edge_density(halves().transpose(1, 0, 2)) == pytest.approx(7 / 49)
    assert edge_density(plain(77)) == 0
    board = np.indices((8, 8)).sum(0) % 2 * 255
    assert edge_density(np.repeat(board[..., None], 3, 2).astype(np.uint8)) == 1


def test_entropy_counts_colours() -> None:
    assert colour_entropy(plain(200)) == 0
    assert colour_entropy(halves()) == pytest.approx(1)
    every = np.stack(np.meshgrid(*[np.arange(0, 256, 32)] * 3, indexing="ij"), -1).reshape(16, 32, 3)
    assert colour_entropy(every.astype(np.uint8)) == pytest.approx(9)


def test_large_pictures_are_shrunk_and_tell_the_same() -> None:
    small, large = image_statistics([halves(256), halves(1024)])["colour_entropy"]
    assert large == pytest.approx(small, abs=0.05)
    of_each = image_statistics([halves(), plain(0), plain(255)])
    assert {name: len(values) for name, values in of_each.items()} == {
        "dark_share": 3,
        "edge_density": 3,
        "colour_entropy": 3,
    }
