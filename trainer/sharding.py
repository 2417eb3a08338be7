"""Weights that ranks share: each holds its part of a network and of what the optimizer knows of it (FSDP2).

For an evaluation the network comes together block by block and is parted again, so ranks evaluate in step:
all evaluate, with gradients or without, as often as the others. Gradients arrive summed over ranks.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import get_world_size
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def shard(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Leave each rank of the default process group its part of a network, block by block and in place.

    Args:
        network: of diffusers, the same on every rank; it need not be on the device, nor fit there.
        device: where the parts go.
        dtype: in which blocks come together; sums of gradients are float32.
    """
    # FLUX's blocks return views, of which FSDP2 warns in case the next changes them in place: none does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    mesh = init_device_mesh(device.type, (get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in blocks_of(network):
        block = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        # Losses are divided by counts over all ranks: their gradients are summed, not averaged.
        block.set_gradient_divide_factor(1.0)
        block.set_force_sum_reduction_for_comms(True)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The modules that come together one at a time, without the blocks within them; inner before outer."""
    names = set(getattr(network, "_no_split_modules", None) or ())
    modules = reversed(list(network.modules()))
    return [module for module in modules if type(module).__name__ in names or module is network]


@contextlib.contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Within this block every rank has the whole of a sharded network; all ranks enter it."""
    blocks = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for block in blocks:
        block.set_reshard_after_forward(False, recurse=False)
        block.unshard()
    try:
        yield
    finally:
        for block in blocks:
            block.set_reshard_after_forward(True, recurse=False)
            block.reshard()


def assembled(network: nn.Module, network_class: Any, *, keep: bool) -> nn.Module | None:
    """What a sharded network was, in the host's memory of the ranks that are to `keep` it; all ranks call it.

    Args:
        network: the sharded one.
        network_class: its class in diffusers, before it was sharded.
        keep: whether this rank wants it.
    """
    weights = whole(network.state_dict(), keep=keep)
    if not keep:
        return None
    with torch.device("meta"):
        one: nn.Module = network_class.from_config(network.config)
    one.load_state_dict(weights, assign=True)
    return one


def whole(state: Any, *, keep: bool = True) -> Any:
    """Nested dicts and lists with every sharded tensor made whole, in the host's memory; all ranks call it.

    A rank that is not to `keep` them has empty tensors instead, and needs the memory of one at a time.
    """

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        tensor = leaf.full_tensor().detach()
        return tensor.cpu() if keep else torch.empty(0)

    return _mapped(of, state)


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor whose rows are in several places, in order; nothing is read before it is asked for."""

    pieces: Sequence[Tensor]

    @property
    def shape(self) -> torch.Size:
        """Of the whole."""
        return torch.Size([sum(len(piece) for piece in self.pieces), *self.pieces[0].shape[1:]])

    def take(self, first: int, end: int) -> Tensor:
        """A copy of the rows from `first` to before `end`."""
        taken, begin = [], 0
        for piece in self.pieces:
            taken.append(piece[max(first - begin, 0) : max(end - begin, 0)])
            begin += len(piece)
        return torch.cat(taken)


def own(state: Any, *, is_main: bool) -> Any:
    """What one rank keeps of nested dicts and lists: its rows of every sharded tensor, as they lie in memory.

    All else is the same on every rank: rank 0 keeps it, the others have None.
    """

    def of(leaf: Any) -> Any:
        if isinstance(leaf, DTensor):
            return leaf.to_local().detach()
        return leaf if is_main else None

    return _mapped(of, state)


def is_sharded(state: Any) -> bool:
    """Whether a tensor in nested dicts and lists is shared by ranks."""
    if isinstance(state, dict | list):
        return any(map(is_sharded, state.values() if isinstance(state, dict) else state))
    return isinstance(state, DTensor)


def joined(states: Sequence[Any]) -> Any:
    """What ranks kept, in their order, as one; tensors that were sharded are `Rows`.

    Raises:
        ValueError, KeyError: the ranks did not keep the same.
    """

    def of(first: Any, *others: Any) -> Any:
        return first if not others or others[0] is None else Rows((first, *others))

    return _mapped(of, *states)


def part(saved: Tensor | Rows, like: Tensor) -> Tensor:
    """A copy of what `like` is to hold, on its device: this rank's rows where that is sharded, else all."""
    if not isinstance(like, DTensor):
        return (saved.take(0, saved.shape[0]) if isinstance(saved, Rows) else saved.clone()).to(like.device)
    # Rows are dealt as torch.chunk deals them, to the last ranks perhaps none.
    mesh, count = like.device_mesh, len(like)
    size = -(-count // mesh.size())
    first, end = (min(rank * size, count) for rank in (mesh.get_local_rank(), mesh.get_local_rank() + 1))
    rows = (saved if isinstance(saved, Rows) else Rows((saved,))).take(first, end).to(like.device)
    return DTensor.from_local(rows, mesh, like.placements, shape=like.shape, stride=like.stride())


def _mapped(change: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Nested dicts and lists like `first`, of what `change` makes of the leaves at the same place in each."""
    if isinstance(first, dict):
        return {
            name: _mapped(change, value, *(other[name] for other in others)) for name, value in first.items()
        }
    if isinstance(first, list):
        return [_mapped(change, *values) for values in zip(first, *others, strict=True)]
    return change(first, *others)
