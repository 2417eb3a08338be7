"""The cost panel of a report: where time went, what was used, on how much, in all and in a median update."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TIMES = {
    "sampling_s": "sampling",
    "decoding_s": "decoding previews",
    "reward_stall_s": "waiting for rewards",
    "learning_s": "learning",
    "evaluation_s": "evaluation",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """A row of the panel, for people."""

    what: str
    run: str
    update: str | None
    """Of a median update; None where updates do not have it."""
    share: str | None = None
    """Of the run's time; None of what is no time."""


def times(summary: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Where the wall-clock time went, as (what, seconds), the rest last; empty when it was not measured."""
    measured = [(label, float(summary[key])) for key, label in _TIMES.items() if key in summary]
    rest = float(summary.get("wall_s", 0)) - sum(seconds for _, seconds in measured)
    return [*measured, ("everything else", rest)] if measured and rest > 0 else measured


def costs(summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[Cost]:
    """The rows, of what was measured: `summary` tells of the run, `metrics` of its updates."""
    total_s = sum(seconds for _, seconds in times(summary)) or 1.0
    rows = [
        Cost(
            label,
            f"{summary[key]:.1f} s",
            _median(metrics, key, _seconds),
            _percent(summary[key] / total_s),
        )
        for key, label in _TIMES.items()
        if key in summary
    ]
    return rows + [
        Cost(label, shown(summary[key]), _median(metrics, key, shown))
        for key, label, shown in _USED
        if key in summary
    ]


def device_note(summary: Mapping[str, Any]) -> str | None:
    """Which devices are meant where a cost is "per device"; None where it was not noted."""
    if "devices" not in summary:
        return None
    devices = f"Devices: {summary['devices']:g} × {summary['device']}"
    if summary["reward_devices"] is None:
        return f"{devices} of the ranks; the rewards run elsewhere on devices that are not known here."
    return f"{devices}, {summary['reward_devices']:g} of them for the rewards."


def _median(metrics: Sequence[Mapping[str, Any]], key: str, shown: Callable[[float], str]) -> str | None:
    if key.startswith("evaluation_"):  # between updates, of few of them
        return None
    values = [record[key] for record in metrics if record.get(key) is not None]
    return shown(statistics.median(values)) if values else None


def _seconds(value: float) -> str:
    return f"{value:.3g} s"


def _count(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f")


def _speed(value: float) -> str:
    return f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _memory(value: float) -> str:
    return f"{value / 2**30:.2f} GiB"


_USED = (
    ("stall_fraction", "share of updates spent waiting for rewards", _percent),
    ("unet_evaluations", "UNet evaluations", _count),
    ("images_scored", "images scored", _count),
    ("images_given", "given images learned", _count),
    ("images_per_second", "images per second of training", _speed),
    ("images_per_second_per_device", "images per second and device", _speed),
    ("rows_left_out", "rows of the data left out", _count),
    ("reward_calls", "reward calls", _count),
    ("cache_hits", "scores that were known already", _count),
    ("sampling_peak_bytes", "a rank's peak memory while sampling", _memory),
    ("learning_peak_bytes", "a rank's peak memory while learning", _memory),
    ("evaluation_peak_bytes", "a rank's peak memory while evaluating", _memory),
    ("peak_memory_bytes", "peak memory of all ranks' processes", _memory),
)
