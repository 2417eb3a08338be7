"""AdamW with the settings' moments: 8-bit ones lead nearly where float32 ones do, for fewer bytes."""

import importlib.util
import sys

import pytest
import torch
from torch import Tensor

from trainer.config import ConfigError, OptimizerConfig
from trainer.optimizer import LossScale, adamw, check_moments, moments_bytes

NEEDS_BITSANDBYTES = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def start() -> list[torch.nn.Parameter]:
    """Two weights of which only the first is large enough for 8 bits."""
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((65, 100), (50,))]


def trained(options: OptimizerConfig) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
    """Twenty steps towards zero."""
    weights = start()
    optimizer = adamw(weights, options)
    for _ in range(20):
        torch.stack([weight.square().sum() for weight in weights]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights, optimizer


def moments(optimizer: torch.optim.Optimizer, weights: list[torch.nn.Parameter]) -> list[Tensor]:
    """Without what all weights have in common, and counters."""
    values = [
        value for weight in weights for name, value in optimizer.state[weight].items() if "qmap" not in name
    ]
    return [value for value in values if isinstance(value, Tensor) and value.ndim]


def test_a_step_is_adamws() -> None:
    """After one step each weight has moved by lr against its gradient's sign, less lr * decay of itself."""
    weight = torch.nn.Parameter(torch.tensor([2.0, -4.0]))
    optimizer = adamw([weight], OptimizerConfig(lr=0.1, weight_decay=0.5))
    (weight * torch.tensor([3.0, -5.0])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([2.0 * 0.95 - 0.1, -4.0 * 0.95 + 0.1]))


@pytest.mark.parametrize("kind", ["float32", pytest.param("8-bit", marks=NEEDS_BITSANDBYTES)])
def test_moments_take_what_is_planned(kind: str) -> None:
    """6500 numbers in 8 bits are 26 blocks of 256: 2 * (6500 + 26 * 4) bytes, and 2 * 50 * 4."""
    options = OptimizerConfig.model_validate({"moments": kind, "lr": 0.01})
    weights, optimizer = trained(options)
    held = sum(moment.nbytes for moment in moments(optimizer, weights))
    assert held == moments_bytes(weights, options) == (2 * 6550 * 4 if kind == "float32" else 13_608)


@NEEDS_BITSANDBYTES
def test_8_bit_moments_lead_nearly_where_float32_ones_do() -> None:
    (exact, small), _ = trained(OptimizerConfig(lr=0.01, weight_decay=0.1))
    (found, same), optimizer = trained(OptimizerConfig(lr=0.01, weight_decay=0.1, moments="8-bit"))
    assert {moment.dtype for moment in moments(optimizer, [found])} == {torch.uint8, torch.float32}
    torch.testing.assert_close(same, small, atol=1e-5, rtol=1e-4)
    moved = (exact - start()[0]).norm()
    assert 0 < (found - exact).norm() < 0.05 * moved


def test_8_bit_moments_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)  # as if it were not installed
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        adamw(start(), OptimizerConfig(moments="8-bit"))
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        check_moments(OptimizerConfig(moments="8-bit"))
    check_moments(OptimizerConfig())


def test_a_loss_scale_rises_slowly_and_halves_down_to_one() -> None:
    scale = LossScale(4.0, is_dynamic=True, patience=2)
    weight = torch.nn.Parameter(torch.ones(3))
    (weight.sum() * scale.factor).backward()
    scale.unscale([weight])
    assert weight.grad is not None
    assert weight.grad.tolist() == [1, 1, 1]
    for _ in range(3):
        scale.succeeded()
    assert (scale.factor, scale.in_a_row) == (8, 1)
    assert [scale.lower() for _ in range(4)] == [True, True, True, False]
    assert (scale.factor, scale.in_a_row) == (1, 0)
    assert (LossScale.of("float16").lower(), LossScale.of("bfloat16").lower()) == (True, False)
