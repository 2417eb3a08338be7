"""What a run spends: time by phase, evaluations, reward calls, memory; and on how many devices."""

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import torch

Phase = Literal["sampling_s", "reward_stall_s", "learning_s", "evaluation_s"]

# Linux: "5" sets the high-water mark of resident memory, VmHWM, back to what is resident (man 5 proc).
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(slots=True)
class Costs:
    """Sums since the run began; times are this rank's wall seconds."""

    sampling_s: float = 0.0
    """Growing branches."""
    decoding_s: float = 0.0
    """Decoding their previews."""
    reward_stall_s: float = 0.0
    """Waiting for scores with nothing else to do."""
    learning_s: float = 0.0
    """Replaying chosen branches, backward passes and optimizer steps."""
    evaluation_s: float = 0.0
    """Drawing held-out pictures and having them judged."""
    unet_evaluations: int = 0
    """Pictures times evaluations of the UNet in training, with and without gradients."""
    images_scored: int = 0
    """Previews sent to be scored in training."""
    images_given: int = 0
    """Given pictures that updates learned from, both of a pair."""
    reward_calls: int = 0
    """Batches sent to a reward, those of evaluations included."""
    cache_hits: int = 0
    """Scores that were known already, those of evaluations included."""
    sampling_peak_bytes: int = 0
    """Most memory of the device of a rank, or of its process where that is the CPU, while sampling."""
    learning_peak_bytes: int = 0
    """The same while learning."""
    evaluation_peak_bytes: int = 0
    """The same while evaluating."""

    @contextlib.contextmanager
    def timed(self, phase: Phase) -> Iterator[None]:
        """Add the time spent in this block to a phase, and note how much memory it needed."""
        start, peak = time.perf_counter(), phase.removesuffix("_s") + "_peak_bytes"
        forget_peak()
        try:
            yield
        finally:
            setattr(self, phase, getattr(self, phase) + time.perf_counter() - start)
            if hasattr(self, peak):
                setattr(self, peak, max(getattr(self, peak), recent_peak_bytes()))

    @property
    def training_s(self) -> float:
        """Time spent in updates."""
        return self.sampling_s + self.decoding_s + self.reward_stall_s + self.learning_s

    @property
    def stall_fraction(self) -> float:
        """Share of the updates' time that was spent waiting for scores."""
        return self.reward_stall_s / self.training_s if self.training_s else 0.0

    @property
    def images(self) -> int:
        """What updates were made of: previews that were scored, or pictures that were given."""
        return self.images_scored + self.images_given

    def __add__(self, more: "Costs") -> "Costs":
        """Of two stretches of a run, together."""
        return Costs(
            **{name: _together(name, [value, getattr(more, name)]) for name, value in asdict(self).items()}
        )

    @classmethod
    def of_ranks(cls, costs: Sequence[Self]) -> "Costs":
        """Counts summed over ranks, times averaged: ranks spend them side by side; of peaks the highest."""
        total = Costs()
        for field in fields(cls):
            spent = _together(field.name, [getattr(cost, field.name) for cost in costs])
            setattr(total, field.name, spent / len(costs) if field.name.endswith("_s") else spent)
        return total


@dataclass(frozen=True, slots=True)
class Devices:
    """What processes reserve to compute on; half a GPU is half a device."""

    gpus: float = 0.0
    cpus: float = 0.0
    """CPU cores."""

    @property
    def kind(self) -> Literal["GPU", "CPU core"]:
        """GPUs are the devices where one is reserved: the cores beside them feed them. Else cores are."""
        return "GPU" if self.gpus else "CPU core"

    @property
    def count(self) -> float:
        """How many of that kind."""
        return self.gpus or self.cpus

    def __add__(self, more: "Devices") -> "Devices":
        """Of both together."""
        return Devices(self.gpus + more.gpus, self.cpus + more.cpus)

    def __mul__(self, processes: float) -> "Devices":
        """Of so many processes alike."""
        return Devices(processes * self.gpus, processes * self.cpus)


def panel(spent: Costs, devices: Devices) -> dict[str, float]:
    """The cost panel of an update or a run.

    Args:
        spent: by all ranks, as `Costs.of_ranks` has it.
        devices: of ranks and rewards together, so that waiting less by more devices is no gain.

    Returns:
        The costs, `stall_fraction`, and `images_per_second` of training with the same `_per_device`: of
        previews scored, or of given pictures learned. What has no image has no speed; costs of given pictures
        and of evaluations are left out where there were none.
    """
    figures = {**asdict(spent), "stall_fraction": spent.stall_fraction}
    for name in ("images_given", "evaluation_s", "evaluation_peak_bytes"):
        if not figures[name]:
            del figures[name]
    if spent.images and spent.training_s:
        speed = spent.images / spent.training_s
        figures |= {"images_per_second": speed, "images_per_second_per_device": speed / devices.count}
    return figures


def budgeted(costs: Costs) -> dict[str, float]:
    """What a budget may limit, by its name in the configuration."""
    return {
        "training_s": costs.training_s,
        "unet_evaluations": costs.unet_evaluations,
        "images_scored": costs.images_scored,
    }


def forget_peak() -> None:
    """Begin to look for the largest memory anew, where the system can: CUDA and Linux."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        with contextlib.suppress(OSError):  # a container may forbid it
            _CLEAR.write_text("5", encoding="ascii")


def recent_peak_bytes() -> int:
    """Largest memory since it was forgotten: of CUDA's tensors, else of the process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if not _STATUS.exists():
        return peak_memory_bytes()
    lines = (line.split() for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == "VmHWM:"), peak_memory_bytes())


def _together(name: str, values: Sequence[Any]) -> Any:
    """Peaks are not added up."""
    return max(values) if name.endswith("_bytes") else sum(values)


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
