"""Line charts as inline SVG, coloured by the page's CSS variables: axes, ticks, legend, no scripts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 34, 40


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points (x, y) in order of x."""

    label: str
    """Its name in the legend; empty leaves it out."""
    points: Sequence[tuple[float, float]]
    colour: int = 1
    """Which of the page's colours --line-1, --line-2, --line-3."""
    faint: bool = False
    """Whether it stands behind, as the raw values behind their running mean."""


@dataclass(frozen=True, slots=True)
class _Axes:
    """The data's window and how it maps to the drawing."""

    xs: tuple[float, float]
    ys: tuple[float, float]

    def x(self, value: float) -> float:
        return _LEFT + (value - self.xs[0]) / (self.xs[1] - self.xs[0]) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return (
            _HEIGHT - _BOTTOM - (value - self.ys[0]) / (self.ys[1] - self.ys[0]) * (_HEIGHT - _TOP - _BOTTOM)
        )


def line_chart(
    series: Sequence[Series], *, name: str, x_label: str = "update", percent: bool = False
) -> Markup:
    """An SVG of the series, y in percent when asked. Raises ValueError when no series has a point."""
    points = [point for line in series for point in line.points]
    if not points:
        raise ValueError(f"chart {name!r} has no points")
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), count=6)
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points), count=4)
    axes = _Axes((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            _WIDTH, _HEIGHT, name
        ),
        _grid(axes, x_ticks, y_ticks, percent),
        Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}</text>').format(
            _WIDTH - _RIGHT, _HEIGHT - 6, x_label
        ),
        *(_line(axes, line) for line in series if line.points),
        _legend([line for line in series if line.points and line.label]),
        Markup("</svg>"),
    ]
    return Markup("").join(parts)


def ticks(low: float, high: float, *, count: int) -> list[float]:
    """About `count` numbers that enclose low to high, spaced by 1, 2, 2.5 or 5 times a power of ten."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # equal, but for rounding
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def running_mean(points: Sequence[tuple[float, float]], *, window: int) -> list[tuple[float, float]]:
    """Each point's y replaced by the mean of the last `window` of them."""
    ys = [y for _, y in points]
    starts = (max(0, end - window) for end in range(1, len(ys) + 1))
    return [
        (x, math.fsum(ys[start:end]) / (end - start))
        for end, (start, (x, _)) in enumerate(zip(starts, points, strict=True), start=1)
    ]


def _grid(axes: _Axes, x_ticks: Sequence[float], y_ticks: Sequence[float], percent: bool) -> Markup:
    horizontal = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
    y_text = Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>')
    x_text = Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{:g}</text>')
    lines = [horizontal.format(_LEFT, _WIDTH - _RIGHT, axes.y(y), axes.y(y)) for y in y_ticks]
    names = [
        y_text.format(_LEFT - 8, axes.y(y) + 4, f"{y:.4g}" if not percent else f"{100 * y:.3g} %")
        for y in y_ticks
    ]
    numbers = [x_text.format(axes.x(x), _HEIGHT - _BOTTOM + 17, round(x, 9)) for x in x_ticks]
    return Markup("").join([*lines, *names, *numbers])


def _line(axes: _Axes, line: Series) -> Markup:
    style = Markup("line-{} {}").format(line.colour, "faint" if line.faint else "")
    path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in line.points)
    drawn = Markup('<polyline class="{}" points="{}"/>').format(style, path)
    # A few points (evaluations) are marked; hundreds (updates) would be a caterpillar.
    if len(line.points) > 15:
        return drawn
    dot = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.2"/>')
    return drawn + Markup("").join(dot.format(style, axes.x(x), axes.y(y)) for x, y in line.points)


def _legend(series: Sequence[Series]) -> Markup:
    x, parts = float(_LEFT), []
    for line in series:
        style = Markup("line-{} {}").format(line.colour, "faint" if line.faint else "")
        parts.append(Markup('<line class="{}" x1="{}" x2="{}" y1="16" y2="16"/>').format(style, x, x + 18))
        parts.append(Markup('<text class="label" x="{}" y="20">{}</text>').format(x + 24, line.label))
        x += 24 + 7 * len(line.label) + 22
    return Markup("").join(parts)
