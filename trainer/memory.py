"""What a rank needs of its device's memory, found by the run's own code on tensors without values.

Shapes: P prompts of a micro-batch, K branches, T steps, S replayed states, (C, h, w) a latent.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakIdKeyDictionary

from trainer.autoencoder import decoded
from trainer.config import TrainConfig
from trainer.families.family import Family
from trainer.families.weightless import load_weightless
from trainer.optimizer import moments_bytes
from trainer.policy import Policy, check_model

META = torch.device("meta")
_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the device of one rank."""

    standing: Mapping[str, int]
    """What is there throughout, by what it is."""
    working: Mapping[str, int]
    """The most that each phase of an update needs besides, by the phase."""

    @property
    def peak(self) -> int:
        """The most that is needed at a time."""
        return sum(self.standing.values()) + max(self.working.values())


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the tensors made within it, while they live; those made before are not counted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.live = self.peak = 0
        self._known = WeakIdKeyDictionary()

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


def memory_of(config: TrainConfig) -> Memory:
    """What a run's tensors take of the memory of each rank's device.

    Kernels' scratch and the allocator's fragments come on top. Activations are those of one micro-batch under
    the largest number of replayed branches; autocast and attention are counted as on a GPU.

    Raises:
        ModelError, OSError: the model cannot be used.
    """
    family = load_weightless(check_model(config.model), config.model)
    text_encoders = [
        part for name, part in family.pipeline.components.items() if name.startswith("text_encoder") and part
    ]
    vae = family.pipeline.vae
    vae.use_slicing = config.model.decoding != "whole"
    vae.use_tiling = config.model.decoding == "tiled"
    as_there = AsOnDevice(getattr(torch, config.model.dtype))
    if config.model.gradient_checkpointing:
        # What is computed again in the backward pass is not within the modes around it.
        then = AsOnDevice(as_there.dtype, keeps_copies=False)
        again = functools.partial(
            checkpoint, context_fn=lambda: (contextlib.nullcontext(), then), use_reentrant=False
        )
        family.network.enable_gradient_checkpointing(again)
    policy = Policy(family, config.model.lora, META)
    frozen = _bytes_of(family.network, trained=False)
    if config.model.lora is None:
        frozen += sum(parameter.numel() for parameter in policy.parameters) * _width(config)
    trained = sum(parameter.numel() for parameter in policy.parameters) * _FLOAT32
    moments = moments_bytes(policy.parameters, config.optimizer)
    whole = frozen + trained  # what a rank gathers to sample
    if config.ranks.sharding == "full":
        frozen, trained, moments = (size // config.ranks.workers for size in (frozen, trained, moments))
    encoders = sum(_bytes_of(encoder) for encoder in text_encoders)
    standing = {
        "denoiser": frozen,
        "trained weights": trained,
        "Adam's moments": moments,
        "averaged weights": trained if config.optimizer.ema_decay else 0,
        "text encoders": 0 if config.model.offload else encoders,
        "autoencoder": 0 if config.model.offload else _bytes_of(vae),
    }
    visiting = {"encoding": encoders, "decoding": _bytes_of(vae)} if config.model.offload else {}
    if config.ranks.sharding == "full":
        visiting |= {"sampling": whole}
    working = _working(config, family, policy, as_there)
    return Memory(standing, {name: size + visiting.get(name, 0) for name, size in working.items()})


def chosen_branches(config: TrainConfig, prompts: int) -> int:
    """Branches of so many prompts that are replayed when no score fails and none is equal to another."""
    if config.is_paired:
        return 2 * prompts
    selection = config.selection
    weighted = selection.temperature > 0 or selection.effective_branches is not None or config.loss.baseline
    if config.method == "standard" or (config.method == "sft_sharpening" and not weighted):
        return prompts
    return prompts * config.finished_branches


def replayed_states(config: TrainConfig) -> int:
    """S, which the replayed steps may bound."""
    first, last = config.replayed_steps
    return min(config.loss.states_per_branch, last - first)


def micro_batch(config: TrainConfig) -> int:
    """P."""
    return min(
        config.branching.prompts_per_micro_batch, config.branching.prompts_per_update // config.ranks.workers
    )


def _working(config: TrainConfig, family: Family, policy: Policy, as_there: AsOnDevice) -> dict[str, int]:
    prompts, branches = micro_batch(config), config.branching.branches
    at_a_time = min(chosen_branches(config, prompts), config.branches_at_a_time)
    latents = _latents(family, prompts * branches)
    # There is no autocast on the meta device; AsOnDevice stands in for that of others.
    policy.device = torch.device("cpu")
    with as_there:
        with LiveMemory() as encoding, torch.no_grad():
            text = family.encode([""], META)
        rows = torch.zeros(prompts * branches, dtype=torch.long, device=META)
        guidance, step = config.sampling.guidance, latents.new_zeros(len(latents))
        # What guidance leads away from is encoded once and kept.
        policy.__dict__["_empty"] = text
        with LiveMemory() as sampling, torch.no_grad():
            policy.predict(latents, step, text.take(rows), guidance)
        as_there.forget()
        with LiveMemory() as decoding:
            decoded(family.pipeline.vae, latents)
        with LiveMemory() as learning:
            states = at_a_time * replayed_states(config)
            replayed = _latents(family, min(states, config.model.states_with_gradients or states))
            rows = torch.zeros(len(replayed), dtype=torch.long, device=META)
            for _ in range(2):  # the second meets the gradients of the first
                output = policy.predict(
                    replayed, replayed.new_zeros(len(replayed)), text.take(rows), guidance
                )
                as_there.forget()
                output.square().mean().backward()
    # The noise of every step and the states between, which later wait in the host's memory.
    grown = 2 * latents.numel() * (config.path_steps + 1) * _FLOAT32
    return {
        "encoding": encoding.peak,
        "sampling": sampling.peak + grown,
        "decoding": decoding.peak + grown,
        "learning, with gradients": learning.peak,
    }


def _latents(family: Family, count: int) -> Tensor:
    return torch.zeros(count, *family.latent_shape, device=META)


def _width(config: TrainConfig) -> int:
    return int(getattr(torch, config.model.dtype).itemsize)


def _bytes_of(module: nn.Module, *, trained: bool | None = None) -> int:
    parameters = [p for p in module.parameters() if trained is None or p.requires_grad == trained]
    return sum(tensor.numel() * tensor.element_size() for tensor in [*parameters, *module.buffers()])


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
