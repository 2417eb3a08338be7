"""A Stable Diffusion XL of full size with random weights: what it draws means nothing, what it takes does.

Its parts have the settings of `stabilityai/stable-diffusion-xl-base-1.0`, but for the vocabulary, which is
the embedded world's.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from deploy.shapes.tokenizer import write_tokenizer
from tests.tiny import scheduler

TOKENS = 77
NARROW = 32
"""By how much the small one's layers are narrower."""


def write_sdxl(folder: Path, device: torch.device, *, small: bool = False) -> Path:
    """Save one in bfloat16, its weights drawn on a device; returns the folder.

    Args:
        folder: where.
        device: a GPU draws seven gigabytes of weights in seconds.
        small: with few and narrow layers, to try what is meant for the full size.
    """
    write_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=TOKENS)
    torch.manual_seed(0)
    with torch.device(device):
        first = CLIPTextModel(_text(tokenizer, 768, layers=12, heads=12, gate="quick_gelu", small=small))
        text = _text(tokenizer, 1280, layers=32, heads=20, gate="gelu", small=small)
        second, network, vae = (
            CLIPTextModelWithProjection(text),
            unet(small=small),
            autoencoder(4, small=small, scaling_factor=0.13025, force_upcast=False),
        )
    parts: dict[str, nn.Module] = {
        "text_encoder": first,
        "text_encoder_2": second,
        "unet": network,
        "vae": vae,
    }
    pipeline = StableDiffusionXLPipeline(
        **{name: part.to(torch.bfloat16) for name, part in parts.items()},
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=scheduler("epsilon"),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def unet(*, small: bool = False) -> UNet2DConditionModel:
    """The denoiser."""
    narrow = NARROW if small else 1
    return UNet2DConditionModel(
        sample_size=128 // (8 if small else 1),
        block_out_channels=tuple(width // (10 if small else 1) for width in (320, 640, 1280)),
        norm_num_groups=4 if small else 32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1) if small else (1, 2, 10),
        attention_head_dim=(1, 2, 4) if small else (5, 10, 20),
        cross_attention_dim=2048 // narrow,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256 // narrow,
        projection_class_embeddings_input_dim=1280 // narrow + 6 * (256 // narrow),
    )


def autoencoder(channels: int, *, small: bool = False, **options: Any) -> AutoencoderKL:
    """One of the published size, which all families have but for the channels of a latent."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8) if small else (128, 256, 512, 512),
        norm_num_groups=4 if small else 32,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=channels,
        sample_size=1024,
        **options,
    )


def _text(
    tokenizer: CLIPTokenizer, width: int, *, layers: int, heads: int, gate: str, small: bool
) -> CLIPTextConfig:
    narrow = NARROW if small else 1
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width // narrow,
        intermediate_size=4 * width // narrow,
        projection_dim=1280 // narrow,
        num_hidden_layers=2 if small else layers,
        num_attention_heads=1 if small else heads,
        max_position_embeddings=TOKENS,
        hidden_act=gate,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
