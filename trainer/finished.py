"""What is done with a finished model, a run folder or a diffusers folder: evaluate it, sample from it."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trainer.config import (
    ConfigError,
    ModelConfig,
    PromptsConfig,
    RewardsConfig,
    SamplingConfig,
    TrainConfig,
    load_config,
)
from trainer.config.file import checked
from trainer.data.prompts import read_prompts
from trainer.evaluation import EvaluationResult
from trainer.families.family import ModelError
from trainer.held_out import HeldOut, draw
from trainer.policy import Policy
from trainer.ranks import Ranks
from trainer.records import Prompt
from trainer.scoring import Scoring


def open_policy(model: Path, wanted: ModelConfig | None = None) -> Policy:
    """The sharpened policy of a run folder, or the model in a diffusers folder; on a GPU where there is one.

    Args:
        model: the folder, which says by itself where weights and adapters are.
        wanted: how it runs: number format, size of its pictures, without T5. None is as it was trained, or as
            is usual where no run trained it.

    Raises:
        ModelError: there is no model to be found.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings, pipeline, adapter = model / "config.yaml", model / "pipeline", model / "lora"
    if settings.exists() and not (pipeline.is_dir() or adapter.is_dir()):
        raise ModelError(f"{model} is an unfinished run; go on with `sharpen train {settings}`")
    if not model.exists() and len(model.parts) > 1 and model.parent.is_dir():
        # As an id it would be asked of the hub again and again where that cannot be reached.
        raise ModelError(
            f"{model} does not exist, though {model.parent} does; give a run or diffusers folder"
        )
    run = run_of(model)
    own = run.model if run else ModelConfig(path=str(model))
    how = wanted or own
    if run is None and how.path == own.path:
        own = how  # its revision holds
    if pipeline.is_dir():
        own = own.model_copy(update={"path": str(pipeline), "revision": None})
    how = how.model_copy(update={"path": own.path, "revision": own.revision, "lora": own.lora})
    adapts = run is not None and adapter.is_dir()
    return Policy.load(how, device, trainable=False, adapter=adapter if adapts else None)


@dataclass(frozen=True, slots=True)
class Draws:
    """How pictures are drawn; what is None is as in the run, or diffusers' usual."""

    pictures: int = 4
    """Pictures of each prompt."""
    seed: int = 0
    """Of the first picture; the next have the next ones."""
    steps: int | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        if self.pictures < 1 or (self.steps is not None and self.steps < 1):
            raise ValueError("--pictures and --steps must be 1 or more")
        if self.seed < 0:
            raise ValueError("--seed must be 0 or more: pictures are named by it")


def config_of(model: Path, config: Path | None, overrides: Sequence[str]) -> TrainConfig:
    """The settings to evaluate a model with: those given, or those of its run.

    Says which rows of the held-out prompts are left out.

    Raises:
        ConfigError: settings that cannot be used.
        ModelError: there are no settings.
        PromptFileError: the held-out prompts cannot be used.
    """
    own = model / "config.yaml"
    if config is None and not own.exists():
        raise ModelError(
            f"{model} is no run folder; say with --config which prompts and rewards to evaluate with"
        )
    chosen = load_config(config or own, overrides)
    if chosen.prompts.held_out is None:
        raise ConfigError("no prompts to evaluate on; add --set prompts.held_out=FILE")
    held_out = read_prompts(chosen.prompts.held_out, strict=chosen.prompts.strict)
    if held_out.left_out:
        sys.stderr.write(f"{held_out.report}\n")
    return chosen


def evaluate(policy: Policy, config: TrainConfig, scoring: Scoring) -> EvaluationResult:
    """Judge held-out pictures, plainly sampled: the same prompts and seeds as before and after a run.

    Raises:
        Halted: a reward or the judge gave no score at all.
    """
    return HeldOut(config, scoring, Ranks()).evaluate(policy, update=0).result


def run_of(model: Path) -> TrainConfig | None:
    """The settings of the run that a folder is of, if it is one."""
    own = model / "config.yaml"
    return load_config(own) if own.exists() else None


def sampling_of(run: TrainConfig | None, **wanted: float | None) -> SamplingConfig:
    """How a run draws pictures, or diffusers' usual, but for what is wanted otherwise. Raises ConfigError."""
    usual = run.sampling if run else SamplingConfig(steps=30)
    changed = {key: value for key, value in wanted.items() if value is not None}
    return checked(SamplingConfig, {**usual.model_dump(), **changed}, "sampling")


def searched_with(
    model: Path, run: TrainConfig | None, place: str | None, named: Sequence[str]
) -> TrainConfig:
    """Settings whose rewards judge a search: those of a run, or other rewards from another place.

    Args:
        model: what is searched with.
        run: its run, if it has one.
        place: a rewards.yaml, or an address; None takes the run's.
        named: NAME or NAME=WEIGHT of each reward; none takes the run's.

    Raises:
        ConfigError: it remains unknown which rewards judge, or where they are.
    """
    weights = {name: _weight(name, weight) for name, _, weight in (one.partition("=") for one in named)}
    own = run.rewards if run else RewardsConfig()
    if not own.names and (place is None or not weights):
        raise ConfigError(
            f"{model} has no rewards of a run; say with --rewards where rewards are and with --reward which "
            "judge"
        )
    chosen: dict[str, Any] = own.model_dump()
    if place is not None:
        chosen |= {"url": place, "services": None} if "://" in place else {"services": place, "url": None}
    judging = {"weights": weights or chosen["weights"], "judge": None, "shadows": ()}
    rewards = checked(RewardsConfig, {**chosen, **judging}, "rewards")
    if run is not None:
        return run.model_copy(update={"rewards": rewards})
    return TrainConfig(
        model=ModelConfig(path=str(model)), prompts=PromptsConfig(train="prompts.txt"), rewards=rewards
    )


def _weight(name: str, text: str) -> float:
    try:
        return float(text or 1.0)
    except ValueError:
        raise ConfigError(f"--reward {name}={text}: the weight must be a number") from None


def sample(model: Path, prompts: Sequence[str], *, folder: Path, draws: Draws) -> list[Path]:
    """Draw pictures of each prompt and write them as PNG files, NN-SEED.png.

    Prompts are numbered after those whose pictures the folder holds, so that none is lost.
    """
    policy = open_policy(model)
    sampling = sampling_of(run_of(model), steps=draws.steps, guidance=draws.guidance)
    seeds = range(draws.seed, draws.seed + draws.pictures)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, text in enumerate(prompts, start=_free_number(folder)):
        asked = [Prompt(index=number, text=text)] * draws.pictures
        images = draw(policy, asked, seeds, sampling)
        for seed, image in zip(seeds, images, strict=True):
            paths.append(folder / f"{number:02d}-{seed}.png")
            Image.fromarray(image).save(paths[-1])
    return paths


def _free_number(folder: Path) -> int:
    """The first from which no number of a prompt is taken."""
    taken = (re.fullmatch(r"(\d+)-\d+", path.stem) for path in folder.glob("*.png"))
    return 1 + max((int(found[1]) for found in taken if found), default=-1)
