"""GenEval (Ghosh et al., arXiv 2310.11513): 1 where a picture holds what its prompt asks for, else 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from reward_services.errors import ConfigInvalid, ImageInvalid, PromptInvalid
from reward_services.geneval.colours import ColourNamer
from reward_services.geneval.detector import DETECTOR_FILES, Detector
from reward_services.geneval.rules import Found, Task, is_right, read_tasks
from reward_services.images import to_array
from reward_services.schema import Score
from reward_services.scorers.clip_features import CLIP_FILES
from reward_services.scorers.placement import Placement
from reward_services.scorers.scorer import Pixels, Scorer, finite_score
from reward_services.scorers.weights import digest, local_folder, matching


@dataclass(frozen=True, slots=True, eq=False)
class Depicted:
    """A picture, what it must hold, and the detector's input."""

    task: Task
    picture: NDArray[np.uint8]
    pixels: Tensor


class GenevalScorer(Scorer[Depicted, float]):
    """Scores the prompts of GenEval's metadata file, and no others: a detector, CLIP for colours, rules.

    Raises:
        ConfigInvalid: a model or the metadata cannot be used, or asks for what the detector cannot see.
    """

    score_range: ClassVar[tuple[float | None, float | None]] = (0.0, 1.0)

    def __init__(
        self,
        metadata: str,
        *,
        detector: str,
        detector_revision: str | None = None,
        clip: str,
        clip_revision: str | None = None,
        **placement: Unpack[Placement],
    ) -> None:
        seen = local_folder(detector, detector_revision, DETECTOR_FILES, option="detector")
        colours = local_folder(clip, clip_revision, CLIP_FILES, option="clip")
        self._tasks = read_tasks(Path(metadata))
        self._detector = Detector(seen, **placement)
        self._colours = ColourNamer(colours, **placement)
        wanted = {name for task in self._tasks.values() for name in task.classes}
        if unseen := sorted(wanted - self._detector.classes):
            raise ConfigInvalid(
                f"{metadata} asks for {', '.join(unseen)}, which {detector} was not trained to see"
            )
        files = [*matching(seen, DETECTOR_FILES), *matching(colours, CLIP_FILES), Path(metadata)]
        self.revision = digest(files, f"geneval/{self._detector.dtype}")

    def golden(self) -> tuple[Pixels, str]:
        """A fixed picture for the first of the prompts."""
        picture, _ = super().golden()
        return picture, next(iter(self._tasks))

    def prepare(self, image: Pixels, prompt: str) -> Depicted:
        """Look up what is asked for; raises `PromptInvalid` for a prompt that the metadata has not."""
        task = self._tasks.get(prompt)
        if task is None:
            raise PromptInvalid("GenEval has no task of this prompt; score those of its metadata file")
        picture = to_array(image)
        return Depicted(task, picture, self._detector.prepare(picture))

    def run(self, items: Sequence[Depicted]) -> list[float]:
        """The verdicts on a batch."""
        sizes = [(item.picture.shape[0], item.picture.shape[1]) for item in items]
        everything = self._detector.find([item.pixels for item in items], sizes)
        return [self._verdict(item, found) for item, found in zip(items, everything, strict=True)]

    def finish(self, raw: float) -> Score:
        """The verdict as a score."""
        return finite_score(raw)

    def _verdict(self, item: Depicted, found: Sequence[Found]) -> float:
        try:
            return float(is_right(item.task, found, partial(self._colours.name, item.picture)))
        except ImageInvalid as error:  # an object as thin as a line; a RewardError would fail the whole batch
            raise ValueError(error.detail) from error
