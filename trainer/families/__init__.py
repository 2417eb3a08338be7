"""The kinds of diffusers pipeline that can be trained, each by the class that its model_index.json names."""

from trainer.families.family import Family
from trainer.families.flux import Flux
from trainer.families.sd import StableDiffusion
from trainer.families.sd3 import StableDiffusion3
from trainer.families.sdxl import StableDiffusionXL

FAMILIES: dict[str, type[Family]] = {
    family.pipeline_class.__name__: family
    for family in (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux)
}

__all__ = ["FAMILIES"]
