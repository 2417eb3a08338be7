"""Writes a comparison: summary.json, a table for each budget (csv, markdown), and compare.html."""

import base64
import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from trainer.charts import Series, line_chart
from trainer.compare.figures import AXES, summarise
from trainer.config.comparison import CompareConfig
from trainer.written import write_whole

TITLES = {
    "training_s": "seconds of training",
    "unet_evaluations": "evaluations of the denoiser in training",
    "images_scored": "pictures scored in training",
}
COLOURS = 12
_SHOWN = 12
"""Prompts in the grid of pictures."""
_COLUMNS = (
    "method",
    "seeds",
    "accuracy",
    "accuracy 95 %",
    "reward",
    "reward 95 %",
    "diversity",
    "NFE",
    *AXES,
)


def write_comparison(comparison: CompareConfig) -> Path:
    """Write what is known so far; returns the page's path, or that of summary.json before there is a run."""
    summary = summarise(comparison)
    folder = comparison.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "summary.json"
    write_whole(path, json.dumps(summary, indent=2))
    if not summary["runs"]:
        return path
    for axis, table in summary["tables"].items():
        rows = [cells(row) for row in table["rows"]]
        file = io.StringIO()
        csv.writer(file).writerows([_COLUMNS, *rows])
        write_whole(folder / f"table-{axis}.csv", file.getvalue())
        write_whole(folder / f"table-{axis}.md", markdown(rows))
    page = folder / "compare.html"
    write_whole(page, html(comparison, summary))
    return page


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of a table as text, in the order of its columns."""
    accuracy, reward, diversity = row["accuracy"], row["reward"], row["diversity"]
    spent = [f"{row['spent'][axis]:.0f}" for axis in AXES]
    return [
        row["name"],
        str(row["seeds"]),
        _mean(accuracy, 3),
        _interval(accuracy, 3),
        _mean(reward, 2),
        _interval(reward, 2),
        _mean(diversity, 3),
        str(row["evaluations_per_picture"]),
        *spent,
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table that people read in a README."""
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def html(comparison: CompareConfig, summary: Mapping[str, Any]) -> str:
    """One self-contained page; it loads and runs nothing."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = [row["name"] for row in summary["tables"][AXES[0]]["rows"]]
    colours = {name: 1 + place % COLOURS for place, name in enumerate(names)}
    text: str = environment.get_template("compare.html.j2").render(
        seeds=summary["seeds"],
        colours=colours,
        columns=_COLUMNS,
        tables=[
            {
                "title": TITLES[axis],
                "limit": f"{table['limit']:.0f}",
                "rows": [cells(row) for row in table["rows"]],
                "lacks": any(row["reward"] is None for row in table["rows"]),
            }
            for axis, table in summary["tables"].items()
        ],
        charts=[chart for axis in AXES for chart in curves(summary["runs"], axis, colours)],
        quality=quality(summary["tables"][AXES[0]]["rows"], colours),
        grid=grid(comparison, list(summary["runs"])),
        configs={
            name: Path(path).read_text(encoding="utf-8")
            for name, path in summary["configs"].items()
            if Path(path).exists()
        },
    )
    return text


def curves(runs: Mapping[str, Any], axis: str, colours: Mapping[str, int]) -> list[Markup]:
    """Accuracy and reward against one budget: each method's mean over seeds, evaluation by evaluation."""
    charts = []
    for figure, percent in (("accuracy", True), ("reward", False)):
        series = [
            Series("", _means(of_method, axis, figure), colours[name]) for name, of_method in runs.items()
        ]
        series = [line for line in series if len(line.points) > 1 and line.points[-1][0] > 0]
        if series:
            title = f"{figure} against {TITLES[axis]}"
            charts.append(line_chart(series, name=title, x_label=title, percent=percent))
    return charts


def quality(rows: Sequence[Mapping[str, Any]], colours: Mapping[str, int]) -> Markup | None:
    """Accuracy against evaluations per picture when the model is used: a point for each row."""
    points = [
        Series(
            "",
            [(math.log10(row["evaluations_per_picture"]), row["accuracy"]["mean"])],
            colours[row["name"]],
        )
        for row in rows
        if row["accuracy"]
    ]
    title = "accuracy against log10 of the evaluations per picture"
    return line_chart(points, name=title, x_label=title, percent=True) if points else None


def grid(comparison: CompareConfig, names: Sequence[str]) -> list[dict[str, Any]]:
    """The same prompts and seeds by each method's run on the first seed, before training first."""
    folders = {name: comparison.place(name, comparison.seeds[0]) / "report" for name in names}
    listed = next(iter(folders.values())) / "pictures.json"
    if not listed.exists():
        return []
    rows = []
    for picture in json.loads(listed.read_text(encoding="utf-8"))[:_SHOWN]:
        before = next(iter(folders.values())) / picture["before"]
        columns = [("base", before), *((name, folder / picture["after"]) for name, folder in folders.items())]
        shown = [{"name": name, "image": _embedded(path)} for name, path in columns if path.exists()]
        rows.append({"prompt": picture["prompt"], "pictures": shown})
    return rows


def _means(
    of_method: Sequence[Sequence[Mapping[str, Any]]], axis: str, figure: str
) -> list[tuple[float, float]]:
    """Evaluation by evaluation, as many as every seed has."""
    points = []
    for place in range(min(len(points_of_run) for points_of_run in of_method)):
        at = [points_of_run[place] for points_of_run in of_method]
        if all(point[figure] is not None for point in at):
            xs, ys = [point["spent"].get(axis, 0.0) for point in at], [point[figure] for point in at]
            points.append((sum(xs) / len(xs), sum(ys) / len(ys)))
    return points


def _mean(estimate: Mapping[str, Any] | None, digits: int) -> str:
    return "" if estimate is None else f"{estimate['mean']:.{digits}f}"


def _interval(estimate: Mapping[str, Any] | None, digits: int) -> str:
    if estimate is None or estimate["low"] is None:
        return ""
    return f"{estimate['low']:.{digits}f} to {estimate['high']:.{digits}f}"


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
