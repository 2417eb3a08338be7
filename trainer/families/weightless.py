"""A model without its weights: its tensors are on the meta device, where they have shapes and no memory.

Only configuration files and tokenizers are read, from a folder or the hub.
"""

import importlib
import inspect
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from torch import nn

from trainer.config import ModelConfig
from trainer.families.family import Family
from trainer.families.index import load_options


def load_weightless(kind: type[Family], config: ModelConfig) -> Family:
    """The family of a model whose networks have no weights.

    Raises:
        ModelError: the model has no pictures of this size, or its scheduler is of another kind.
        OSError: a configuration file is missing.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    index = DiffusionPipeline.load_config(config.path, revision=config.revision)
    options = load_options(kind, config)
    networks = {
        name: network
        for name, entry in index.items()
        if isinstance(entry, list | tuple) and name not in options
        if (network := _network(config, name, *entry)) is not None
    }
    pipeline = kind.pipeline_class.from_pretrained(
        config.path, revision=config.revision, **networks, **options
    )
    return kind(pipeline, config.image_size)


def _network(config: ModelConfig, name: str, library: str | None, class_name: str | None) -> nn.Module | None:
    """One part of a pipeline, if it is a network."""
    of_part: Any = getattr(importlib.import_module(library), class_name) if library and class_name else None
    if not _is_network(of_part):
        return None
    where = {"subfolder": name, "revision": config.revision}
    if library == "diffusers":
        settings = of_part.load_config(config.path, **where)
    else:
        settings = of_part.config_class.from_pretrained(config.path, **where)
    with torch.device("meta"):
        network: nn.Module = of_part.from_config(settings) if library == "diffusers" else of_part(settings)
    return network.to(getattr(torch, config.dtype)).eval()


def _is_network(part: Any) -> bool:
    return inspect.isclass(part) and issubclass(part, nn.Module)
