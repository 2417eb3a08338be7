"""Published models as their configuration files alone, which `sharpen plan` reads, without their weights.

Settings are those of the models' cards; vocabularies are the embedded world's, with embeddings of the
published size.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    ModelMixin,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from deploy.shapes.tokenizer import write_tokenizer
from tests.full_size import autoencoder, unet
from tests.tiny import scheduler
from tests.tiny_families import t5_tokenizer

FLOW_VAE: dict[str, Any] = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1}


def write_sd15(folder: Path) -> Path:
    """Stable Diffusion 1.5; returns the folder."""
    with torch.device("meta"):
        parts = {"text_encoder": _clip_l(CLIPTextModel), "unet": sd15_unet(), "vae": autoencoder(4)}
    return _write(folder, "StableDiffusionPipeline", parts, scheduler("epsilon"), absent=("safety_checker",))


def write_sdxl(folder: Path) -> Path:
    """Stable Diffusion XL; returns the folder."""
    with torch.device("meta"):
        parts = {
            "text_encoder": _clip_l(CLIPTextModel),
            "text_encoder_2": _clip_g(),
            "unet": unet(),
            "vae": autoencoder(4),
        }
    return _write(folder, "StableDiffusionXLPipeline", parts, scheduler("epsilon"))


def write_sd3(folder: Path) -> Path:
    """Stable Diffusion 3.5 medium; returns the folder."""
    with torch.device("meta"):
        parts = {
            "text_encoder": _clip_l(CLIPTextModelWithProjection),
            "text_encoder_2": _clip_g(),
            "text_encoder_3": _t5(),
            "transformer": sd35_medium(),
            "vae": autoencoder(16, **FLOW_VAE),
        }
    levels = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _write(folder, "StableDiffusion3Pipeline", parts, levels)


def write_flux(folder: Path) -> Path:
    """FLUX.1 dev; returns the folder."""
    with torch.device("meta"):
        parts = {
            "text_encoder": _clip_l(CLIPTextModel),
            "text_encoder_2": _t5(),
            "transformer": FluxTransformer2DModel(guidance_embeds=True),
            "vae": autoencoder(16, **FLOW_VAE),
        }
    levels = FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
    )
    return _write(folder, "FluxPipeline", parts, levels)


PUBLISHED: Mapping[str, Callable[[Path], Path]] = {
    "sd15": write_sd15,
    "sdxl": write_sdxl,
    "sd3": write_sd3,
    "flux": write_flux,
}
"""By the name of their recipe."""


def sd15_unet() -> UNet2DConditionModel:
    """The denoiser of Stable Diffusion 1.5."""
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        cross_attention_dim=768,
        attention_head_dim=8,
    )


def sd35_medium() -> SD3Transformer2DModel:
    """The denoiser of Stable Diffusion 3.5 medium."""
    return SD3Transformer2DModel(
        sample_size=128,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=384,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )


def _write(
    folder: Path, pipeline: str, parts: Mapping[str, Any], levels: Any, *, absent: Sequence[str] = ()
) -> Path:
    """The index, and each part's configuration or files."""
    tokenizer = write_tokenizer(folder / "tokenizer")
    others = {"scheduler": levels}
    for name, part in parts.items():
        if name.startswith("text_encoder"):
            own = t5_tokenizer() if isinstance(part, T5EncoderModel) else tokenizer
            others[name.replace("text_encoder", "tokenizer")] = own
        if isinstance(part, ModelMixin):
            part.save_config(folder / name)
        else:
            part.config.save_pretrained(folder / name)
    for name, other in others.items():
        other.save_pretrained(folder / name)
    index: dict[str, list[str | None]] = {
        name: [_library(part), type(part).__name__] for name, part in {**parts, **others}.items()
    }
    index |= {name: [None, None] for name in (*absent, "feature_extractor", "image_encoder")}
    whole = {"_class_name": pipeline, "_diffusers_version": "0.42.1", **index}
    (folder / "model_index.json").write_text(json.dumps(whole), encoding="utf-8")
    return folder


def _library(part: Any) -> str:
    return type(part).__module__.partition(".")[0]


def _clip_l(kind: type[CLIPTextModel] | type[CLIPTextModelWithProjection]) -> Any:
    return kind(_clip(width=768, layers=12, heads=12))


def _clip_g() -> Any:
    return CLIPTextModelWithProjection(_clip(width=1280, layers=32, heads=20))


def _clip(*, width: int, layers: int, heads: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )


def _t5() -> Any:
    """T5 XXL's encoder."""
    return T5EncoderModel(
        T5Config(
            d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
        )
    )
