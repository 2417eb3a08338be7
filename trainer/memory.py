"""What a rank needs of its device's memory, found by the run's own code on tensors without values.

Shapes: P prompts of a micro-batch, K branches, T steps, S replayed states, (C, h, w) a latent.
"""

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.autoencoder import decoded, encoded
from trainer.config import ModelConfig, TrainConfig
from trainer.encoded import AT_A_TIME
from trainer.families.family import Family
from trainer.families.index import check_model
from trainer.families.previews import load_preview_decoder
from trainer.families.weightless import load_weightless
from trainer.held_out import drawn_at_a_time, shares
from trainer.live_memory import AsOnDevice, LiveMemory
from trainer.optimizer import moments_bytes
from trainer.policy import Policy
from trainer.replay import replayable
from trainer.sharding import blocks_of

META = torch.device("meta")
_FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the device of the rank that needs most; with `ranks.min_workers`, when the fewest are left."""

    standing: Mapping[str, int]
    """What is there throughout, by what it is."""
    working: Mapping[str, int]
    """The most that each phase of an update, or an evaluation, needs besides, by the phase."""

    @property
    def peak(self) -> int:
        """The most that is needed at a time."""
        return sum(self.standing.values()) + max(self.working.values())


def weightless(config: TrainConfig) -> Family:
    """The model as a rank sets it up, without values. Raises ModelError, OSError where it cannot be used."""
    family = load_weightless(check_model(config.model), config.model)
    family.pipeline.vae.use_tiling = config.model.tiled
    if config.model.gradient_checkpointing:
        # What is computed again in the backward pass is not within the modes around it.
        then = AsOnDevice(getattr(torch, config.model.dtype), keeps_copies=False)
        again = functools.partial(
            checkpoint, context_fn=lambda: (contextlib.nullcontext(), then), use_reentrant=False
        )
        family.network.enable_gradient_checkpointing(again)
    return family


def memory_of(config: TrainConfig, family: Family) -> Memory:
    """What a run's tensors take of the memory of each rank's device.

    Kernels' scratch and the allocator's fragments come on top. Activations are those of one micro-batch under
    the largest number of replayed branches; autocast and attention are counted as on a GPU.

    Args:
        config: of the run.
        family: its model from `weightless`, which is made ready to be trained.

    Raises:
        ModelError: previews have no decoder that fits.
        ConfigError: its method has no step to learn.
    """
    previews = _preview_decoder(config, family)
    policy = Policy(family, ModelConfig(path=config.model.path, lora=config.model.lora), META)
    # FSDP leaves each rank as much of every weight as torch.chunk leaves the first.
    parts = [torch.atleast_1d(weight.detach()).chunk(_shares(config)) for weight in policy.parameters]
    own = [nn.Parameter(first) for first, *_ in parts]
    numbers = sum(weight.numel() for weight in own)
    frozen = _bytes_of([p for p in family.network.parameters() if not p.requires_grad])
    if config.model.lora is None:
        frozen = numbers * _width(config)  # the reference
    resident = not config.model.offload
    looks_back = config.looks_back and config.optimizer.steps_per_update > 1
    standing = {
        "denoiser": frozen + _bytes_of(family.network.buffers()),
        "trained weights": numbers * _FLOAT32,
        "Adam's moments": moments_bytes(own, config.optimizer),
        "averaged weights": numbers * _FLOAT32 if config.optimizer.ema_decay else 0,
        "weights that sampled": numbers * _FLOAT32 if looks_back else 0,
        "text encoders": _encoders_bytes(family) if resident else 0,
        "autoencoder": _module_bytes(family.pipeline.vae) if resident else 0,
        "preview decoder": _module_bytes(previews) if resident and previews else 0,
    }
    rehearsal = _Rehearsal(config, family, policy, previews)
    return Memory(standing, _working(config, rehearsal, gradients=numbers * _FLOAT32))


def chosen_branches(config: TrainConfig, prompts: int) -> int:
    """Branches of so many prompts that are replayed when no score fails and none is equal to another."""
    if config.is_paired:
        return 2 * prompts
    selection = config.selection
    weighted = selection.temperature > 0 or selection.effective_branches is not None or config.loss.baseline
    if config.method == "standard" or (config.method == "sft_sharpening" and not weighted):
        return prompts
    return prompts * config.finished_branches


def replayed_states(config: TrainConfig, family: Family) -> int:
    """S, which the steps that may be replayed bound. Raises ConfigError where there is none."""
    schedule = family.schedule(config.sampling.steps).ending(config.path_steps)
    return min(config.loss.states_per_branch, len(replayable(config, schedule)))


def _working(config: TrainConfig, rehearsal: "_Rehearsal", *, gradients: int) -> dict[str, int]:
    """The phases, given the bytes of the gradients that a rank keeps."""
    if config.data is None:
        drawn = config.prompts_at_a_time * config.branching.branches
        phases = rehearsal.drawing(config.prompts_at_a_time, drawn, config.path_steps, training=True)
    else:
        phases = {
            "encoding": rehearsal.encoding(config.prompts_at_a_time),
            "compressing": rehearsal.compressing(chosen_branches(config, config.prompts_at_a_time)),
        }
    if config.prompts.held_out:
        options = config.evaluation
        drawn = min(drawn_at_a_time(config), len(shares(options.draws, config.ranks.fewest)[0]))
        prompts = -(-drawn // options.pictures_per_prompt)
        phases["evaluating"] = max(rehearsal.drawing(prompts, drawn, config.sampling.steps).values())
    phases["learning, with gradients"] = rehearsal.learning(gradients)
    if config.ranks.workers > 1 and config.ranks.sharding == "none":
        phases["summing gradients"] = 2 * gradients  # they travel as one message
    return phases


class _Rehearsal:
    """Phases of an update on a model without values; each answers the bytes that it takes at most."""

    def __init__(
        self, config: TrainConfig, family: Family, policy: Policy, previews: nn.Module | None
    ) -> None:
        self._config, self._family, self._policy, self._previews = config, family, policy, previews
        self._as_there = AsOnDevice(getattr(torch, config.model.dtype))
        self._is_sharded = _shares(config) > 1
        # There is no autocast on the meta device; AsOnDevice stands in for that of others.
        policy.device = torch.device("cpu")
        self._text = family.encode([""], META)
        # What guidance leads away from is encoded once and kept.
        policy.__dict__["_empty"] = self._text
        if self._is_sharded:
            self._as_in_blocks()

    def drawing(self, prompts: int, pictures: int, steps: int, *, training: bool = False) -> dict[str, int]:
        """Pictures from noise, where ranks that share the denoiser have the whole of it."""
        gathered = self._gathered if self._is_sharded else 0
        # The noise of every step and the states between, which later wait in the host's memory.
        grown = 2 * self._latents(pictures).numel() * (steps + 1) * _FLOAT32
        return {
            "encoding": gathered + self.encoding(prompts),
            "sampling": gathered + grown + self._sampling(pictures),
            "decoding": gathered + grown + self._decoding(pictures, self._decoders(training=training)),
        }

    def encoding(self, prompts: int) -> int:
        with AsOnDevice(torch.float32), LiveMemory() as memory, torch.no_grad():
            self._family.encode([""] * min(prompts, AT_A_TIME), META)
        return memory.peak + (_encoders_bytes(self._family) if self._config.model.offload else 0)

    def compressing(self, pictures: int) -> int:
        vae, (_, h, w) = self._family.pipeline.vae, self._family.latent_shape
        scale = self._family.pipeline.vae_scale_factor
        blank = np.zeros((pictures, h * scale, w * scale, 3), dtype=np.uint8)
        with AsOnDevice(torch.float32), LiveMemory() as memory:
            encoded(vae, blank, META)
        return memory.peak + self._visiting(vae)

    def learning(self, gradients: int) -> int:
        config, policy = self._config, self._policy
        branches = chosen_branches(config, config.prompts_at_a_time)
        states = min(branches, config.branches_at_a_time) * replayed_states(config, self._family)
        replayed = self._latents(min(states, config.model.states_with_gradients or states))
        with self._as_there, LiveMemory() as memory:
            rows = torch.zeros(len(replayed), dtype=torch.long, device=META)
            for _ in range(2):  # the second meets the gradients of the first
                times = replayed.new_zeros(len(replayed))
                output = policy.predict(replayed, times, self._text.take(rows), config.learned_guidance)
                self._as_there.forget()
                output.square().mean().backward()
        return memory.peak + (gradients + self._blocks_under_way() if self._is_sharded else 0)

    def _sampling(self, pictures: int) -> int:
        latents, guidance = self._latents(pictures), self._config.sampling.guidance
        with self._as_there, LiveMemory() as memory, torch.no_grad():
            rows = torch.zeros(pictures, dtype=torch.long, device=META)
            self._policy.predict(latents, latents.new_zeros(pictures), self._text.take(rows), guidance)
        self._as_there.forget()
        return memory.peak

    def _decoding(self, pictures: int, decoders: Sequence[nn.Module]) -> int:
        most = []
        for vae in decoders:
            with AsOnDevice(torch.float32), LiveMemory() as memory:
                decoded(vae, self._latents(pictures), self._config.model.decoded_at_a_time)
            most.append(memory.peak + self._visiting(vae))
        return max(most)

    def _decoders(self, *, training: bool) -> list[nn.Module]:
        """What decodes; of branches that end early no picture is finished."""
        own, config = self._family.pipeline.vae, self._config
        if self._previews is None or not training:
            return [own]
        return [self._previews] if config.path_steps < config.sampling.steps else [self._previews, own]

    def _as_in_blocks(self) -> None:
        """Weights have the format in which blocks come together, and their gradients go to other ranks."""
        for weight in self._policy.parameters:
            weight.data = weight.data.to(self._as_there.dtype)
            weight.register_post_accumulate_grad_hook(_give_away)

    def _blocks_under_way(self) -> int:
        """In the backward pass: the outermost and an inner block with gradients, the next one on its way."""
        width, seen, sizes = _width(self._config), set[Tensor](), list[int]()
        for block in blocks_of(self._policy.denoiser):
            weights = set(block.parameters()) - seen
            seen |= weights
            sizes.append(sum(weight.numel() for weight in weights))
        *inner, outermost = sizes
        return outermost * 2 * width + max(inner, default=0) * (3 * width + _FLOAT32)

    @property
    def _gathered(self) -> int:
        return _bytes_of(self._policy.parameters)

    def _visiting(self, module: nn.Module) -> int:
        return _module_bytes(module) if self._config.model.offload else 0

    def _latents(self, count: int) -> Tensor:
        return torch.zeros(count, *self._family.latent_shape, device=META)


def _preview_decoder(config: TrainConfig, family: Family) -> nn.Module | None:
    path, dtype = config.model.preview_decoder, getattr(torch, config.model.dtype)
    return load_preview_decoder(path, family, dtype, weightless=True) if path else None


def _shares(config: TrainConfig) -> int:
    """In how many parts weights are held, by as few ranks as may be; one alone shares nothing."""
    return config.ranks.fewest if config.ranks.sharding == "full" else 1


def _give_away(weight: Tensor) -> None:
    weight.grad = None


def _width(config: TrainConfig) -> int:
    return int(getattr(torch, config.model.dtype).itemsize)


def _encoders_bytes(family: Family) -> int:
    parts = family.pipeline.components.items()
    return sum(_module_bytes(part) for name, part in parts if name.startswith("text_encoder") and part)


def _module_bytes(module: nn.Module) -> int:
    return _bytes_of([*module.parameters(), *module.buffers()])


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
