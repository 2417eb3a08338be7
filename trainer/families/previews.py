"""Tiny autoencoders (diffusers' AutoencoderTiny, as TAESD), that decode previews for little work."""

import torch
from diffusers import AutoencoderTiny
from torch import nn

from trainer.families.family import Family, ModelError


def load_preview_decoder(
    path: str, family: Family, dtype: torch.dtype, *, weightless: bool = False
) -> nn.Module:
    """The autoencoder in a folder or on the hub, for previews of a family's model.

    Args:
        path: folder or hub id.
        family: whose latents it is to read.
        dtype: in which it runs.
        weightless: whether only shapes are wanted, on the meta device.

    Raises:
        ModelError: there is none, or it was made for other latents.
    """
    try:
        if weightless:
            settings = AutoencoderTiny.load_config(path)
            with torch.device("meta"):
                decoder = AutoencoderTiny.from_config(settings).to(dtype)
        else:
            decoder = AutoencoderTiny.from_pretrained(path, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot load model.preview_decoder {path!r}; give a folder or hub id of an AutoencoderTiny "
            f"({' '.join(str(error).split())})"
        ) from error
    reads = (decoder.config.latent_channels, 2 ** (len(decoder.config.decoder_block_out_channels) - 1))
    wanted = (family.latent_shape[0], family.pipeline.vae_scale_factor)
    if reads != wanted:
        raise ModelError(
            f"model.preview_decoder {path!r} reads latents of {reads[0]} channels, which it enlarges "
            f"{reads[1]} times; this model's are of {wanted[0]} and {wanted[1]}: give one made for it"
        )
    network: nn.Module = decoder.to(memory_format=torch.channels_last)  # twice as fast on CPUs
    return network.eval()
