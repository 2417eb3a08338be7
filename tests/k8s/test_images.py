"""Dockerfiles and the compose file: linted, agreeing with the pins; (slow) their pip steps run."""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

from tests.k8s.kustomize import ROOT
from tests.k8s.wiring import pinned, project_version
from trainer.config import load_config

DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
HADOLINT = Path(sys.executable).parent / "hadolint"
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))


def instructions(text: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions, each on one line: name and arguments."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    words = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(name, arguments) for name, arguments in words]


def lint(text: str) -> list[str]:
    """What hadolint says, and what it does not look for; one line each."""
    done = subprocess.run(
        [HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    found = done.stdout.splitlines()
    steps = instructions(text)
    users = [arguments for name, arguments in steps if name == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        found.append("the user is no number above 0, which runAsNonRoot can check")
    for name, arguments in steps:
        if name == "FROM" and not re.search(r":3\.11\.\d+-", arguments):
            found.append("the base has no tag of a whole version of the tested Python")
        if re.search(r"(curl|wget)[^|&]*\|\s*(ba)?sh", arguments):
            found.append("what was fetched is run")
        torch = re.search(r"\btorch==(\S+)", arguments)
        if torch and torch.group(1) != pinned("torch"):
            found.append("another torch than the one in constraints.txt")
    return found


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.stem))
def test_a_dockerfile_has_no_finding(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert lint(text) == []
    assert f"-t diffusion-sharpening-{path.stem}:{project_version()} ." in text


@pytest.mark.parametrize(
    ("right", "wrong", "caught"),
    [
        ("USER 1000:1000", "USER root", "DL3002"),
        ("USER 1000:1000", "USER ray", "the user is no number"),
        ("python:3.11.14-slim-bookworm", "python:latest", "DL3007"),
        ("python:3.11.14-slim-bookworm", "python:3-slim", "the base has no tag"),
        ("COPY reward_services", "ADD reward_services", "DL3020"),
        ("pip install --no-cache-dir ${PIP_EXTRA_ARGS} -c", "pip install ${PIP_EXTRA_ARGS} -c", "DL3042"),
        ("-c constraints.txt '.[serve]'", "'.[serve]'", "DL3013"),
        ("torch==2.13.0", "torch==2.12.0", "another torch"),
        ("rm -rf /var/lib/apt/lists/*", "wget -qO- https://example.com/x | sh", "what was fetched is run"),
        ("WORKDIR /app", "WORKDIR app", "DL3000"),
    ],
)
def test_a_mistake_in_a_dockerfile_is_caught(right: str, wrong: str, caught: str) -> None:
    text = (ROOT / "deploy" / "docker" / "rewards.Dockerfile").read_text(encoding="utf-8")
    assert right in text
    found = lint(text.replace(right, wrong))
    assert any(caught in line for line in found), found


def test_images_hold_no_weights_but_the_embedded_worlds() -> None:
    allowed = set((ROOT / ".dockerignore").read_text(encoding="utf-8").replace("!", "").split())
    for path in DOCKERFILES:
        copied = {
            source
            for name, arguments in instructions(path.read_text(encoding="utf-8"))
            if name == "COPY"
            for source in arguments.split()[:-1]
        }
        assert copied <= allowed
    weights = [one for one in (ROOT / "deploy").rglob("*") if one.suffix in {".safetensors", ".pt", ".bin"}]
    assert all("shapes" in one.parts for one in weights)
    assert sum(one.stat().st_size for one in weights) < 32 * 2**20


def test_compose_opens_this_machine_only_and_runs_what_is_here() -> None:
    for name, service in COMPOSE["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        made = Path(service["build"]["dockerfile"]).stem
        assert service["image"] == f"diffusion-sharpening-{made}:{project_version()}"
        assert (ROOT / service["build"]["dockerfile"]).exists(), name
        assert service["cap_drop"] == ["ALL"]
    *_, file = COMPOSE["services"]["rewards"]["command"]
    assert (ROOT / file.replace("${SERVE_CONFIG:-cpu}", "cpu")).exists()
    _, _, run, *overrides = COMPOSE["services"]["trainer"]["command"]
    config = load_config(ROOT / run, [one.removeprefix("--set=") for one in overrides])
    assert config.rewards.url == "http://rewards:8000"


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.stem))
def test_the_pip_steps_of_a_dockerfile_install_what_it_runs(path: Path, tmp_path: Path) -> None:
    """Minutes and gigabytes: in a clean virtual environment, from copies of what the Dockerfile copies."""
    environment, app = tmp_path / "venv", tmp_path / "app"
    venv.create(environment, with_pip=True)
    app.mkdir()
    variables = {**os.environ, "PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "PIP_EXTRA_ARGS": ""}
    for name, arguments in instructions(path.read_text(encoding="utf-8")):
        if name == "COPY":
            for source in arguments.split()[:-1]:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, app / source)
        elif name == "RUN" and "pip install" in arguments:
            subprocess.run(["bash", "-ec", arguments], cwd=app, env=variables, check=True, timeout=3000)
    commands = ["python -c 'import reward_services.deployments'", "ray --version", "serve --help"]
    commands += ["sharpen train --help"] if path.stem == "trainer" else ["rewards --help"]
    for command in commands:
        subprocess.run(["bash", "-ec", command], cwd="/", env=variables, check=True, timeout=300)
