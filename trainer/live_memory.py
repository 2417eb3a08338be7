"""Bytes of the tensors that live within a block, those without values being as they would be on a GPU."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the tensors made within it, while they live; those made before are not counted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.live = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __enter__(self) -> Self:
        """Begin to count."""
        super().__enter__()  # type: ignore[no-untyped-call]  # torch's own
        return self

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the operation and count what it made."""
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._known.setdefault(tensor.untyped_storage(), None)
        made = func(*args, **kwargs)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._known:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._known[storage] = None
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size


class AsOnDevice(TorchFunctionMode):
    """What the meta device does otherwise than CPUs and GPUs: autocast, and attention without its matrix."""

    _LOW = (F.linear, F.conv2d, torch.matmul, torch.bmm, F.scaled_dot_product_attention)
    _HIGH = (F.layer_norm, F.group_norm, F.rms_norm, F.softmax, torch.softmax)

    def __init__(self, dtype: torch.dtype, *, keeps_copies: bool = True) -> None:
        super().__init__()
        self.dtype, self._keeps_copies = dtype, keeps_copies
        self._copies = WeakIdKeyDictionary()

    def forget(self) -> None:
        """Let go of the copies of trained weights, which autocast keeps during an evaluation."""
        self._copies.clear()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function in the number format, and by the kernel, that it would have there."""
        kwargs = kwargs or {}
        if self.dtype != torch.float32 and func in (*self._LOW, *self._HIGH):
            wanted = self.dtype if func in self._LOW else torch.float32
            args, kwargs = tree_map(lambda value: self._cast(value, wanted), (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (self._keeps_copies and value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if value not in self._copies:
            self._copies[value] = value.to(dtype)
        return self._copies[value]


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Any:
    """By a kernel that keeps no matrix of all tokens by all tokens; any of them saves what this one does."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=options.get("scale"))[0]
