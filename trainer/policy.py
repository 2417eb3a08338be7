"""The policy: a diffusers pipeline whose UNet is trained. The one file of the trainer that knows diffusers and peft.

Shapes: N pictures, L tokens, (C, h, w) a latent, (H, W) a picture.
"""

import contextlib
import copy
import json
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

from trainer.config import LoraConfig, ModelConfig
from trainer.diffusion import Schedule

SUPPORTED = ("StableDiffusionXLPipeline",)
PREDICTION_TYPES = ("epsilon", "v_prediction")


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
        self, pipeline: StableDiffusionXLPipeline, lora: LoraConfig | None, device: torch.device
    ) -> None:
        self._pipeline = pipeline.to(device)
        self.device = device
        for module in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.unet):
            module.requires_grad_(False).eval()
        self.lora = lora
        self.unet: nn.Module = pipeline.unet
        self._frozen: nn.Module | None = None
        if lora is None:
            self._frozen = copy.deepcopy(pipeline.unet)
            pipeline.unet.float().requires_grad_(True)
        else:
            pipeline.unet.add_adapter(
                PeftLoraConfig(
                    r=lora.rank,
                    lora_alpha=lora.alpha,
                    target_modules=list(lora.target_modules),
                    init_lora_weights="gaussian",
                )
            )
        self._reference_active = False
        self._encoded: dict[str, Conditioning] = {}
        height, width = self.image_size
        self._time_ids = torch.tensor([[height, width, 0, 0, height, width]], device=device)

    @classmethod
    def load(cls, config: ModelConfig, device: torch.device | None = None) -> "Policy":
        """Load a diffusers folder or hub id.

        Raises:
            ModelError: no such model, or one of a kind that is not supported.
        """
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        _check_folder(Path(config.path))
        try:
            pipeline = StableDiffusionXLPipeline.from_pretrained(
                config.path,
                revision=config.revision,
                dtype=getattr(torch, config.dtype),
                add_watermarker=False,
            )
        except OSError as error:
            raise ModelError(
                f"cannot load model.path {config.path!r}: {str(error).splitlines()[0]}"
            ) from error
        prediction_type = pipeline.scheduler.config.prediction_type
        if prediction_type not in PREDICTION_TYPES:
            raise ModelError(
                f"{config.path}: prediction_type {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}"
            )
        if config.gradient_checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        return cls(pipeline, config.lora, device or torch.device("cpu"))

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
        """Text features of N prompts, computed once for each text."""
        missing = [text for text in dict.fromkeys(prompts) if text not in self._encoded]
        for text in missing:
            hidden, empty, pooled, empty_pooled = self._pipeline.encode_prompt(text, device=self.device)
            self._encoded[text] = Conditioning(hidden, pooled, empty, empty_pooled)
        rows = [self._encoded[text] for text in prompts]
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
        return scaled.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write what was trained: a whole pipeline, or a LoRA that `load_lora_weights` reads."""
        if self.lora is None:
            self._pipeline.save_pretrained(folder)
        else:
            state = get_peft_model_state_dict(self._pipeline.unet)
            StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers=state)

    def _evaluate(self, sample: Tensor, timesteps: Tensor, hidden: Tensor, pooled: Tensor) -> Tensor:
        unet = self._frozen if self._reference_active and self._frozen is not None else self.unet
        added = {"text_embeds": pooled, "time_ids": self._time_ids.expand(len(sample), -1).to(pooled.dtype)}
        output: Tensor = unet(sample.to(hidden.dtype), timesteps, hidden, added_cond_kwargs=added).sample
        return output.float()


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        return
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"{folder} has no model_index.json; model.path must be a folder that diffusers' save_pretrained wrote"
        )
    kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    if kind not in SUPPORTED:
        raise ModelError(f"{folder} holds a {kind}; supported are {', '.join(SUPPORTED)}")
