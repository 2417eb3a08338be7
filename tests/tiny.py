"""Very small models with random weights in the real layouts: an SDXL pipeline folder and a CLIP folder."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from deploy.shapes.tokenizer import MAX_TOKENS, write_tokenizer
from trainer.diffusion import PredictionType

TEXT_WIDTH = 16
LATENT_SHAPE = (4, 8, 8)
IMAGE_SIZE = 16


def write_pipeline(folder: Path, prediction_type: PredictionType) -> Path:
    """An SDXL with 8 x 8 latents and 16 x 16 pictures, saved by diffusers; returns the folder."""
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder / "tokenizer")
    text = text_config(tokenizer)
    pipeline = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet(),
        scheduler=scheduler(prediction_type),
        add_watermarker=False,
        force_zeros_for_empty_prompt=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def scheduler(prediction_type: PredictionType) -> DDIMScheduler:
    """SDXL's levels."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def write_clip(folder: Path, projection: int = 24) -> Path:
    """A CLIP for 32 x 32 pictures with its image processor, saved by transformers; returns the folder."""
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "projection_dim": projection,
    }
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS}
    config = CLIPConfig(
        text_config={**text, "eos_token_id": tokenizer.eos_token_id},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=projection,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=(0.5,) * 3,
        image_std=(0.5,) * 3,
    ).save_pretrained(folder)
    return folder


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """A CLIP's text tower, two layers."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def vae(**options: Any) -> AutoencoderKL:
    """An autoencoder that halves the sides of a picture."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=LATENT_SHAPE[0],
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
        scaling_factor=0.5,
        mid_block_add_attention=False,
        **options,
    )


def unet(**options: Any) -> UNet2DConditionModel:
    """SDXL's UNet, or another's by its options."""
    settings = {
        "sample_size": LATENT_SHAPE[1],
        "in_channels": LATENT_SHAPE[0],
        "out_channels": LATENT_SHAPE[0],
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
        "attention_head_dim": 2,
        "cross_attention_dim": 2 * TEXT_WIDTH,
        "transformer_layers_per_block": 1,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": TEXT_WIDTH + 6 * 8,
    }
    return UNet2DConditionModel(**{**settings, **options})
