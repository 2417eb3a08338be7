"""The `rewards` command without a cluster: what it prints; every failure is one line and exit code 2."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image

from reward_services.app import create_app
from reward_services.cli import main
from reward_services.scorers.jpeg import JpegScorer
from reward_services.scorers.verifier import VerifierScorer


@pytest.fixture(scope="module")
def url(rewards_here: Callable[..., Any]) -> Iterator[str]:
    """A real HTTP server of two rewards."""
    app = create_app(rewards_here({"jpeg": JpegScorer(), "verifier": VerifierScorer()}))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def picture(tmp_path: Path) -> str:
    image, _ = VerifierScorer().golden()
    path = tmp_path / "picture.png"
    Image.fromarray(image).save(path)
    return str(path)


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_list(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--url", url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["jpeg", "ready"], ["verifier", "ready"]]


def test_score_by_every_reward(url: str, picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", picture, "a red circle left of a blue square", "--url", url]) == 0
    jpeg, verifier = capsys.readouterr().out.splitlines()
    assert float(jpeg.split()[1]) < 0
    assert verifier.split()[1:3] == ["1.0000", "count=1"]


def test_a_failed_score_is_said_and_is_no_success(
    url: str, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", picture, "an astronaut", "--url", url, "--reward", "verifier"]) == 2
    assert "failed: 'an astronaut' is not a caption" in capsys.readouterr().out


def test_failures_are_one_line(
    url: str, picture: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "did you mean 'jpeg'" in failure(capsys, "score", picture, "a", "--url", url, "--reward", "jpg")
    assert "is it running" in failure(
        capsys, "score", picture, "a", "--url", "http://127.0.0.1:9", "--reward", "x"
    )
    assert "cannot read" in failure(capsys, "serve", str(tmp_path / "none.yaml"))


@pytest.mark.slow
def test_serve_until_stopped(tmp_path: Path, picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "rewards.yaml"
    config.write_text(f"rewards: {{jpeg: {{scorer: jpeg, num_cpus: 0.1}}}}\nhttp: {{port: {port}}}\n")
    command = [sys.executable, "-m", "reward_services", "serve", str(config)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == f"serving jpeg at http://127.0.0.1:{port}; Ctrl-C stops them\n"
        assert main(["score", picture, "a", "--url", f"http://127.0.0.1:{port}"]) == 0
        assert capsys.readouterr().out.startswith("jpeg ")
        server.send_signal(signal.SIGTERM)
        _, complaints = server.communicate(timeout=60)
    assert (server.returncode, complaints) == (130, "")


def test_help_needs_neither_ray_nor_torch() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['rewards', '--help']\n"
        "try: runpy.run_module('reward_services', run_name='__main__')\n"
        "except SystemExit: assert not {'ray', 'torch', 'fastapi'} & set(sys.modules)"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "serve" in result.stdout
