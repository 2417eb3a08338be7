"""Low-rank adapters on a denoiser (arXiv 2106.09685); here alone peft is known."""

import contextlib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import nn

from trainer.config import ConfigError, LoraConfig


def add(network: Any, lora: LoraConfig, targets: Sequence[str]) -> None:
    """Put untrained adapters on a network of diffusers; they change nothing yet.

    Args:
        network: it is changed in place.
        lora: their rank and scale, and on which layers, unless it leaves that to
        targets: names of layers, or their ends.

    Raises:
        ConfigError: as `check_targets` says.
    """
    check_targets(network, lora)
    network.add_adapter(
        PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=list(lora.target_modules or targets),
            init_lora_weights="gaussian",
        )
    )
    for layer in _layers(network):
        # Autocast takes adapters to the format of their input. peft would take the input to float32 before,
        # which autocast takes back.
        layer.cast_input_dtype_enabled = network.dtype == torch.float32


def check_targets(network: nn.Module, lora: LoraConfig) -> None:
    """Look for the layers that are named for adapters.

    Raises:
        ConfigError: a name is that of no layer which can have one, nor such a name's end.
    """
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for target in lora.target_modules or ():
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            known = sorted({name.rpartition(".")[2] for name in layers if not name[-1].isdigit()})
            near = get_close_matches(target.rpartition(".")[2], known, n=3) or known
            raise ConfigError(
                f"model.lora.target_modules: no layer's name ends in {target!r}; names end in "
                f"{', '.join(near)}, or leave it out for attention's projections"
            )


@contextlib.contextmanager
def disabled(network: Any) -> Iterator[None]:
    """Within this block the adapters change nothing.

    peft's own switch also takes gradients from them and gives them back, which is looked up by name in all of
    the network: as slow as an evaluation of a small one.
    """
    layers = _layers(network)
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def saved(network: Any, name: str) -> dict[str, Any]:
    """What `save_lora_weights` of a pipeline takes to write the adapters of the network it calls `name`."""
    return {
        f"{name}_lora_layers": get_peft_model_state_dict(network),
        # Without it diffusers takes alpha for the rank and scales the adapters wrongly.
        f"{name}_lora_adapter_metadata": network.peft_config["default"].to_dict(),
    }


@contextlib.contextmanager
def merged(network: Any) -> Iterator[None]:
    """Within this block the adapters are part of the weights, so that an evaluation takes fewer operations.

    Only float32 holds both without loss: other networks are left as they are. Afterwards the weights are
    what they were, to the bit: copies wait in the host's memory.
    """
    weights = [layer.get_base_layer().weight for layer in _layers(network)]
    if any(weight.dtype != torch.float32 for weight in weights):
        yield
        return
    before = [weight.detach().to("cpu", copy=True) for weight in weights]
    network.fuse_lora()
    try:
        yield
    finally:
        network.unfuse_lora()
        for weight, values in zip(weights, before, strict=True):
            weight.detach().copy_(values)


def _layers(network: Any) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
