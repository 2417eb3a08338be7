"""The report: every part from its file, nothing from outside, prompts as data, errors in one line."""

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.evaluation import EvaluationResult
from trainer.report import ReportError, headline, revisions, write_report

HOSTILE = '<script>alert("a & b")</script>'
SUMMARY = {
    "method": "rlhf_sharpening",
    "seed": 0,
    "updates": 60,
    "wall_s": 300.0,
    "reward_before": 20.0,
    "reward_after": 22.5,
    "accuracy_before": 0.40,
    "accuracy_after": 0.55,
    "accuracy_by_category": {
        "count": {"before": 0.3, "after": 0.5},
        "spatial": {"before": 0.5, "after": 0.45},
    },
    "diversity_before": 0.4,
    "diversity_after": 0.36,
    "sampling_s": 120.0,
    "learning_s": 100.0,
    "reward_stall_s": 30.0,
    "judge": "verifier",
    "unscored_before": {},
    "unscored_after": {"verifier": 288},
    "correct_from": 0.5,
    "devices": 6.0,
    "device": "GPU",
    "reward_devices": 4.0,
    "unet_evaluations": 1234567,
    "reward_calls": 480,
    "images_scored": 9600,
    "stall_fraction": 0.1,
    "peak_memory_bytes": 3 * 2**30,
    "watch": {
        "update": 60,
        "gaps": ["the training reward rose by 1.20 standard deviations, while the judge fell"],
        "symptoms": ["dark_share went from 0.1 to 0.9"],
        "changes": [
            {
                "name": "dark_share",
                "kind": "statistic",
                "before": 0.1,
                "after": 0.9,
                "standard_error": 0.1,
                "deviations": 2.5,
            }
        ],
    },
    "control": {
        "accuracy_before": 0.40,
        "accuracy_after": 0.42,
        "date": "2026-11-20",
        "command": "sharpen train x",
    },
}


