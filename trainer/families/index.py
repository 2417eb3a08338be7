"""Which kind a model is: what its model_index.json says, in a folder or on the hub."""

import re
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from trainer.config import ModelConfig
from trainer.families import FAMILIES
from trainer.families.family import Family, ModelError

_INDEX = "model_index.json"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def check_model(config: ModelConfig) -> type[Family]:
    """The kind of a model, from its model_index.json alone, which is fetched for an id on the hub.

    Raises:
        ModelError: there is no such model, it is of a kind that cannot be trained here, or it needs its T5.
    """
    name = _index(config)["_class_name"]
    if name not in FAMILIES:
        raise ModelError(f"{config.path} holds a {name}; give as model.path one of {', '.join(FAMILIES)}")
    kind = FAMILIES[name]
    if not (config.t5 or kind.t5):
        raise ModelError(
            f"{config.path} holds a {name}, which has no T5 that it can do without; leave out model.t5"
        )
    return kind


def load_options(kind: type[Family], config: ModelConfig) -> dict[str, Any]:
    """What `from_pretrained` is told of a model of a kind, besides path, revision and number type.

    diffusers saves a pipeline that has no T5, and loads it again only if it is told so.

    Raises:
        ModelError: there is no such model.
    """
    index = _index(config)
    left_out = [part for part in kind.t5 if not config.t5 or not any(index.get(part) or ())]
    return {**kind.load_options, **dict.fromkeys(left_out)}


def _index(config: ModelConfig) -> dict[str, Any]:
    folder = Path(config.path)
    if folder.exists() and not (folder / _INDEX).is_file():
        raise ModelError(
            f"{folder} has no {_INDEX}; model.path must be a folder that diffusers' save_pretrained wrote"
        )
    if not (folder.exists() or _HUB_ID.fullmatch(config.path)):
        raise ModelError(
            f"model.path {config.path!r} does not exist; give a folder that diffusers' save_pretrained wrote "
            "or the id of a model on the hub"
        )
    try:
        index: Any = DiffusionPipeline.load_config(config.path, revision=config.revision)
    except OSError as error:  # also where it is not JSON
        raise not_there(config.path, error) from error
    if not (isinstance(index, dict) and isinstance(index.get("_class_name"), str)):
        raise ModelError(
            f"the {_INDEX} of {config.path} names no pipeline class as _class_name; "
            "fetch the model again, or write it anew with diffusers' save_pretrained"
        )
    return index


def not_there(path: str, error: Exception) -> ModelError:
    """Why a model could not be loaded, in a line."""
    return ModelError(
        f"cannot load model.path {path!r}; give a folder that diffusers' save_pretrained wrote "
        f"or the id of a model on the hub, reachable from here ({' '.join(str(error).split())})"
    )
