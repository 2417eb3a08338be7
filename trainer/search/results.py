"""Searches prompts with rewards that are served, and writes what was found: pictures and search.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trainer.config import SamplingConfig
from trainer.path_integral import combine
from trainer.policy import Policy
from trainer.scoring import Scoring
from trainer.search import SEARCHES, Found, Searcher, check, search
from trainer.search.searcher import Judge

SEARCH_FILE = "search.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """How each prompt is searched."""

    method: str
    budget: int
    """Evaluations of the denoiser for one prompt; a guided step takes two."""
    sampling: SamplingConfig
    seed: int = 0
    """Of the first prompt; the next have the next ones."""

    def __post_init__(self) -> None:
        if self.method not in SEARCHES:
            raise ValueError(f"the search method is {self.method!r}; use one of {', '.join(SEARCHES)}")
        if self.budget < 1:
            raise ValueError("the budget must be 1 or more evaluations")

    def check(self, policy: Policy) -> None:
        """Raise ValueError where a model cannot be searched so."""
        check(self.method, policy, self.sampling, self.budget)


def judge_of(scoring: Scoring, weights: Mapping[str, float]) -> Judge:
    """The weighted sum of rewards, NaN where one of them failed."""

    def judge(pictures: NDArray[np.uint8], prompt: str) -> Tensor:
        answers = scoring.submit(pictures, [prompt] * len(pictures), list(weights))()
        values = {
            name: torch.tensor([score.value if score.value is not None else torch.nan for score in scores])
            for name, scores in answers.items()
        }
        return combine(values, weights)

    return judge


def search_prompts(policy: Policy, prompts: Sequence[str], judge: Judge, settings: Settings) -> list[Found]:
    """The best picture that was found for each prompt."""
    return [
        search(
            settings.method,
            Searcher(
                policy,
                judge,
                prompt,
                sampling=settings.sampling,
                budget=settings.budget,
                seed=settings.seed + number,
            ),
        )
        for number, prompt in enumerate(prompts)
    ]


def write_results(
    folder: Path,
    prompts: Sequence[str],
    found: Sequence[Found],
    settings: Settings,
    *,
    rewards: int,
    figures: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write NN.png of each prompt, then search.json, whole or not at all; returns the paths.

    Args:
        folder: where to.
        prompts: what was searched.
        found: what came of it.
        settings: how.
        rewards: how many rewards judged each picture.
        figures: what else search.json says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:02d}.png" for number in range(len(prompts))]
    entries: list[dict[str, Any]] = []
    for prompt, one, path in zip(prompts, found, paths, strict=True):
        Image.fromarray(one.picture).save(path)
        entries.append(
            {
                "prompt": prompt,
                "picture": path.name,
                "score": one.score,
                "evaluations": one.evaluations,
                "reward_calls": one.pictures_judged * rewards,
                "best_scores": one.best_scores,
            }
        )
    result = folder / SEARCH_FILE
    about = {"method": settings.method, "budget": settings.budget, "seed": settings.seed}
    sampling = settings.sampling.model_dump(mode="json")
    partial = result.with_suffix(".partial")
    told = {**about, **(figures or {}), "sampling": sampling, "found": entries}
    partial.write_text(json.dumps(told, indent=2), encoding="utf-8")
    partial.replace(result)
    return [*paths, result]
