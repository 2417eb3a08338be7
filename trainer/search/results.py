"""Searches prompts with rewards that are served, and keeps what is found: pictures and search.json.

What is found is kept prompt by prompt, in search.partial.json: a search that was broken off goes on there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from trainer.config import ConfigError, SamplingConfig
from trainer.path_integral import combine
from trainer.policy import Policy
from trainer.scoring import Scoring
from trainer.search import SEARCHES, Found, Searcher, check, search
from trainer.search.searcher import Judge
from trainer.written import write_whole

SEARCH_FILE = "search.json"
_PARTIAL_FILE = "search.partial.json"
"""The same of the prompts that were searched so far."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is searched, and how."""

    model: str
    method: str
    budget: int
    """Evaluations of the denoiser for one prompt; a guided step takes two."""
    sampling: SamplingConfig
    weights: Mapping[str, float]
    """Of the rewards that judge, by name."""
    prompts: Sequence[str]
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

    def as_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            **{key: getattr(self, key) for key in ("model", "method", "budget", "seed")},
            "weights": dict(self.weights),
            "sampling": self.sampling.model_dump(mode="json"),
            "prompts": list(self.prompts),
        }


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


class SearchFolder:
    """Where pictures and search.json of a search go."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._path, self._settings = path, settings
        self._result, self._partial = path / SEARCH_FILE, path / _PARTIAL_FILE

    def check(self) -> None:
        """Raise ConfigError where another search was finished, or broken off, here."""
        asked = self._settings.as_json()
        for file in filter(Path.exists, (self._result, self._partial)):
            earlier = json.loads(file.read_text(encoding="utf-8"))
            if differing := [key for key, value in asked.items() if earlier.get(key, value) != value]:
                raise ConfigError(
                    f"{self._path} holds a search with other settings ({', '.join(differing)}); remove it, "
                    "or choose another folder"
                )

    def search(self, policy: Policy, scoring: Scoring) -> Iterator[Found]:
        """The best picture found for each prompt; those of a search that was broken off come first."""
        asked, entries = self._settings, self._entries()
        yield from map(self._read, entries)
        self._path.mkdir(parents=True, exist_ok=True)
        judge = judge_of(scoring, asked.weights)
        for number, prompt in list(enumerate(asked.prompts))[len(entries) :]:
            searcher = Searcher(
                policy, judge, prompt, sampling=asked.sampling, budget=asked.budget, seed=asked.seed + number
            )
            found = search(asked.method, searcher)
            picture = f"{number:02d}.png"
            Image.fromarray(found.picture).save(self._path / picture)
            entries.append(
                {
                    "prompt": prompt,
                    "picture": picture,
                    "score": found.score,
                    "evaluations": found.evaluations,
                    "reward_calls": found.pictures_judged * len(asked.weights),
                    "best_scores": found.best_scores,
                }
            )
            self._write(self._partial, entries)
            yield found

    def finish(self, figures: Mapping[str, Any] | None = None) -> list[Path]:
        """Write search.json once all is found, with further figures; returns the pictures' paths and its."""
        entries = self._entries()
        self._write(self._result, entries, figures)
        self._partial.unlink()
        return [*(self._path / entry["picture"] for entry in entries), self._result]

    def _entries(self) -> list[dict[str, Any]]:
        kept = json.loads(self._partial.read_text(encoding="utf-8")) if self._partial.exists() else {}
        entries: list[dict[str, Any]] = kept.get("found", [])
        return entries

    def _write(
        self, file: Path, entries: Sequence[Mapping[str, Any]], figures: Mapping[str, Any] | None = None
    ) -> None:
        said = {**self._settings.as_json(), **(figures or {}), "found": entries}
        write_whole(file, json.dumps(said, indent=2))

    def _read(self, entry: Mapping[str, Any]) -> Found:
        picture = np.asarray(Image.open(self._path / entry["picture"]))
        judged = entry["reward_calls"] // len(self._settings.weights)
        return Found(picture, entry["score"], entry["evaluations"], judged, tuple(entry["best_scores"]))
