"""Captioned pictures and preference pairs: seeded streams that ranks share and a resumed run continues.

A row that cannot be used is left out and counted, or with `data.strict` refused. What captions say, and where
it is needed the pictures' headers, is known before the first row is taken; a picture that breaks while it is
decoded gives its place to the next row of the epoch: every position has one row, whoever reads it.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from trainer.config.data import DataConfig
from trainer.data.files import DataError
from trainer.data.order import Order, grouped, shuffled
from trainer.data.pictures import Size, nearest, resolutions
from trainer.data.rows import ImageText, Rows, picture_problem


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two pictures of one prompt, of the same size, of which somebody preferred the first."""

    prompt: str
    chosen: ImageText
    rejected: ImageText


Item = TypeVar("Item", ImageText, PreferencePair)


class PairStream(ABC, Generic[Item]):
    """Endless items of a source: every epoch in a new seeded order, dealt to the ranks like prompts."""

    pictures: ClassVar[int]
    """How many of a row make an item."""

    def __init__(
        self,
        rows: Rows,
        sizes: Sequence[Size],
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int = 1,
    ) -> None:
        """A stream from its beginning.

        Args:
            rows: what it is made of.
            sizes: from `picture_sizes`.
            seed: of the order, and of random crops.
            rank, world_size: which share is this process's.
            micro_batch: items that have one size, where there are several.

        Raises:
            DataError: the rows hold captioned pictures where preferences are wanted, or the other way round.
        """
        if rows.pictures != self.pictures:
            raise DataError(
                f"{rows.name} holds {rows.pictures} pictures a row, {self.pictures} are wanted; "
                "preferences have image_chosen and image_rejected, Pick-a-Pic's columns, or two data.pictures"
            )
        self.rows = rows
        """What it is made of."""
        self._sizes, self._seed, self._micro_batch = sizes, seed, micro_batch
        self._kinds = [0] * len(rows.usable)
        arrange = shuffled(len(rows.usable))
        if len(sizes) > 1:
            self._kinds = _buckets(rows.sizes(), sizes, micro_batch)
            arrange = grouped(self._kinds, micro_batch)
        self._order = Order(arrange, seed=seed, rank=rank, world_size=world_size)

    @property
    def left_out(self) -> frozenset[int]:
        """Rows that were left out so far: those known to all ranks at once, and those that this one met."""
        return frozenset(self.rows.left_out)

    def take(self, count: int) -> list[Item]:
        """The next `count` items of this rank; with buckets each micro-batch of them has one size.

        Raises:
            ValueError: with buckets, `count` is no multiple of the micro-batch.
            DataError: a row cannot be used and rows must all be good, or none can be used any more.
        """
        if len(self._sizes) > 1 and count % self._micro_batch:
            raise ValueError(f"{count} items are no whole micro-batches of {self._micro_batch}")
        return [self._item(position) for position in self._order.take(count)]

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands; the same on every rank."""
        return self._order.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where a stream of the same data and seed stood, on any world size.

        Raises ValueError when the data or the seed are not those of the state.
        """
        self._order.load_state_dict(state)

    @abstractmethod
    def _made(self, pictures: Sequence[ImageText]) -> Item:
        """A row's pictures as an item."""

    def _item(self, position: int) -> Item:
        kind = self._kinds[self._order.row(position)]
        for place in self._order.onward(position):
            row = self.rows.usable[place]
            if self._kinds[place] != kind or row in self.rows.left_out:
                continue
            try:
                return self._made(self.rows.read(row, self._sizes[kind], f"{self._seed}/{position}"))
            except (OSError, ValueError) as error:
                self.rows.leave_out(row, picture_problem(error))
        raise DataError(f"{self.rows.report}; none is left that can be used")


class ImageTextStream(PairStream[ImageText]):
    """Captioned pictures."""

    pictures = 1

    def _made(self, pictures: Sequence[ImageText]) -> ImageText:
        return pictures[0]


class PreferenceStream(PairStream[PreferencePair]):
    """Preference pairs."""

    pictures = 2

    def _made(self, pictures: Sequence[ImageText]) -> PreferencePair:
        chosen, rejected = pictures
        return PreferencePair(chosen.prompt, chosen, rejected)


def picture_sizes(config: DataConfig, side: int, step: int) -> list[Size]:
    """The sizes at which pictures are learned: the square one, or with buckets SDXL's resolutions.

    Args:
        config: whether there are buckets.
        side: of the model's pictures.
        step: pixels of which it draws multiples.
    """
    return resolutions(side, step) if config.buckets else [(side, side)]


def _buckets(of_rows: Sequence[Size], sizes: Sequence[Size], least: int) -> list[int]:
    """Which of the sizes each row gets: the nearest, of those that at least so many rows get."""
    counts = Counter(of_rows)
    kept = list(range(len(sizes)))
    while True:
        nearest_to = {size: kept[nearest(size, [sizes[kind] for kind in kept])] for size in counts}
        members = Counter(dict.fromkeys(kept, 0))
        for size, count in counts.items():
            members[nearest_to[size]] += count
        rarest = min(kept, key=lambda kind: members[kind])
        if members[rarest] >= least or len(kept) == 1:
            return [nearest_to[size] for size in of_rows]
        kept.remove(rarest)
