"""The policy: a diffusers pipeline whose denoiser, UNet or transformer, is trained.

What one kind of pipeline does otherwise than another is in `families`.
Shapes: N pictures, (C, h, w) a latent, (H, W) a picture.
"""

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import UserCpuOffloadHook
from diffusers.utils import logging
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import logging as transformers_logging

from trainer import adapters
from trainer.autoencoder import decoded, encoded
from trainer.config import ModelConfig
from trainer.diffusion import Schedule
from trainer.encoded import Encoded
from trainer.families.family import Conditioning, Family, compile_blocks
from trainer.families.index import check_model, load_options, not_there
from trainer.families.previews import load_preview_decoder
from trainer.sharding import assembled, gathered, shard


class Policy:
    """Encode, predict, decode; train the denoiser or adapters on it; save what diffusers loads."""

    def __init__(
        self,
        family: Family,
        config: ModelConfig,
        device: torch.device,
        *,
        trainable: bool = True,
        sharded: bool = False,
    ) -> None:
        self._family, self._pipeline, self.device = family, family.pipeline, device
        network = family.network
        self._visitors: list[UserCpuOffloadHook] = []
        self._dtype: torch.dtype = network.dtype
        self._decoded_at_a_time, self._preview_decoder = config.decoded_at_a_time, self._place_parts(config)
        self.lora = config.lora
        self.denoiser: nn.Module = network
        self.sharded = sharded
        """Whether each rank holds its part of what is trained, and of the reference."""
        self._network_class = type(network)
        self._trainable = trainable
        self._frozen = self._begin_training() if trainable else None
        for own in [network] if self._frozen is None else [network, self._frozen]:
            if config.compile:  # before blocks are sharded, which gives them other classes
                compile_blocks(own)
            if sharded:
                shard(own, device, self._dtype)
            else:
                own.to(device)
        self.states_with_gradients = config.states_with_gradients
        """Most states whose activations are kept at a time."""
        self._reference_active = False
        self._encoded = Encoded(lambda texts: family.encode(texts, device))

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        device: torch.device | None = None,
        *,
        trainable: bool = True,
        adapter: Path | None = None,
        sharded: bool = False,
    ) -> "Policy":
        """Load a diffusers folder or hub id, to be trained or only to be sampled from.

        Args:
            config: which model.
            device: where it runs; the CPU by default.
            trainable: whether there will be a reference beside it and gradients in it.
            adapter: a trained LoRA folder to put on it.
            sharded: whether the ranks of torch's default process group share the weights of the denoiser.

        Raises:
            ModelError: no such model, or one of a kind that is not supported.
        """
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        kind = check_model(config)
        options = load_options(kind, config)
        try:
            pipeline = kind.pipeline_class.from_pretrained(
                config.path, revision=config.revision, dtype=getattr(torch, config.dtype), **options
            )
        except (OSError, ValueError) as error:  # a part is missing, or is not what the index says
            raise not_there(config.path, error) from error
        family = kind(pipeline, config.image_size)
        if config.gradient_checkpointing:
            family.network.enable_gradient_checkpointing()
        pipeline.vae.use_tiling = config.tiled
        if adapter is not None:
            pipeline.load_lora_weights(adapter)
        return cls(family, config, device or torch.device("cpu"), trainable=trainable, sharded=sharded)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        return self._family.latent_shape

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of one picture in pixels."""
        _, h, w = self.latent_shape
        return h * self._pipeline.vae_scale_factor, w * self._pipeline.vae_scale_factor

    @property
    def image_step(self) -> int:
        """Pixels of which the sides of its pictures are multiples."""
        return self._family.image_step

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.denoiser.parameters() if parameter.requires_grad]

    def schedule(self, steps: int) -> Schedule:
        """The noise levels of a trajectory of `steps` steps."""
        return self._family.schedule(steps).to(self.device)

    def evaluations(self, guidance: float) -> int:
        """Evaluations of the denoiser that `predict` takes for one picture."""
        return self._family.evaluations(guidance)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Text features of N prompts; those of a text that was met lately are not computed again."""
        text = self._encoded(prompts).to(self.device)
        self._send_home()
        return text

    def cut_off(self, prompts: Sequence[str]) -> int:
        """How many prompts end beyond what any of the text encoders reads."""
        return self._family.cut_off(prompts)

    def predict(self, sample: Tensor, timesteps: Tensor, text: Conditioning, guidance: float) -> Tensor:
        """The model's output under guidance as at inference: (N, C, h, w) to the same.

        Args:
            sample: (N, C, h, w) noisy latents.
            timesteps: (N,) from the schedule.
            text: N rows.
            guidance: scale of classifier-free guidance (arXiv 2207.12598), where 1 or less is the conditional
                prediction alone; a model distilled to take the scale as an input is given it.
        """
        if self.evaluations(guidance) == 1:
            return self._evaluate(sample, timesteps, text, guidance)
        empty = self._empty.take(torch.zeros(len(sample), dtype=torch.long)).of_sizes(text.sizes)
        both = self._evaluate(
            torch.cat([sample, sample]),
            torch.cat([timesteps, timesteps]),
            Conditioning.joined([empty, text]),
            guidance,
        )
        without, full = both.chunk(2)
        return without + guidance * (full - without)

    def replayed(self, sample: Tensor, timesteps: Tensor, text: Conditioning, guidance: float) -> Tensor:
        """The same of states that are learned, so many at a time as may have activations.

        Without gradients in the same pieces: what models say is compared, and in half precision an output
        depends on the batch that it is computed in.
        """
        # The activations of one piece exist at a time: of the one that is evaluated last, with which the
        # backward pass begins; then of each other one, computed again when it comes to it.
        first, *others = (
            (sample[rows], timesteps[rows], text.take(rows), guidance)
            for rows in torch.arange(len(sample)).split(self.states_with_gradients or len(sample))
        )
        pieces = [checkpoint(self.predict, *asked, use_reentrant=False) for asked in others]
        return torch.cat([self.predict(*first), *pieces])

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Within this block predictions come from the model as it was loaded."""
        copied = self._frozen is not None
        self._reference_active = True
        try:
            with contextlib.nullcontext() if copied else adapters.disabled(self._family.network):
                yield
        finally:
            self._reference_active = False

    def decode(self, latents: Tensor, *, preview: bool = False) -> NDArray[np.uint8]:
        """(N, C, h, w) latents to (N, H, W, 3) pictures, by what decodes previews where one is there."""
        vae = self._preview_decoder if preview and self._preview_decoder else self._pipeline.vae
        pictures = decoded(vae, latents, self._decoded_at_a_time)
        self._send_home()
        return np.asarray(pictures.cpu())

    def compress(self, pictures: NDArray[np.uint8]) -> Tensor:
        """(N, H, W, 3) pictures to the (N, C, h, w) latents they most likely have."""
        latents = encoded(self._pipeline.vae, pictures, self.device)
        self._send_home()
        return latents

    def sampling(self) -> contextlib.AbstractContextManager[None]:
        """Within this block a rank predicts alone, without gradients: it has the whole denoiser meanwhile.

        Adapters are part of the weights, where that loses nothing. All ranks enter it; what is trained is not
        to be touched within, nor the reference asked.
        """
        if self.sharded:
            return gathered(self.denoiser)
        return adapters.merged(self.denoiser) if self.lora and self._trainable else contextlib.nullcontext()

    @contextlib.contextmanager
    def assembled(self, *, keep: bool) -> Iterator[None]:
        """Within this block a rank that is to `keep` the whole denoiser can save it; all ranks enter it."""
        if self.sharded and (network := assembled(self.denoiser, self._network_class, keep=keep)):
            self._pipeline.register_modules(**{self._family.denoiser: network})
        try:
            yield
        finally:
            self._pipeline.register_modules(**{self._family.denoiser: self.denoiser})

    def save(self, folder: Path) -> None:
        """Write what was trained: a whole pipeline in float32, or a LoRA that `load_lora_weights` reads."""
        if self.lora is None:
            self._family.save(folder)
        else:
            layers = adapters.saved(self._family.network, self._family.denoiser)
            self._pipeline.save_lora_weights(folder, **layers)

    def _begin_training(self) -> nn.Module | None:
        """Make weights or adapters trainable, in float32; the reference, where that is a copy."""
        network, lora, frozen = self._family.network, self.lora, None
        if lora is None:
            frozen = copy.deepcopy(network)
            network.requires_grad_(True)
        else:
            adapters.add(network, lora, self._family.lora_targets)
        for parameter in self.parameters:
            parameter.data = parameter.data.float()
        return frozen

    @functools.cached_property
    @torch.no_grad()
    def _empty(self) -> Conditioning:
        empty = self._family.encode_empty(self.device)
        self._send_home()
        return empty

    def _place_parts(self, config: ModelConfig) -> nn.Module | None:
        """All but the denoiser onto the device; returns what decodes previews, where that is another."""
        parts = [part for part in self._pipeline.components.values() if isinstance(part, nn.Module)]
        path, previews = config.preview_decoder, None
        if path:
            previews = load_preview_decoder(path, self._family, self._dtype)
            parts.append(previews)
        for part in parts:
            part.requires_grad_(requires_grad=False).eval()
            if part is self._family.network:
                continue
            if config.offload:  # it visits the device whenever it is called
                self._visitors.append(cpu_offload_with_hook(part, self.device)[1])
            else:
                part.to(self.device)
        vae = self._pipeline.vae.to(memory_format=torch.channels_last)  # a tenth faster on CPUs
        if vae.dtype == torch.float16 and vae.config.force_upcast:
            vae.float()  # SDXL's autoencoder overflows in half precision
        return previews

    def _send_home(self) -> None:
        for visitor in self._visitors:
            visitor.offload()

    def _evaluate(self, sample: Tensor, timesteps: Tensor, text: Conditioning, guidance: float) -> Tensor:
        network = self._frozen if self._reference_active and self._frozen is not None else self.denoiser
        # Trained weights are float32 whatever the model runs in; autocast joins the two.
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            output = self._family.evaluate(network, sample.to(self._dtype), timesteps, text, guidance)
        return output.float()
