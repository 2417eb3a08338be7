"""The policy: a diffusers pipeline whose UNet is trained. Here alone the trainer knows diffusers and peft.

Shapes: N pictures, L tokens, (C, h, w) a latent, (H, W) a picture.
"""

import contextlib
import copy
import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from diffusers.utils import logging
from numpy.typing import NDArray
from peft import LoraConfig as PeftLoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from trainer.config import LoraConfig, ModelConfig
from trainer.diffusion import Schedule

SUPPORTED = ("StableDiffusionXLPipeline",)
PREDICTION_TYPES = ("epsilon", "v_prediction")
ENCODED_PROMPTS = 512
"""Prompts whose features are kept for the next time; SDXL's take a megabyte each."""

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


class ModelError(ValueError):
    """A model that cannot be trained here; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Encoded prompts, with and without their text."""

    hidden: Tensor
    """(N, L, D) token features."""
    pooled: Tensor
    """(N, E) pooled features."""
    empty_hidden: Tensor
    """(N, L, D) token features of the empty prompt."""
    empty_pooled: Tensor
    """(N, E) pooled features of the empty prompt."""

    def take(self, rows: Tensor) -> "Conditioning":
        """The given rows, repeats allowed."""
        return Conditioning(
            self.hidden[rows], self.pooled[rows], self.empty_hidden[rows], self.empty_pooled[rows]
        )


