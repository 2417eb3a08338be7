"""report.html: one self-contained page of what a run did to its model, drawn from the run folder.

Reads `summary.json`, `metrics.jsonl`, `evaluations/`, `config.yaml` and, in `report/`:
  pictures.json   [{"prompt", "category", "before", "after", "correct_before", "correct_after"}]
  branches.json   [{"prompt", "update", "branches": [{"return", "weight", "previews": [...]}]}]
                  with a preview being {"step", "image", "scores": {reward: score}}
where "before", "after" and "image" are PNGs, named from `report/`. Whatever is absent is left out.
Prompts are data: everything is escaped, and the page may load and run nothing.
"""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from trainer.cost_panel import costs, device_note, times
from trainer.curves import of_evaluations, panels, remaining_panels, window_of
from trainer.metrics import FILE_NAME, REVISIONS, read_metrics
from trainer.run_folder import RunFolder

_LARGEST_SIDE = 256
"""Pixels; larger pictures are shrunk, so that a page of SDXL pictures can still be mailed."""
_SMALL_SIDE = 128
"""Pixels up to which a picture is shown as the pixels it has."""


class ReportError(RuntimeError):
    """A run folder that no page can be made of; the message names the file and says what to do."""


def write_report(run_folder: Path) -> Path:
    """Write `run_folder/report.html` and return its path. Raises ReportError."""
    summary = _read_json(run_folder / "summary.json")
    if not isinstance(summary, dict):
        raise ReportError(f"{run_folder / 'summary.json'} is missing or no summary; finish the run first")
    metrics = read_metrics(run_folder / FILE_NAME)
    records = [*metrics, *_held_out(run_folder)]
    config = run_folder / "config.yaml"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["decimal"] = lambda value, digits: f"{value:.{digits}f}".replace("-", "−")
    environment.filters["signed"] = lambda value: f"{value:+.3f}".replace("-", "−")
    environment.filters["points"] = lambda value: f"{100 * value:+.1f} points".replace("-", "−")
    page = environment.get_template("report.html.j2").render(
        summary=summary,
        subtitle=subtitle(summary),
        control=summary.get("control"),
        headline=headline(summary),
        unscored=unscored(summary),
        categories=summary.get("accuracy_by_category", {}),
        watch=summary.get("watch"),
        panels=panels(records),
        window=window_of(len(metrics)),
        more_panels=remaining_panels(records),
        pictures=_read_json(run_folder / "report" / "pictures.json") or [],
        trees=[with_roles(tree) for tree in _read_json(run_folder / "report" / "branches.json") or []],
        image=_embedder(run_folder / "report"),
        revisions=revisions(metrics),
        times=times(summary),
        costs=costs(summary, metrics),
        device_note=device_note(summary),
        config=config.read_text(encoding="utf-8") if config.exists() else None,
    )
    path = run_folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def headline(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy, reward and diversity before and after, with the control's; the unmeasured is left out."""
    control: Mapping[str, Any] = summary.get("control") or {}
    rows = []
    for name, key, percent in (
        ("Verified accuracy", "accuracy", True),
        ("Reward", "reward", False),
        ("Diversity", "diversity", False),
        ("Diversity of correct pictures", "diversity_of_correct", False),
    ):
        before, after = (summary.get(f"{key}_{when}") for when in ("before", "after"))
        if before is None or after is None:
            continue
        control_before, control_after = (control.get(f"{key}_{when}") for when in ("before", "after"))
        control_change = None
        if control_before is not None and control_after is not None:
            control_change = control_after - control_before
        rows.append(
            {
                "name": name,
                "percent": percent,
                "before": before,
                "after": after,
                "change": after - before,
                "kept": after / before if key.startswith("diversity") and before else None,
                "control_change": control_change,
                "above_control": None if control_change is None else after - before - control_change,
            }
        )
    return rows


def unscored(summary: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Held-out pictures that rewards gave no score of, as (reward, how many, before or after)."""
    return [
        (name, count, when)
        for when in ("before", "after")
        for name, count in summary.get(f"unscored_{when}", {}).items()
    ]


def subtitle(summary: Mapping[str, Any]) -> str:
    """The run in a line."""
    wall_s = summary.get("wall_s")
    parts = [
        str(summary.get("method", "")),
        str(summary.get("model", "")),
        f"{summary['updates']} updates" if "updates" in summary else "",
        f"seed {summary['seed']}" if "seed" in summary else "",
        f"{wall_s / 60:.1f} minutes" if wall_s is not None else "",
    ]
    return " · ".join(filter(None, parts))


def revisions(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """Which rewards the run learned from, as (reward, revision, first update scored by it), in that order."""
    newest: dict[str, str] = {}
    rows = []
    for record in metrics:
        for reward, revision in record.get(REVISIONS, {}).items():
            if newest.get(reward) != revision:
                newest[reward] = revision
                rows.append((reward, revision, record["update"]))
    return rows


def with_roles(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree, each branch with a role: the heaviest is the winner, that of lowest return the loser."""
    branches = tree["branches"]
    scored = [branch for branch in branches if branch["return"] is not None]
    winner = max(scored, key=lambda branch: (branch["weight"], branch["return"]), default=None)
    loser = min(scored, key=lambda branch: branch["return"], default=None)

    def role(branch: Mapping[str, Any]) -> str:
        return "winner" if branch is winner else "loser" if branch is loser else ""

    return {**tree, "branches": [{**branch, "role": role(branch)} for branch in branches]}


def _embedder(folder: Path) -> Callable[[str], dict[str, Any]]:
    """A function from a picture's name to what an <img> needs: its data, and whether to show its pixels."""

    def embed(name: str) -> dict[str, Any]:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ReportError(f"{name} lies outside {folder}; name pictures from there")
        try:
            picture = Image.open(path).convert("RGB")
        except OSError as error:
            raise ReportError(f"{path} is not a picture ({error}); run the evaluation again") from None
        small = max(picture.size) <= _SMALL_SIDE
        picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
        encoded = io.BytesIO()
        picture.save(encoded, format="PNG" if small else "JPEG")
        kind = "png" if small else "jpeg"
        data = base64.b64encode(encoded.getvalue()).decode()
        return {"src": f"data:image/{kind};base64,{data}", "pixelated": small}

    return embed


def _held_out(run_folder: Path) -> list[dict[str, Any]]:
    """The records of its evaluations."""
    try:
        return of_evaluations(RunFolder(run_folder).evaluations())
    except (ValueError, KeyError, TypeError) as error:
        raise ReportError(
            f"{run_folder / 'evaluations'} holds a file that is no evaluation ({error}); delete it"
        ) from None


def _read_json(path: Path) -> Any:
    """What the file holds; None when there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ReportError(f"{path} is not JSON ({error}); run the evaluation again") from None
