"""Very small Stable Diffusion 1, 2 and 3, and FLUX, with random weights, in the real layouts."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from deploy.shapes.tokenizer import words, write_tokenizer
from tests.tiny import LATENT_SHAPE, TEXT_WIDTH, text_config, unet, vae
from trainer.diffusion import PredictionType

JOINT_WIDTH = 2 * TEXT_WIDTH


def write_sd(folder: Path, prediction_type: PredictionType = "epsilon") -> Path:
    """A Stable Diffusion 1 (noise) or 2 (velocity), with their schedulers; returns the folder."""
    torch.manual_seed(1)
    tokenizer = write_tokenizer(folder / "tokenizer")
    levels = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    if prediction_type == "epsilon":
        scheduler: Any = PNDMScheduler(**levels, skip_prk_steps=True)
    else:
        scheduler = DDIMScheduler(
            **levels, prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=False
        )
    pipeline = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(text_config(tokenizer)),
        tokenizer=tokenizer,
        unet=unet(cross_attention_dim=TEXT_WIDTH, addition_embed_type=None),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def write_sd3(folder: Path, *, newer: bool = False, t5: bool = True) -> Path:
    """A Stable Diffusion 3, or the newer 3.5 with its normed and dual attention; returns the folder.

    Without T5 it is as diffusers saves one that was loaded without.
    """
    torch.manual_seed(2)
    tokenizer = write_tokenizer(folder / "tokenizer")
    transformer = SD3Transformer2DModel(
        sample_size=LATENT_SHAPE[1],
        patch_size=2,
        in_channels=LATENT_SHAPE[0],
        out_channels=LATENT_SHAPE[0],
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=JOINT_WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=8,
        **({"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if newer else {}),
    )
    pipeline = StableDiffusion3Pipeline(
        vae=_shifted_vae(),
        text_encoder=CLIPTextModelWithProjection(text_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer)),
        text_encoder_3=_t5() if t5 else None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=t5_tokenizer() if t5 else None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.save_pretrained(folder)
    return folder


def write_flux(folder: Path, *, guided: bool) -> Path:
    """A FLUX.1-dev (guided) or -schnell, with their schedulers; returns the folder."""
    torch.manual_seed(3)
    tokenizer = write_tokenizer(folder / "tokenizer")
    transformer = FluxTransformer2DModel(
        in_channels=4 * LATENT_SHAPE[0],
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=JOINT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=guided,
        axes_dims_rope=(4, 6, 6),
    )
    pipeline = FluxPipeline(
        vae=_shifted_vae(),
        text_encoder=CLIPTextModel(text_config(tokenizer)),
        text_encoder_2=_t5(),
        tokenizer=tokenizer,
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guided else 1.0, use_dynamic_shifting=guided, base_shift=0.5, max_shift=1.15
        ),
    )
    pipeline.save_pretrained(folder)
    return folder


def write_preview_decoder(folder: Path, *, channels: int = LATENT_SHAPE[0], stages: int = 2) -> str:
    """An AutoencoderTiny with random weights that enlarges latents 2 ** (stages - 1) times."""
    torch.manual_seed(0)
    widths, blocks = (4,) * stages, (1,) * stages
    made = AutoencoderTiny(
        latent_channels=channels,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    )
    made.save_pretrained(folder)
    return str(folder)


def _shifted_vae() -> AutoencoderKL:
    """With a shift of its latents, as those of flow matching models have."""
    return vae(shift_factor=0.3, use_quant_conv=False, use_post_quant_conv=False)


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(_t5_vocabulary()),
            d_model=JOINT_WIDTH,
            d_kv=8,
            d_ff=2 * JOINT_WIDTH,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def t5_tokenizer() -> T5Tokenizer:
    """Of the embedded world's words."""
    return T5Tokenizer(vocab=_t5_vocabulary(), extra_ids=0, model_max_length=512)


def _t5_vocabulary() -> list[tuple[str, float]]:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return [*special, *((f"▁{word}", -1.0) for word in words())]
