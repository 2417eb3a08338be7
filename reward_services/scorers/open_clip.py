"""What open_clip does its own way: the names of a CLIP's weights, and the cleaning of prompts."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path

import ftfy
import torch
from torch import Tensor

from reward_services.scorers.weights import check_weights

# transformers' names as patterns, open_clip's instead; all that match apply, in this order.
_NAMES = (
    (r"^text_projection\.weight$", "text_projection"),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^vision_model\.", "visual."),
    (r"^text_model\.", ""),
    (r"embeddings\.class_embedding$", "class_embedding"),
    (r"embeddings\.patch_embedding\.", "conv1."),
    (r"embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"embeddings\.token_embedding\.", "token_embedding."),
    (r"pre_layrnorm\.", "ln_pre."),
    (r"post_layernorm\.", "ln_post."),
    (r"final_layer_norm\.", "ln_final."),
    (r"encoder\.layers\.", "transformer.resblocks."),
    (r"self_attn\.[qkv]_proj\.", "attn.in_proj_"),
    (r"self_attn\.out_proj\.", "attn.out_proj."),
    (r"layer_norm(\d)\.", r"ln_\1."),
    (r"mlp\.fc1\.", "mlp.c_fc."),
    (r"mlp\.fc2\.", "mlp.c_proj."),
)
_THIRDS = ("q_proj", "k_proj", "v_proj")


def clip_weights(
    found: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], source: Path
) -> dict[str, Tensor]:
    """open_clip's weights under transformers' names, for a `CLIPModel` of these `shapes`.

    Query, key and value lie in one matrix there, in this order, and projections are stored transposed.

    Raises:
        ConfigInvalid: a key is missing, too many, or of another shape; it is named as the file names it.
    """
    check_weights(found, _stored_shapes(shapes), source)
    return {name: _part(found[_stored_name(name)], name) for name in shapes}


def cleaned(prompt: str) -> str:
    """The prompt as open_clip's and openai/CLIP's tokenizers read it: text and HTML entities repaired."""
    return html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()


def _stored_name(name: str) -> str:
    for pattern, stored in _NAMES:
        name = re.sub(pattern, stored, name)
    return name


def _stored_shapes(shapes: Mapping[str, torch.Size]) -> dict[str, tuple[int, ...]]:
    stored: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        there = tuple(reversed(shape)) if _is_projection(name) else tuple(shape)
        stored[_stored_name(name)] = there if _third(name) is None else (3 * there[0], *there[1:])
    return stored


def _part(weight: Tensor, name: str) -> Tensor:
    third = _third(name)
    if third is not None:
        return weight.chunk(3)[third].contiguous()
    return weight.T.contiguous() if _is_projection(name) else weight


def _is_projection(name: str) -> bool:
    return name.endswith("_projection.weight")


def _third(name: str) -> int | None:
    """Which third of the joint matrix a query, key or value projection is."""
    return next((index for index, part in enumerate(_THIRDS) if f".{part}." in name), None)
