"""The network of ImageReward: BLIP's image and text encoders, joined by cross-attention, and a linear head.

Modules are named as in the official checkpoint, so that its keys are this network's keys. The architecture is
that of BLIP's image-grounded text encoder (Li et al., arXiv 2201.12086, section 3.1), as ImageReward uses it.

I images, N pairs of an image and a prompt, S side of an image in pixels, V image tokens (the class token
first), L text tokens, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

IMAGE_HEAD_WIDTH = 64
"""Of the ViT; weights do not tell the number of heads."""

_IMAGE_EPS = 1e-6
# Mean and standard deviation of the raw scores, by which the reference normalises them.
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """Sizes of the image encoder; the official one is ViT-L/16 at 224 pixels."""

    width: int
    depth: int
    hidden: int
    """Width inside the feed-forward layers."""
    patch: int
    """Side of a patch in pixels."""
    side: int
    """Side of the images in pixels."""


@dataclass(frozen=True, slots=True)
class TextSizes:
    """Sizes of the text encoder; the official one is BERT base."""

    width: int
    depth: int
    hidden: int
    """Width inside the feed-forward layers."""
    heads: int
    positions: int
    vocabulary: int
    eps: float
    """Of the layer norms."""


class ImageRewardNetwork(nn.Module):
    """`image_tokens` for every different image, then `forward` for every pair.

    Training and evaluation are the same to it: it has neither dropout nor stochastic depth. `side` is that of
    the images in pixels, `vocabulary` the number of tokens it knows.
    """

    def __init__(self, image: ImageSizes, text: TextSizes) -> None:
        super().__init__()
        self.side = image.side
        self.vocabulary = text.vocabulary
        self.blip = nn.ModuleDict(
            {"visual_encoder": _ImageEncoder(image), "text_encoder": _TextEncoder(text, image.width)}
        )
        self.mlp = nn.Sequential(OrderedDict(layers=_head(text.width)))

    def image_tokens(self, pixels_I3SS: Tensor) -> Tensor:
        """Normalised pixels as tokens (I, V, D): all of them go on, class token and patches."""
        tokens_IVD: Tensor = self.blip["visual_encoder"](pixels_I3SS)
        return tokens_IVD

    def forward(self, image_tokens_NVD: Tensor, ids_NL: Tensor, lengths_N: Tensor) -> Tensor:
        """One score per pair, (N,) float32; `ids_NL` are padding from a row's length on."""
        hidden_NLD = self.blip["text_encoder"](image_tokens_NVD, ids_NL, lengths_N)
        raw_N1: Tensor = self.mlp(hidden_NLD[:, 0].float())
        return (raw_N1.squeeze(-1) - _MEAN) / _STD


class _ImageEncoder(nn.Module):
    """A ViT: class token, learned positions, pre-norm blocks."""

    def __init__(self, sizes: ImageSizes) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, sizes.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (sizes.side // sizes.patch) ** 2, sizes.width))
        to_tokens = nn.Conv2d(3, sizes.width, kernel_size=sizes.patch, stride=sizes.patch)
        self.patch_embed = nn.Sequential(OrderedDict(proj=to_tokens))
        self.blocks = nn.Sequential(*(_ImageBlock(sizes.width, sizes.hidden) for _ in range(sizes.depth)))
        self.norm = nn.LayerNorm(sizes.width, eps=_IMAGE_EPS)

    def forward(self, pixels_I3SS: Tensor) -> Tensor:
        patches_IVD = self.patch_embed(pixels_I3SS).flatten(2).transpose(1, 2)
        class_I1D = self.cls_token.expand(len(patches_IVD), -1, -1)
        tokens_IVD = torch.cat([class_I1D, patches_IVD], dim=1) + self.pos_embed
        normal_IVD: Tensor = self.norm(self.blocks(tokens_IVD))
        return normal_IVD


class _ImageBlock(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_IMAGE_EPS)
        self.attn = _ImageAttention(width)
        self.norm2 = nn.LayerNorm(width, eps=_IMAGE_EPS)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        changed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return changed


class _ImageAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // IMAGE_HEAD_WIDTH
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        attended: Tensor = self.proj(_attended(query, key, value, self.heads))
        return attended


class _TextEncoder(nn.Module):
    """A BERT without token types and pooler, whose layers look at the image between attention and MLP."""

    def __init__(self, sizes: TextSizes, image_width: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(sizes.vocabulary, sizes.width),
                "position_embeddings": nn.Embedding(sizes.positions, sizes.width),
                "LayerNorm": nn.LayerNorm(sizes.width, eps=sizes.eps),
            }
        )
        self.encoder = _TextLayers(sizes, image_width)

    def forward(self, image_tokens_NVD: Tensor, ids_NL: Tensor, lengths_N: Tensor) -> Tensor:
        places_L = torch.arange(ids_NL.shape[1], device=ids_NL.device)
        words_NLD = self.embeddings["word_embeddings"](ids_NL)
        placed_NLD = words_NLD + self.embeddings["position_embeddings"](places_L)
        is_text_N11L = (places_L < lengths_N[:, None])[:, None, None]
        hidden_NLD: Tensor = self.encoder(
            self.embeddings["LayerNorm"](placed_NLD), image_tokens_NVD, is_text_N11L
        )
        return hidden_NLD


