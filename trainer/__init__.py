"""Prompts in, better weights out: Diffusion-Sharpening on Ray, with rewards as services."""

from trainer.config import ConfigError, TrainConfig, load_config

__all__ = ["ConfigError", "TrainConfig", "load_config"]