class Policy:
    """Encode, predict, decode; train the UNet or adapters on it; save what diffusers loads."""

    def __init__(
        self,
        pipeline: StableDiffusionXLPipeline,
        lora: LoraConfig | None,
        device: torch.device,
        *,
        trainable: bool = True,
    ) -> None:
        self._pipeline = pipeline.to(device)
        self.device = device
        for module in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.unet):
            module.requires_grad_(False).eval()
        if pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
            pipeline.vae.float()  # SDXL's autoencoder overflows in half precision
        self._dtype: torch.dtype = pipeline.unet.dtype
        self.lora = lora
        self.unet: nn.Module = pipeline.unet
        self._frozen: nn.Module | None = None
        if trainable and lora is None:
            self._frozen = copy.deepcopy(pipeline.unet)
            pipeline.unet.requires_grad_(True)
        elif trainable and lora is not None:
            pipeline.unet.add_adapter(
                PeftLoraConfig(
                    r=lora.rank,
                    lora_alpha=lora.alpha,
                    target_modules=list(lora.target_modules),
                    init_lora_weights="gaussian",
                )
            )
        for parameter in self.parameters:
            parameter.data = parameter.data.float()
        self._reference_active = False
        self._encoded = functools.lru_cache(ENCODED_PROMPTS)(self._encode)
        height, width = self.image_size
        self._time_ids = torch.tensor([[height, width, 0, 0, height, width]], device=device)

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        device: torch.device | None = None,
        *,
        trainable: bool = True,
        adapter: Path | None = None,
    ) -> "Policy":
        """Load a diffusers folder or hub id, to be trained or only to be sampled from.

        Args:
            config: which model.
            device: where it runs; the CPU by default.
            trainable: whether there will be a reference beside it and gradients in it.
            adapter: a trained LoRA folder to put on it.

        Raises:
            ModelError: no such model, or one of a kind that is not supported.
        """
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        check_model(config)
        try:
            pipeline = StableDiffusionXLPipeline.from_pretrained(
                config.path,
                revision=config.revision,
                dtype=getattr(torch, config.dtype),
                add_watermarker=False,
            )
        except OSError as error:
            raise ModelError(
                f"cannot load model.path {config.path!r}; give a folder that diffusers' save_pretrained "
                f"wrote or the id of a model on the hub, reachable from here ({' '.join(str(error).split())})"
            ) from error
        prediction_type = pipeline.scheduler.config.prediction_type
        if prediction_type not in PREDICTION_TYPES:
            raise ModelError(
                f"{config.path} predicts {prediction_type!r}; supported are {', '.join(PREDICTION_TYPES)}"
            )
        if config.gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        if adapter is not None:
            pipeline.load_lora_weights(adapter)
        return cls(pipeline, config.lora, device or torch.device("cpu"), trainable=trainable)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        size = self._pipeline.unet.config.sample_size
        return self._pipeline.unet.config.in_channels, size, size

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of one picture in pixels."""
        _, h, w = self.latent_shape
        return h * self._pipeline.vae_scale_factor, w * self._pipeline.vae_scale_factor

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self._pipeline.unet.parameters() if parameter.requires_grad]

    def schedule(self, steps: int) -> Schedule:
        """The noise levels of a trajectory of `steps` steps."""
        scheduler = DDIMScheduler.from_config(self._pipeline.scheduler.config)
        final = float(scheduler.final_alpha_cumprod)
        levels = Schedule.spaced(
            scheduler.alphas_cumprod, steps, scheduler.config.prediction_type, final_alpha_bar=final
        )
        return levels.to(self.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Text features of N prompts; those of a text that was met lately are not computed again."""
        rows = [self._encoded(text) for text in prompts]
        return Conditioning(
            torch.cat([row.hidden for row in rows]),
            torch.cat([row.pooled for row in rows]),
            torch.cat([row.empty_hidden for row in rows]),
            torch.cat([row.empty_pooled for row in rows]),
        )

    def predict(self, sample: Tensor, timesteps: Tensor, text: Conditioning, guidance: float) -> Tensor:
        """The model's output under classifier-free guidance (arXiv 2207.12598): (N, C, h, w) to the same.

        Args:
            sample: (N, C, h, w) noisy latents.
            timesteps: (N,) long.
            text: N rows.
            guidance: 1 is the conditional prediction alone and costs one evaluation a picture instead of two.
        """
        if guidance == 1:
            return self._evaluate(sample, timesteps, text.hidden, text.pooled)
        both = self._evaluate(
            torch.cat([sample, sample]),
            torch.cat([timesteps, timesteps]),
            torch.cat([text.empty_hidden, text.hidden]),
            torch.cat([text.empty_pooled, text.pooled]),
        )
        empty, full = both.chunk(2)
        return empty + guidance * (full - empty)

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Within this block predictions come from the model as it was loaded."""
        if self._frozen is None:
            self._pipeline.unet.disable_adapters()
        self._reference_active = True
        try:
            yield
        finally:
            self._reference_active = False
            if self._frozen is None:
                self._pipeline.unet.enable_adapters()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """(N, C, h, w) latents to (N, H, W, 3) pictures."""
        vae = self._pipeline.vae
        images = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample.float()
        scaled = (images.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
        pictures: NDArray[np.uint8] = scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return pictures

    def save(self, folder: Path) -> None:
        """Write what was trained: a whole pipeline, or a LoRA that `load_lora_weights` reads."""
        if self.lora is None:
            self._pipeline.save_pretrained(folder)
        else:
            unet = self._pipeline.unet
            StableDiffusionXLPipeline.save_lora_weights(
                folder,
                unet_lora_layers=get_peft_model_state_dict(unet),
                # Without it diffusers takes alpha for the rank and scales the adapters wrongly.
                unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
            )

    def _encode(self, text: str) -> Conditioning:
        hidden, empty, pooled, empty_pooled = self._pipeline.encode_prompt(text, device=self.device)
        return Conditioning(hidden, pooled, empty, empty_pooled)

    def _evaluate(self, sample: Tensor, timesteps: Tensor, hidden: Tensor, pooled: Tensor) -> Tensor:
        unet = self._frozen if self._reference_active and self._frozen is not None else self.unet
        added = {"text_embeds": pooled, "time_ids": self._time_ids.expand(len(sample), -1).to(pooled.dtype)}
        # Trained weights are float32 whatever the model runs in; autocast joins the two.
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            output: Tensor = unet(sample.to(self._dtype), timesteps, hidden, added_cond_kwargs=added).sample
        return output.float()


def check_model(config: ModelConfig) -> None:
    """Refuse, without loading anything, a model that cannot be trained here. Raises ModelError."""
    path = config.path
    folder = Path(path)
    index = folder / "model_index.json"
    if not folder.exists():
        if not _HUB_ID.fullmatch(path):
            raise ModelError(
                f"model.path {path!r} does not exist; give a folder that diffusers' save_pretrained wrote "
                "or the id of a model on the hub"
            )
        return
    if not index.is_file():
        raise ModelError(
            f"{folder} has no model_index.json; "
            "model.path must be a folder that diffusers' save_pretrained wrote"
        )
    kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    if kind not in SUPPORTED:
        raise ModelError(f"{folder} holds a {kind}; give as model.path one of {', '.join(SUPPORTED)}")
