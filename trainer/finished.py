"""What is done with a finished model: evaluate it, sample from it. A model is a run folder or a diffusers folder."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from trainer.config import ModelConfig, TrainConfig, load_config
from trainer.evaluation import EvaluationResult
from trainer.held_out import HeldOut, draw
from trainer.policy import ModelError, Policy
from trainer.ranks import Ranks
from trainer.records import Prompt
from trainer.scoring import Scoring


def open_policy(model: Path) -> Policy:
    """The sharpened policy of a run folder, or the model in a diffusers folder.

    Raises:
        ModelError: there is no model to be found.
    """
    if (model / "pipeline").is_dir():
        return Policy.load(ModelConfig(path=str(model / "pipeline")), trainable=False)
    if (model / "lora").is_dir():
        base = load_config(model / "config.yaml").model
        return Policy.load(base, trainable=False, adapter=model / "lora")
    if (model / "config.yaml").exists():
        raise ModelError(f"{model} is an unfinished run; go on with `sharpen train {model / 'config.yaml'}`")
    return Policy.load(ModelConfig(path=str(model)), trainable=False)


def config_of(model: Path, config: Path | None, overrides: Sequence[str]) -> TrainConfig:
    """The settings to evaluate a model with: those given, or those of its run."""
    own = model / "config.yaml"
    if config is None and not own.exists():
        raise ModelError(f"{model} is no run folder; say with --config which prompts and rewards to evaluate with")
    return load_config(config or own, overrides)


def evaluate(model: Path, config: TrainConfig, scoring: Scoring) -> EvaluationResult:
    """Judge held-out pictures, plainly sampled: the same prompts and seeds as before and after a run."""
    return HeldOut(config, scoring, Ranks()).evaluate(open_policy(model), update=0).result


def sample(
    model: Path,
    prompts: Sequence[str],
    *,
    folder: Path,
    pictures: int = 4,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
) -> list[Path]:
    """Draw pictures and write them as PNG files; steps and guidance default to those of the run."""
    own = model / "config.yaml"
    defaults = load_config(own).sampling if own.exists() else None
    steps = steps or (defaults.steps if defaults else 30)
    guidance = guidance if guidance is not None else (defaults.guidance if defaults else 5.0)
    policy = open_policy(model)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, text in enumerate(prompts):
        asked = [Prompt(index=number, text=text)] * pictures
        images, _ = draw(policy, asked, range(seed, seed + pictures), steps=steps, guidance=guidance)
        for place, image in enumerate(images):
            paths.append(folder / f"{number:02d}-{seed + place}.png")
            Image.fromarray(image).save(paths[-1])
    return paths
