"""Adapters become part of the weights and leave them as they were."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from trainer import adapters
from trainer.config import ConfigError, LoraConfig, ModelConfig
from trainer.policy import Policy


@pytest.fixture
def policy(pipelines: dict[str, Path]) -> Policy:
    """Its adapters are far from untrained."""
    policy = Policy.load(ModelConfig(path=str(pipelines["epsilon"]), lora=LoraConfig(rank=4)))
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.parameters:
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def predicted(policy: Policy) -> Tensor:
    sample = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return policy.predict(sample, torch.tensor([500, 100]), policy.encode(["a red circle", "a cat"]), 1.0)


def test_merged_adapters_say_the_same_and_leave_the_weights_as_they_were(policy: Policy) -> None:
    weights = {name: tensor.clone() for name, tensor in policy.denoiser.state_dict().items()}
    apart = predicted(policy)
    with policy.reference():
        assert float((predicted(policy) - apart).abs().max()) > 1e-2
    with policy.sampling():
        changed = [
            name for name, tensor in policy.denoiser.state_dict().items() if (tensor != weights[name]).any()
        ]
        torch.testing.assert_close(predicted(policy), apart, atol=1e-4, rtol=1e-4)
    assert changed
    assert all(torch.equal(tensor, weights[name]) for name, tensor in policy.denoiser.state_dict().items())
    assert torch.equal(predicted(policy), apart)


def test_weights_come_back_when_sampling_fails(policy: Policy) -> None:
    apart = predicted(policy)
    with pytest.raises(KeyError), policy.sampling():
        raise KeyError
    assert torch.equal(predicted(policy), apart)


def test_numbers_that_would_be_rounded_are_not_merged(pipelines: dict[str, Path]) -> None:
    policy = Policy.load(
        ModelConfig(path=str(pipelines["epsilon"]), lora=LoraConfig(rank=4), dtype="bfloat16")
    )
    before = {name: tensor.clone() for name, tensor in policy.denoiser.state_dict().items()}
    for parameter in policy.parameters:
        parameter.data.fill_(1.0)
    trained = {
        name for name, tensor in policy.denoiser.state_dict().items() if (tensor != before[name]).any()
    }
    with adapters.merged(policy.denoiser):
        now = policy.denoiser.state_dict()
        assert {name for name, tensor in now.items() if (tensor != before[name]).any()} == trained


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_disabled_adapters_change_nothing_and_come_back(
    pipelines: dict[str, Path], dtype: Literal["float32", "bfloat16"]
) -> None:
    config = ModelConfig(path=str(pipelines["epsilon"]), lora=LoraConfig(rank=4), dtype=dtype)
    policy = Policy.load(config)
    untrained = predicted(policy)
    for parameter in policy.parameters:
        parameter.data.fill_(0.1)
    trained = predicted(policy)
    assert not torch.equal(trained, untrained)
    with policy.reference():
        assert torch.equal(predicted(policy), untrained)
    with pytest.raises(KeyError), policy.reference():
        raise KeyError
    assert torch.equal(predicted(policy), trained)
    assert all(parameter.requires_grad for parameter in policy.parameters)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("to_q", "to_qq"), "no layer's name ends in 'to_qq'; names end in to_q"),
        (("o_q",), "no layer's name ends in 'o_q'"),
        (("attentions",), "no layer's name ends in 'attentions'; names end in .*, or leave it out"),
    ],
)
def test_a_name_of_no_layer_is_refused(
    pipelines: dict[str, Path], targets: tuple[str, ...], message: str
) -> None:
    """Also where others are found, which peft would not mention, and where it is that of a block."""
    config = ModelConfig(path=str(pipelines["epsilon"]), lora=LoraConfig(target_modules=targets))
    with pytest.raises(ConfigError, match=message):
        Policy.load(config)


def test_layers_are_named_by_their_ends(pipelines: dict[str, Path]) -> None:
    targets = ("attn1.to_q", "to_out.0", "conv_in")
    config = ModelConfig(path=str(pipelines["epsilon"]), lora=LoraConfig(target_modules=targets))
    found = {name.partition(".lora_")[0] for name, _ in adapted(Policy.load(config))}
    assert all(name.endswith(targets) for name in found)
    assert len(found) > len(targets)


def adapted(policy: Policy) -> list[tuple[str, Tensor]]:
    return [(name, weight) for name, weight in policy.denoiser.named_parameters() if weight.requires_grad]


def test_autocast_says_what_casting_inputs_would(pipelines: dict[str, Path]) -> None:
    """peft's way, from bfloat16 to float32 and back, ends in the same numbers."""
    config = ModelConfig(path=str(pipelines["epsilon"]), lora=LoraConfig(rank=4), dtype="bfloat16")
    policy = Policy.load(config)
    for parameter in policy.parameters:
        parameter.data.fill_(0.1)
    found = predicted(policy)
    layers = [module for module in policy.denoiser.modules() if isinstance(module, BaseTunerLayer)]
    assert not any(layer.cast_input_dtype_enabled for layer in layers)
    for layer in layers:
        layer.cast_input_dtype_enabled = True
    assert torch.equal(predicted(policy), found)
