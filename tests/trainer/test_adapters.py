"""Adapters become part of the weights and leave them as they were."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer import adapters
from trainer.config import LoraConfig, ModelConfig
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
