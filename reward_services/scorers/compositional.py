"""Composition-aware reward: the mean of several models in ImageReward's format, one for each aspect.

IterComp (Zhang et al., arXiv 2410.07171) trains one each for attribute binding, spatial and non-spatial
relations, and weighs the three alike. Its authors published none of them: there is no default model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reward_services.errors import ConfigInvalid
from reward_services.options import Dtype
from reward_services.schema import Score
from reward_services.scorers.image_reward import ImageRewardItem, ImageRewardScorer
from reward_services.scorers.scorer import Pixels, Scorer, finite_score
from reward_services.scorers.weights import digest


class CompositionalScorer(Scorer[tuple[ImageRewardItem, ...], tuple[float, ...]]):
    """Several ImageRewards by name: a score is their mean, and its `parts` are theirs.

    `models` are what `ImageRewardScorer` takes, `revisions` those of hub models. `weights`, if any, are
    positive, one for each model; only their ratios matter.

    Raises:
        ConfigInvalid: as `ImageRewardScorer`; or the models take images of different sizes.
    """

    def __init__(
        self,
        models: Mapping[str, str],
        *,
        weights: Mapping[str, float] | None = None,
        revisions: Mapping[str, str] | None = None,
        device: str = "auto",
        dtype: Dtype = "float32",
    ) -> None:
        weights, revisions = weights or dict.fromkeys(models, 1.0), revisions or {}
        self._weights = {name: float(weights[name]) for name in models}
        self._scorers = [
            ImageRewardScorer(model, revision=revisions.get(name), device=device, dtype=dtype)
            for name, model in models.items()
        ]
        sides = {name: scorer.side for name, scorer in zip(models, self._scorers, strict=True)}
        if len(set(sides.values())) != 1:
            raise ConfigInvalid(
                f"the models take images of different sizes, in pixels: {sides}; separate them"
            )
        made_of = [scorer.revision for scorer in self._scorers]
        self.revision = digest((), f"{self._weights}/{made_of}")

    def prepare(self, image: Pixels, prompt: str) -> tuple[ImageRewardItem, ...]:
        """The input of each model: cropped once, tokenised by each."""
        first = self._scorers[0].prepare(image, prompt)
        return first, *(scorer.prepare(first.pixels, prompt) for scorer in self._scorers[1:])

    def run(self, items: Sequence[tuple[ImageRewardItem, ...]]) -> list[tuple[float, ...]]:
        """The scores of each item by each model."""
        columns = zip(*items, strict=True)
        by_model = [scorer.run(column) for scorer, column in zip(self._scorers, columns, strict=True)]
        return list(zip(*by_model, strict=True))

    def finish(self, raw: tuple[float, ...]) -> Score:
        """The weighted mean, and its parts; one NaN among them is a failure."""
        parts = dict(zip(self._weights, raw, strict=True))
        total = sum(weight * parts[name] for name, weight in self._weights.items())
        return finite_score(total / sum(self._weights.values()), parts)
