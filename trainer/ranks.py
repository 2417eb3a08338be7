"""What ranks do together: sum gradients, agree, gather, end. The identity when there is one rank."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


class Halted(RuntimeError):  # noqa: N818  a decision of all ranks more than an error of one
    """The run cannot go on and every rank knows it; one line that says why and what to do."""


class ScoresMissing(Halted):
    """The same for want of scores: what the run has learned is sound."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the ranks of a run; torch's default process group connects them."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This rank's share of so many things in a row, equal to the others' but for one."""
        return slice(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Add up gradients over ranks in one message.

        Losses are sums divided by global counts, so the sum is the gradient of the whole batch, and a rank
        whose prompts were all dropped takes part with zeros instead of holding up the others.
        """
        if self.world_size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])

    def total(self, value: float) -> float:
        """The sum over ranks."""
        if self.world_size == 1:
            return value
        summed = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(summed)
        return float(summed)

    def agree(self, value: bool) -> bool:
        """What rank 0 says, on every rank."""
        return bool(self.total(float(value and self.is_main)))

    def any(self, reason: str | None) -> str | None:
        """The first reason that a rank gives, on every rank."""
        return next((given for given in self.gather(reason) if given is not None), None)

    @contextlib.contextmanager
    def together(self, *errors: type[Exception], halt: type[Halted] = Halted) -> Iterator[None]:
        """Errors of these kinds in this block, on whichever rank, end the run on all ranks.

        Without it the others would wait for ever for the one that failed. Ranks must not meet within.

        Raises:
            `halt`: on every rank, with the message of the first rank that failed.
        """
        reason = None
        try:
            yield
        except errors as error:
            reason = " ".join(str(error).split()) or type(error).__name__
        if reason := self.any(reason):
            raise halt(reason)

    def collect(self, value: Value) -> list[Value]:
        """Every rank's value, in the order of ranks, on rank 0; nothing elsewhere. All ranks call it."""
        if self.world_size == 1:
            return [value]
        collected: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, collected)
        return collected or []

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered
