"""ImageReward.pt and med_config.json, the official files, into a network: every key is accounted for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from torch import Tensor

from reward_services.errors import ConfigInvalid
from reward_services.scorers.blip import IMAGE_HEAD_WIDTH, ImageRewardNetwork, ImageSizes, TextSizes
from reward_services.scorers.weights import check_weights, read_weights

MAX_TOKENS = 35
"""Of a prompt, [CLS] and [SEP] included; what is longer is cut."""

_IMAGE = "blip.visual_encoder."
_OFFICIAL = ImageSizes(width=1024, depth=24, hidden=4096, patch=16, side=224)
# BLIP's projections for its contrastive loss, which no score uses, and a buffer of old transformers.
_UNUSED = {f"blip.{name}_proj.{part}" for name in ("vision", "text") for part in ("weight", "bias")}
_UNUSED |= {"blip.text_encoder.embeddings.position_ids"}


def load_network(
    checkpoint: Path, med_config: Path, *, device: torch.device, dtype: torch.dtype
) -> ImageRewardNetwork:
    """The network with exactly the weights of a checkpoint; its head stays in float32, as in the reference.

    Raises:
        ConfigInvalid: a file cannot be read, a key is missing or unknown, or a weight has another shape.
    """
    text = _text_sizes(med_config)
    weights = {key: weight for key, weight in read_weights(checkpoint).items() if key not in _UNUSED}
    with torch.device("meta"):
        network = ImageRewardNetwork(_image_sizes(weights), text)
    shapes = {key: weight.shape for key, weight in network.state_dict().items()}
    check_weights(weights, shapes, checkpoint)
    network.blip.to(dtype)
    network.to_empty(device=device).load_state_dict(weights)
    return network.requires_grad_(False)


class _MedConfig(BaseModel):
    """What is read of med_config.json; its encoder_width is not, because that of the images overrides it."""

    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    intermediate_size: PositiveInt
    max_position_embeddings: int = Field(ge=MAX_TOKENS)
    vocab_size: PositiveInt
    layer_norm_eps: PositiveFloat
    hidden_act: Literal["gelu"]

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("hidden_size is no multiple of num_attention_heads")
        return self


def _text_sizes(path: Path) -> TextSizes:
    try:
        stated = _MedConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigInvalid(f"cannot read {path}: {error.strerror}; complete the folder") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigInvalid(f"{path}: {where}: {first['msg']}; use the checkpoint's own file") from error
    return TextSizes(
        width=stated.hidden_size,
        depth=stated.num_hidden_layers,
        hidden=stated.intermediate_size,
        heads=stated.num_attention_heads,
        positions=stated.max_position_embeddings,
        vocabulary=stated.vocab_size,
        eps=stated.layer_norm_eps,
    )


def _image_sizes(weights: Mapping[str, Tensor]) -> ImageSizes:
    """No file states them, the weights do; where they do not, the official ones, for the check to compare.

    The official width means the official depth: without its last blocks an encoder would still fit together.
    """
    try:
        _, tokens, width = weights[_IMAGE + "pos_embed"].shape
        hidden, _ = weights[_IMAGE + "blocks.0.mlp.fc1.weight"].shape
        _, _, _, patch = weights[_IMAGE + "patch_embed.proj.weight"].shape
        side = patch * math.isqrt(tokens - 1)
    except (KeyError, ValueError):
        return _OFFICIAL
    if width == _OFFICIAL.width or width % IMAGE_HEAD_WIDTH:
        return _OFFICIAL
    blocks = {key.split(".")[3] for key in weights if key.startswith(_IMAGE + "blocks.")}
    return ImageSizes(width, len(blocks), hidden, patch, side)