class _TextLayers(nn.Module):
    def __init__(self, sizes: TextSizes, image_width: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_TextLayer(sizes, image_width) for _ in range(sizes.depth))

    def forward(self, hidden_NLD: Tensor, image_tokens_NVD: Tensor, is_text_N11L: Tensor) -> Tensor:
        for layer in self.layer:
            hidden_NLD = layer(hidden_NLD, image_tokens_NVD, is_text_N11L)
        return hidden_NLD


class _TextLayer(nn.Module):
    def __init__(self, sizes: TextSizes, image_width: int) -> None:
        super().__init__()
        self.attention = _TextAttention(sizes, sizes.width)
        self.crossattention = _TextAttention(sizes, image_width)
        self.intermediate = nn.Sequential(
            OrderedDict(dense=nn.Linear(sizes.width, sizes.hidden), act=nn.GELU())
        )
        self.output = _AddAndNorm(sizes.hidden, sizes.width, sizes.eps)

    def forward(self, hidden_NLD: Tensor, image_tokens_NVD: Tensor, is_text_N11L: Tensor) -> Tensor:
        hidden_NLD = self.attention(hidden_NLD, hidden_NLD, is_text_N11L)
        hidden_NLD = self.crossattention(hidden_NLD, image_tokens_NVD)
        changed_NLD: Tensor = self.output(self.intermediate(hidden_NLD), hidden_NLD)
        return changed_NLD


class _TextAttention(nn.Module):
    """Attention from text to itself or to an image, which may have another width."""

    def __init__(self, sizes: TextSizes, seen_width: int) -> None:
        super().__init__()
        self.heads = sizes.heads
        # The checkpoint calls it `self`, for self-attention and cross-attention alike.
        self.self = nn.ModuleDict(
            {
                "query": nn.Linear(sizes.width, sizes.width),
                "key": nn.Linear(seen_width, sizes.width),
                "value": nn.Linear(seen_width, sizes.width),
            }
        )
        self.output = _AddAndNorm(sizes.width, sizes.width, sizes.eps)

    def forward(self, hidden: Tensor, seen: Tensor, mask: Tensor | None = None) -> Tensor:
        projected = self.self["query"](hidden), self.self["key"](seen), self.self["value"](seen)
        changed: Tensor = self.output(_attended(*projected, self.heads, mask), hidden)
        return changed


class _AddAndNorm(nn.Module):
    """BERT's post-norm residual connection."""

    def __init__(self, width: int, out_width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width, out_width)
        self.LayerNorm = nn.LayerNorm(out_width, eps=eps)

    def forward(self, change: Tensor, residual: Tensor) -> Tensor:
        normal: Tensor = self.LayerNorm(self.dense(change) + residual)
        return normal


def _attended(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of (N, L, D) queries to (N, V, D) keys and values; where `mask` is False, not."""
    query, key, value = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


def _head(width: int) -> nn.Sequential:
    # The reference has no activations between the five; at 1, 3 and 5 it has dropout, in training.
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Identity(),
        nn.Linear(1024, 128),
        nn.Identity(),
        nn.Linear(128, 64),
        nn.Identity(),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
