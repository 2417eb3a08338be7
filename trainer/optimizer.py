"""AdamW as the settings ask for it."""

from collections.abc import Sequence

import torch
from torch import nn

from trainer.config import ConfigError, OptimizerConfig

_BLOCK, _LEAST = 256, 4096
"""bitsandbytes' numbers that share a scale, and how many of them a tensor must have to be quantised."""


def adamw(parameters: Sequence[nn.Parameter], options: OptimizerConfig) -> torch.optim.Optimizer:
    """Decoupled weight decay (arXiv 1711.05101), its moments in float32 or in blocks of 8-bit numbers.

    Raises:
        ConfigError: 8-bit moments (arXiv 2110.02861) are asked for and bitsandbytes is not there.
    """
    if options.moments == "float32":
        return torch.optim.AdamW(
            parameters,
            lr=options.lr,
            betas=options.betas,
            weight_decay=options.weight_decay,
            fused=True,
        )
    try:
        from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415  a library that few need
    except ImportError:
        raise ConfigError(
            "optimizer.moments=8-bit needs bitsandbytes; pip install bitsandbytes, or set it to float32"
        ) from None
    quantised: torch.optim.Optimizer = AdamW8bit(
        parameters, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay
    )
    return quantised


def moments_bytes(parameters: Sequence[nn.Parameter], options: OptimizerConfig) -> int:
    """What both moments take: float32, or a byte a number and a float32 for each block."""
    sizes = [parameter.numel() for parameter in parameters]
    quantised = [size for size in sizes if options.moments == "8-bit" and size >= _LEAST]
    blocks = sum(-(-size // _BLOCK) for size in quantised)
    return 2 * (4 * (sum(sizes) - sum(quantised) + blocks) + sum(quantised))
