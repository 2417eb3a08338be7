"""The mistakes of mistakes.yaml, made in overlays that are right: each is caught by what it says there."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s import findings, kustomize

MISTAKES: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "mistakes.yaml").read_text(encoding="utf-8")
)
SERVE = "serveConfigV2"


def make(mistake: dict[str, Any]) -> list[kustomize.Document]:
    """The overlay's documents with the mistake in one of them."""
    documents = kustomize.overlay(mistake.get("overlay", "prod-gpu"))
    kind, name, *way = mistake["at"].split("/")
    document = next(one for one in documents if kustomize.named(one) == f"{kind}/{name}")
    if SERVE in way:
        config = yaml.safe_load(document["spec"][SERVE])
        put(config, way[2:], mistake)
        document["spec"][SERVE] = yaml.safe_dump(config)
    else:
        put(document, way, mistake)
    return documents


def put(value: Any, way: list[str], mistake: dict[str, Any]) -> None:
    """Set or remove what lies at the end of a way through mappings and lists."""
    *steps, last = (int(step) if step.isdigit() else step for step in way)
    for step in steps:
        value = value[step]
    if "set" in mistake:
        value[last] = mistake["set"]
    else:
        del value[last]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: str(mistake["name"]))
def test_a_mistake_is_caught(mistake: dict[str, Any]) -> None:
    found = findings.of_overlay(make(mistake))
    assert any(mistake["caught"] in line for line in found), found


def test_mistakes_are_many_and_different() -> None:
    assert len({mistake["name"] for mistake in MISTAKES}) == len(MISTAKES) >= 30
