"""The two halves of a CLIP or SigLIP: pictures and prompts to features of unit length, for their cosine.

N images of a batch, U different prompts, L tokens, S side of the model's input in pixels, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from reward_services.errors import ConfigInvalid
from reward_services.scorers.placement import Placement, placed
from reward_services.scorers.preprocessing import CLIP_MEAN, CLIP_STD, normalised
from reward_services.scorers.weights import check_weights, read_json, read_weights

TokenIds = tuple[int, ...]
"""Token ids without padding, the end-of-text token last."""

PROCESSOR_FILES = (
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
"""What decides how pictures and prompts become numbers."""
CLIP_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    *PROCESSOR_FILES,
)
"""All of a CLIPModel folder that is read."""

_LOAD_ERRORS = (
    OSError,
    ImportError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    StrictDataclassError,
)
_INDEX_BUFFER = "embeddings.position_ids"


class Family(NamedTuple):
    """A kind of model, as config.json calls it, and its classes in transformers."""

    model_type: str
    config: Any
    model: Any


CLIP = Family("clip", CLIPConfig, CLIPModel)
SIGLIP = Family("siglip", SiglipConfig, SiglipModel)


class Architecture(NamedTuple):
    """What a model is made of: its configuration, and the names and shapes of its weights."""

    family: Family
    config: Any
    shapes: Mapping[str, torch.Size]


class ImageTower:
    """The vision half of a model; `folder` states its normalisation, or CLIP's own is meant."""

    def __init__(self, model: Any, folder: Path, **placement: Unpack[Placement]) -> None:
        self.device, self.dtype = placed(**placement)
        self.side: int = model.config.vision_config.image_size
        self.projection = _projection(model, "visual_projection").to(self.device, self.dtype)
        self._transformer = model.vision_model.to(self.device, self.dtype)
        path = folder / "preprocessor_config.json"
        stated = read_json(path) if path.is_file() else {}
        self._mean = torch.tensor(stated.get("image_mean", CLIP_MEAN), device=self.device)
        self._std = torch.tensor(stated.get("image_std", CLIP_STD), device=self.device)

    def features(self, pictures: Sequence[NDArray[Any]]) -> Tensor:
        """(N, D) features of N pictures (S, S, 3): uint8, or floats of 0 to 1."""
        pixels_NSS3 = torch.from_numpy(np.stack(pictures)).to(self.device)
        normal = normalised(pixels_NSS3, self._mean, self._std).to(self.dtype)
        return _unit(self.projection(self._transformer(pixel_values=normal).pooler_output))


class TextTower:
    """The text half of a model, with the tokenizer in `folder`.

    Prompts pass through `clean` first. Those beyond the model's positions are cut, their end-of-text kept.
    """

    def __init__(
        self,
        model: Any,
        folder: Path,
        *,
        clean: Callable[[str], str] = str,
        **placement: Unpack[Placement],
    ) -> None:
        self.device, self.dtype = placed(**placement)
        self.projection = _projection(model, "text_projection").to(self.device, self.dtype)
        self._transformer = model.text_model.to(self.device, self.dtype)
        self._positions: int = model.config.text_config.max_position_embeddings
        self._tokenizer = _tokenizer(folder, model.config.text_config.vocab_size)
        # SigLIP's attention is not causal and it was trained on prompts padded to all of its positions.
        self._padding = self._tokenizer.pad_token_id if model.config.model_type == "siglip" else None
        self._clean = clean
        self.token_ids = lru_cache(maxsize=8192)(self._tokenised)

    def features(self, prompts: Sequence[TokenIds]) -> Tensor:
        """(N, D) features of N prompts; equal ones are encoded once."""
        different = list(dict.fromkeys(prompts))
        row = {token_ids: index for index, token_ids in enumerate(different)}
        rows_N = torch.tensor([row[token_ids] for token_ids in prompts], device=self.device)
        return self._features(different)[rows_N]

    def _features(self, prompts: Sequence[TokenIds]) -> Tensor:
        longest = self._positions if self._padding is not None else max(len(ids) for ids in prompts)
        # CLIP's attention is causal and the feature is read at the first end-of-text token: what pads after
        # it changes nothing.
        fill = [ids[-1] if self._padding is None else self._padding for ids in prompts]
        padded = [[*ids, *[pad] * (longest - len(ids))] for ids, pad in zip(prompts, fill, strict=True)]
        ids_UL = torch.tensor(padded, device=self.device)
        return _unit(self.projection(self._transformer(input_ids=ids_UL).pooler_output))

    def _tokenised(self, prompt: str) -> TokenIds:
        cut = self._tokenizer(self._clean(prompt), truncation=True, max_length=self._positions)
        return tuple(cut["input_ids"])


def read_architecture(folder: Path, families: Sequence[Family] = (CLIP,)) -> Architecture:
    """What the config.json of a folder describes; raises `ConfigInvalid` when that is none of `families`."""
    path = folder / "config.json"
    kinds = {family.model_type: family for family in families}
    if not path.is_file():
        raise ConfigInvalid(
            f"{folder} has no config.json; name a folder that CLIPModel.save_pretrained wrote"
        )
    stated = read_json(path)
    family = kinds.get(str(stated.get("model_type")))
    if family is None:
        raise ConfigInvalid(f"{path} does not describe a {' or '.join(kinds)} model; name one that does")
    try:
        config = family.config.from_dict(stated)
        with torch.device("meta"):
            weights = family.model(config).state_dict()
    except _LOAD_ERRORS as error:
        raise ConfigInvalid(f"{path} cannot be used: {_said(error)}") from error
    return Architecture(family, config, {name: weight.shape for name, weight in weights.items()})


def load_clip(folder: Path, families: Sequence[Family] = (CLIP,)) -> Any:
    """The float32 model of a folder; raises `ConfigInvalid` unless every weight is there and fits."""
    architecture = read_architecture(folder, families)
    index = folder / "model.safetensors.index.json"
    names = sorted(set(read_json(index).get("weight_map", {}).values())) if index.is_file() else []
    weights: dict[str, Tensor] = {}
    for name in names or ["model.safetensors"]:
        weights |= read_weights(folder / name)
    # A buffer that transformers wrote into checkpoints before version 4.31.
    kept = {key: value for key, value in weights.items() if not key.endswith(_INDEX_BUFFER)}
    check_weights(kept, architecture.shapes, folder)
    return clip_of(architecture, kept)


def clip_of(architecture: Architecture, weights: Mapping[str, Tensor]) -> Any:
    """The float32 model of weights that `check_weights` has found complete."""
    model = architecture.family.model.from_pretrained(
        None, config=architecture.config, state_dict=dict(weights), dtype=torch.float32
    )
    return model.eval().requires_grad_(False)


def _projection(model: Any, name: str) -> Any:
    """A CLIP's linear map to the common space; SigLIP's halves end there already."""
    return getattr(model, name, torch.nn.Identity())


def _tokenizer(folder: Path, vocabulary: int) -> Any:
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except _LOAD_ERRORS as error:
        raise ConfigInvalid(f"{folder} holds no tokenizer that can be read: {_said(error)}") from error
    if len(tokenizer) > vocabulary:
        raise ConfigInvalid(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model {vocabulary}; "
            "name the processor that the model was trained with"
        )
    return tokenizer


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
