"""Settings of a comparison: which methods, seeds and searches, and what they share."""

import json
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from trainer.config.file import ConfigError, Count, Section, Whole, load
from trainer.config.train import TrainConfig, load_config

Axis = Literal["training_s", "unet_evaluations", "images_scored"]


class SearchConfig(Section):
    """A search without training, on the model as it is."""

    method: str
    """best_of_n, zero_order, over_paths, demon or free2guide."""
    budget: Count
    """Evaluations of the denoiser for each picture."""
    prompts: Count = 96
    """Held-out prompts that are searched, evenly spread over the file."""


class CompareConfig(Section):
    """Runs of several methods on several seeds, equal but for what makes each method."""

    config: Path
    """The settings that all runs share, as `sharpen train` takes them."""
    share: dict[str, Any] = Field(default_factory=dict)
    """Settings of it that are changed for all runs: dotted keys, such as budget.training_s."""
    folder: Path = Path("runs/compare")
    """Where run folders and the comparison go."""
    seeds: tuple[Whole, ...] = Field((0, 1, 2), min_length=1)
    """Each method runs once on each."""
    parallel: Count = 1
    """Runs at a time; the cluster must have room for the ranks of all of them."""
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name of each method to the dotted settings that make it; null leaves one out."""
    searches: dict[str, SearchConfig] = Field(default_factory=dict)
    """Name of each search without training; null leaves one out."""

    @field_validator("methods", "searches", mode="before")
    @classmethod
    def _leave_out(cls, named: Any) -> Any:
        if not isinstance(named, dict):
            return named
        return {name: settings for name, settings in named.items() if settings is not None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {', '.join(map(str, self.seeds))} repeat one: name each once")
        if places := [name for name in (*self.methods, *self.searches) if "/" in name]:
            raise ValueError(f"{', '.join(places)}: a name is that of a folder: leave out each /")
        if twice := sorted({*self.methods} & {*self.searches}):
            raise ValueError(f"{', '.join(twice)} names a method and a search: call one otherwise")
        return self

    def run_config(self, name: str, seed: int) -> TrainConfig:
        """The settings of one run. Raises ConfigError."""
        changed = {
            **self.share,
            **self.methods[name],
            "seed": seed,
            "run_folder": str(self.place(name, seed)),
        }
        return load_config(self.config, [f"{key}={_yaml(value)}" for key, value in changed.items()])

    def place(self, name: str, seed: int) -> Path:
        """The folder of one run or search."""
        return self.folder / f"{name}-{seed}"


def load_comparison(path: Path, overrides: list[str]) -> CompareConfig:
    """Read a comparison and check the settings of every run in it. Raises ConfigError."""
    comparison = load(CompareConfig, path, overrides, _parts)
    configs = [comparison.run_config(name, comparison.seeds[0]) for name in comparison.methods]
    files = {str(config.rewards.services) for config in configs if config.rewards.services}
    if len(files) > 1:
        raise ConfigError(
            f"{path}: methods have their rewards from {' and '.join(sorted(files))}; "
            "runs of a comparison share what is served: name all rewards in one file"
        )
    return comparison


def _parts(dotted: str) -> list[str]:
    """A key of a comparison taken apart; settings of its runs stay whole, as in the file: share, a.b."""
    of_runs = re.fullmatch(r"(share|methods\.[^.]+)\.(.+)", dotted)
    return [*of_runs[1].split("."), of_runs[2]] if of_runs else dotted.split(".")


def _yaml(value: Any) -> str:
    return json.dumps(value)  # JSON is YAML
