"""Tensors count while they live; those without values have the formats and kernels of a GPU."""

import torch
from torch.nn import functional as F

from trainer.live_memory import AsOnDevice, LiveMemory

MIB = 2**20


def test_tensors_count_while_they_live() -> None:
    standing = torch.zeros(MIB, dtype=torch.uint8)
    with LiveMemory() as memory:
        first = standing + 1
        second = first * 2
        view = second.view(-1, 2)[1:]
        del first, second
        assert memory.live == MIB  # the view keeps the whole of it
        del view
        standing.add_(1)
    assert (memory.live, memory.peak) == (0, 2 * MIB)


def test_what_the_backward_pass_needs_counts_until_then() -> None:
    """x -> exp -> exp keeps both results for the backward pass; the gradient of x is left."""
    x = torch.zeros(MIB, requires_grad=True)
    with LiveMemory() as memory:
        loss = x.exp().exp().sum()
        assert memory.live == 2 * x.nbytes + loss.nbytes
        loss.backward()
        del loss
    assert x.grad is not None
    assert memory.live == x.nbytes


def test_numbers_have_the_format_of_autocast() -> None:
    x, weight = torch.zeros(2, 4, device="meta"), torch.zeros(3, 4, device="meta")
    with AsOnDevice(torch.bfloat16):
        low = F.linear(x, weight)
        assert low.dtype == torch.bfloat16
        assert F.layer_norm(low, (3,)).dtype == torch.float32
    with AsOnDevice(torch.float32):
        assert F.linear(x, weight).dtype == torch.float32


def test_attention_keeps_no_matrix_of_tokens_by_tokens() -> None:
    heads = torch.zeros(1, 1, 1024, 16, device="meta", requires_grad=True)
    with AsOnDevice(torch.float32), LiveMemory() as memory:
        F.scaled_dot_product_attention(query=heads, key=heads, value=heads)
    assert memory.peak < 1024 * 1024 * 4 / 10