def save_picture(path: Path, size: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size=(size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def evaluation(update: int, share: float) -> dict[str, Any]:
    """20 judged pictures, as the run folder keeps them."""
    result = EvaluationResult(
        update=update,
        guidance=1.0,
        prompts=("a",) * 20,
        categories=("",) * 20,
        correct=tuple(index < share * 20 for index in range(20)),
        scores={"clip": (share,) * 20},
        diversity=None,
        statistics={"dark_share": (share,) * 20},
    )
    return asdict(result)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    def write(name: str, value: Any) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")

    write("summary.json", SUMMARY)
    lines: list[dict[str, Any]] = [
        {"update": u, "reward": 20 + u / 30, "loss": None if u == 3 else 1 / u, "lr": 1e-4}
        for u in range(1, 61)
    ]
    for update, accuracy in ((0, 0.4), (60, 0.55)):
        write(f"evaluations/{update}.json", evaluation(update, accuracy))
    lines[-1]["revisions"] = {"clip": f"1 {HOSTILE}"}
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    (tmp_path / "config.yaml").write_text(f"seed: 0  # {HOSTILE}\n", encoding="utf-8")
    pictures = [
        {
            "prompt": HOSTILE,
            "category": "count",
            "before": "before/00.png",
            "after": "after/00.png",
            "correct_before": False,
            "correct_after": True,
        }
    ]
    write("report/pictures.json", pictures)
    branches = [
        {
            "return": value,
            "weight": weight,
            "previews": [{"step": 9, "image": f"branches/{k}.png", "scores": {"clip": value}}],
        }
        for k, (value, weight) in enumerate([(1.0, 0.0), (3.0, 1.0), (None, 0.0), (-2.0, 0.0)])
    ]
    write("report/branches.json", [{"prompt": HOSTILE, "update": 5, "branches": branches}])
    for k in range(4):
        save_picture(tmp_path / f"report/branches/{k}.png", 32, k)
    save_picture(tmp_path / "report/before/00.png", 32, 7)
    save_picture(tmp_path / "report/after/00.png", 600, 8)
    return tmp_path


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_part(run_folder: Path) -> None:
    page = Page(write_report(run_folder).read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    for part in (
        "rlhf_sharpening · 60 updates · seed 0 · 5.0 minutes",
        "40.0 % → 55.0 %",
        "+15.0 points · without reward +2.0 points",
        "Measured on 2026-11-20. sharpen train x",
        "spatial 50.0 % 45.0 % −5.0 points",
        "0 of 1 before, 1 after",
        "· update 5",
        "90 % kept",
        "winner return 3.000",
        "loser return −2.000",
        "a score failed",
        "sampling120.0 s40.0 % –",
        "Devices: 6 × GPU, 4 of them for the rewards.",
        "Verified: the judge, verifier, gave the picture 0.5 or more.",
        "Not scored: verifier gave no score of 288 held-out pictures after training",
        "Every other scalar lr",
        "held_out/dark_share",
        "Gap: the training reward rose by 1.20 standard deviations, while the judge fell.",
        "To look at: dark_share went from 0.1 to 0.9.",
        "dark_sharestatistic0.1000.900 +8.0+2.50",
    ):
        assert part in text
    charts = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert charts == ["Reward", "Verified accuracy", "Loss", "Held-out clip", "lr", "held_out/dark_share"]


def test_the_page_is_self_contained_and_prompts_are_data(run_folder: Path) -> None:
    html = write_report(run_folder).read_text(encoding="utf-8")
    page = Page(html)
    assert page.text.count(HOSTILE) == 4  # grid, tree, revision, configuration
    assert "script" not in {tag for tag, _ in page.tags}
    assert not re.search(r"(?:src|href)=[\"'](?!data:)|url\(|@import", html)
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 6
    assert sum(source.startswith("data:image/jpeg") for source in sources) == 1  # the large one, shrunk
    assert sum(len(source) for source in sources) < 150_000


def test_what_is_absent_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"method": "sft_sharpening"}', encoding="utf-8")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "h2" not in {tag for tag, _ in page.tags}


def test_without_a_control_the_page_says_how_to_measure_one(run_folder: Path) -> None:
    summary = {key: value for key, value in SUMMARY.items() if key != "control"}
    (run_folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    html = write_report(run_folder).read_text(encoding="utf-8")
    assert "--set selection.by=random" in html
    assert "without reward" not in html


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("trained", "statistic"), "Not known: nothing but the training reward scored these pictures."),
        (("trained", "judge"), "No sign of it"),
        (("trained", "shadow"), "No sign of it"),
    ],
)
def test_a_reward_that_nothing_else_watched_is_not_called_sound(
    run_folder: Path, kinds: tuple[str, ...], expected: str
) -> None:
    (change,) = SUMMARY["watch"]["changes"]  # type: ignore[index]
    watch = {"gaps": [], "symptoms": [], "changes": [{**change, "kind": kind} for kind in kinds]}
    (run_folder / "summary.json").write_text(json.dumps({**SUMMARY, "watch": watch}), encoding="utf-8")
    text = " ".join(Page(write_report(run_folder).read_text(encoding="utf-8")).text.split())
    assert expected in text
    assert ("Set rewards.judge or rewards.shadows" in text) == ("No sign" not in text)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("summary.json", "[]", "finish the run first"),
        ("summary.json", "{", r"summary\.json is not JSON"),
        ("evaluations/0.json", '{"update": 0}', "holds a file that is no evaluation"),
        ("report/branches/0.png", "no picture", r"0\.png is not a picture"),
        ("report/pictures.json", '[{"prompt": "", "before": "../../x.png", "after": ""}]', "lies outside"),
    ],
)
def test_an_unusable_file_is_one_line_and_leaves_no_page(
    run_folder: Path, name: str, content: str, expected: str
) -> None:
    (run_folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ReportError, match=expected) as caught:
        write_report(run_folder)
    assert "\n" not in str(caught.value)
    assert not (run_folder / "report.html").exists()


def test_headline_subtracts_the_control() -> None:
    accuracy, reward, _ = headline(SUMMARY)
    assert accuracy["above_control"] == pytest.approx(0.13)
    assert reward["above_control"] is None


def test_a_change_of_a_reward_is_a_row() -> None:
    metrics: list[dict[str, Any]] = [
        {"update": 1, "revisions": {"clip": "1", "jpeg": "a"}},
        {"update": 2, "revisions": {"clip": "1", "jpeg": "a"}},
        {"update": 3, "revisions": {"clip": "2", "jpeg": "a"}},
        {"update": 4},
        {"update": 5, "revisions": {"clip": "1", "jpeg": "a"}},
    ]
    assert revisions(metrics) == [("clip", "1", 1), ("jpeg", "a", 1), ("clip", "2", 3), ("clip", "1", 5)]
