"""The two halves of a CLIP: pictures and prompts to features of unit length, whose product is the cosine.

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
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

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

_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, StrictDataclassError)
_INDEX_BUFFER = "embeddings.position_ids"


class Architecture(NamedTuple):
    """What a `CLIPModel` is made of: its `CLIPConfig`, and the names and shapes of its weights."""

    config: Any
    shapes: Mapping[str, torch.Size]


class ImageTower:
    """The vision half of a `CLIPModel`; `folder` states its normalisation, or CLIP's own is meant."""

    def __init__(self, model: Any, folder: Path, **placement: Unpack[Placement]) -> None:
        self.device, self.dtype = placed(**placement)
        self.side: int = model.config.vision_config.image_size
        self.projection = model.visual_projection.to(self.device, self.dtype)
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
    """The text half of a `CLIPModel`, with the tokenizer in `folder`.

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
        self.projection = model.text_projection.to(self.device, self.dtype)
        self._transformer = model.text_model.to(self.device, self.dtype)
        self._positions: int = model.config.text_config.max_position_embeddings
        self._tokenizer = _tokenizer(folder, model.config.text_config.vocab_size)
        self._clean = clean
        self.token_ids = lru_cache(maxsize=8192)(self._tokenised)

    def features(self, prompts: Sequence[TokenIds]) -> Tensor:
        """(N, D) features of N prompts; equal ones are encoded once."""
        different = list(dict.fromkeys(prompts))
        row = {token_ids: index for index, token_ids in enumerate(different)}
        rows_N = torch.tensor([row[token_ids] for token_ids in prompts], device=self.device)
        return self._features(different)[rows_N]

    def _features(self, prompts: Sequence[TokenIds]) -> Tensor:
        longest = max(len(ids) for ids in prompts)
        # Text attention is causal and the feature is read at the first end-of-text token: what pads after it
        # changes nothing.
        ids_UL = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in prompts]).to(self.device)
        return _unit(self.projection(self._transformer(input_ids=ids_UL).pooler_output))

    def _tokenised(self, prompt: str) -> TokenIds:
        cut = self._tokenizer(self._clean(prompt), truncation=True, max_length=self._positions)
        return tuple(cut["input_ids"])


def read_architecture(folder: Path) -> Architecture:
    """What the config.json of a folder describes; raises `ConfigInvalid` when that is no CLIP."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigInvalid(
            f"{folder} has no config.json; name a folder that CLIPModel.save_pretrained wrote"
        )
    stated = read_json(path)
    if stated.get("model_type") != "clip":
        raise ConfigInvalid(f"{path} does not describe a CLIP model (model_type: clip)")
    try:
        config = CLIPConfig.from_dict(stated)
        with torch.device("meta"):
            weights = CLIPModel(config).state_dict()
    except _LOAD_ERRORS as error:
        raise ConfigInvalid(f"{path} cannot be used: {_said(error)}") from error
    return Architecture(config, {name: weight.shape for name, weight in weights.items()})


def load_clip(folder: Path) -> Any:
    """The float32 `CLIPModel` of a folder; raises `ConfigInvalid` unless every weight is there and fits."""
    architecture = read_architecture(folder)
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
    """The float32 `CLIPModel` of weights that `check_weights` has found complete."""
    model = CLIPModel.from_pretrained(
        None, config=architecture.config, state_dict=dict(weights), dtype=torch.float32
    )
    return model.eval().requires_grad_(False)


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
