"""Settings of the model: which one, what of it is trained, and how it runs."""

from typing import Literal

from pydantic import Field

from trainer.config.file import Count, Positive, Section


class LoraConfig(Section):
    """Low-rank adapters on the denoiser; the frozen reference is the same denoiser with the adapters off."""

    rank: Count = 16
    """Rank of each adapter."""
    alpha: Positive = 16.0
    """Scale of each adapter: its output is multiplied by alpha / rank."""
    target_modules: tuple[str, ...] | None = Field(None, min_length=1)
    """Names (or their ends) of the linear layers that get an adapter; null takes attention's projections."""


class ModelConfig(Section):
    """The model to sharpen."""

    path: str
    """Folder in the diffusers layout, or an id on the Hugging Face hub."""
    revision: str | None = None
    """Commit or tag of a hub id; null takes the newest."""
    lora: LoraConfig | None = LoraConfig()
    """Adapters to train; null trains every weight of the denoiser."""
    t5: bool = True
    """Whether Stable Diffusion 3's T5 is loaded; without it the CLIPs alone read prompts, for less memory."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format in which the model runs; trained weights are float32 always."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass, which saves memory and costs time."""
    states_with_gradients: Count | None = None
    """Most replayed states evaluated at a time, which bounds memory; the others twice for their gradients."""
    compile: bool = False
    """Whether the denoiser's repeated blocks are compiled: minutes at the start, faster evaluations after."""
    image_size: Count | None = None
    """Side of its pictures in pixels; null takes the size the model was made for."""
    offload: bool = False
    """Whether text encoders and autoencoder wait in the host's memory and visit the device to be used."""
    decoded_at_a_time: Count | None = None
    """Most pictures decoded together, which bounds memory; null decodes a batch as a whole."""
    tiled: bool = False
    """Whether pictures larger than the autoencoder was made for are decoded in tiles, blended at seams."""
    preview_decoder: str | None = None
    """Folder or hub id of an AutoencoderTiny (as TAESD) that decodes x0 previews on the way for a fraction of
    the work; null takes the model's own autoencoder, which decodes finished pictures always."""
