"""Prompts in, better weights out: Diffusion-Sharpening on Ray, with rewards as services."""

import logging

from trainer.config import ConfigError, TrainConfig, load_config

__all__ = ["ConfigError", "TrainConfig", "load_config"]

# peft and diffusers import it where it is installed; on some CPUs it then asks for a kernel of 4-bit weights,
# which nothing here has.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
