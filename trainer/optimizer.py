"""AdamW as the settings ask for it, and the scale of the losses whose gradients it follows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

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
    quantised: torch.optim.Optimizer = _adamw_8bit()(
        parameters, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay
    )
    return quantised


def check_moments(options: OptimizerConfig) -> None:
    """Raises ConfigError as `adamw` does."""
    if options.moments == "8-bit":
        _adamw_8bit()


def moments_bytes(parameters: Sequence[nn.Parameter], options: OptimizerConfig) -> int:
    """What both moments take: float32, or a byte a number and a float32 for each block."""
    sizes = [parameter.numel() for parameter in parameters]
    quantised = [size for size in sizes if options.moments == "8-bit" and size >= _LEAST]
    blocks = sum(-(-size // _BLOCK) for size in quantised)
    return 2 * (4 * (sum(sizes) - sum(quantised) + blocks) + sum(quantised))


def _adamw_8bit() -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415  a library that few need
    except ImportError:
        raise ConfigError(
            "optimizer.moments=8-bit needs bitsandbytes; pip install bitsandbytes, or set it to float32"
        ) from None
    return AdamW8bit


@dataclass(slots=True)
class LossScale:
    """A factor on losses, so that gradients which pass through float16 do not vanish (arXiv 1710.03740).

    Halved where they overflow, doubled after `patience` gradients that did not. Other formats need none.
    """

    factor: float = 1.0
    """The gradient of a loss times this is a normal number of the format."""
    is_dynamic: bool = False
    in_a_row: int = 0
    """Gradients since the factor changed."""
    patience: int = 200
    """An overflow costs computing one gradient again and nothing else, so the factor may rise often."""

    @classmethod
    def of(cls, dtype: str) -> Self:
        """That of a model which runs in a number format, by torch's name."""
        return cls(2.0**16, is_dynamic=True) if dtype == "float16" else cls()

    def unscale(self, parameters: Sequence[nn.Parameter]) -> None:
        """Take the factor out of gradients, in place."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.factor != 1:
            torch._foreach_mul_(gradients, 1 / self.factor)

    def lower(self) -> bool:
        """After an overflow; returns whether there was anything to lower."""
        if not self.is_dynamic or self.factor <= 1:
            return False
        self.factor, self.in_a_row = self.factor / 2, 0
        return True

    def succeeded(self) -> None:
        """Count a gradient that did not overflow."""
        self.in_a_row += 1
        if self.is_dynamic and self.in_a_row >= self.patience:
            self.factor, self.in_a_row = self.factor * 2, 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"factor": self.factor, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where another stood; a checkpoint made before there was one leaves this as it is."""
        if state:
            self.factor, self.in_a_row = state["factor"], state["in_a_row"]
