"""The `rewards` command without a cluster: what it prints; every failure is one line and exit code 2."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from reward_services.cli import main
from reward_services.config import Http
from reward_services.http.app import create_app
from reward_services.http.keys import Keys, new_key, parse_keys
from reward_services.scorers.jpeg import JpegScorer
from reward_services.scorers.verifier import VerifierScorer
from tests.ports import free_port


@pytest.fixture(scope="module")
def url(rewards_here: Callable[..., Any], served: Callable[..., Any]) -> Iterator[str]:
    """A real HTTP server of two rewards."""
    with served(create_app(rewards_here({"jpeg": JpegScorer(), "verifier": VerifierScorer()}))) as address:
        yield address


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


def test_one_that_has_never_answered_is_listed_with_its_reason(
    rewards_here: Callable[..., Any], served: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with served(create_app(rewards_here({"jpeg": JpegScorer()}), names=["gone", "jpeg"])) as url:
        assert main(["list", "--url", url]) == 2
        jpeg, gone = capsys.readouterr().out.splitlines()
        assert jpeg.split()[:2] == ["jpeg", "ready"]
        assert gone.split(maxsplit=2) == ["gone", "missing", "no reward 'gone'; there are: jpeg"]


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


def test_bench_prints_a_line_per_encoding_and_number_of_callers(
    url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = tmp_path / "bench.json"
    short = ["--seconds", "0.05", "--size", "8", "--images-per-request", "1", "--json", str(report)]
    assert main(["bench", url, *short, "--rewards", "jpeg"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [
        [encoding, callers]
        for encoding in ("raw", "png", "jpeg", "json")
        for callers in ("1", "4", "16", "64")
    ]
    written = json.loads(report.read_text(encoding="utf-8"))
    assert [f"{cell['images_per_s']:.1f}" for cell in written["cells"]] == [
        line.split()[2] for line in lines[2:]
    ]
    assert (written["rewards"], written["size"]) == (["jpeg"], 8)


def test_bench_says_what_failed_and_is_no_success(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The verifier reads pictures of 32 pixels only."""
    arguments = ["--seconds", "0.1", "--size", "16", "--encoding", "raw", "--concurrency", "1"]
    assert main(["bench", url, *arguments]) == 2
    assert capsys.readouterr().out.endswith("scores image-invalid\n")
    assert "did you mean 'jpeg'" in failure(capsys, "bench", url, "--rewards", "jpg")
    assert "cannot write" in failure(capsys, "bench", url, *arguments, "--json", "/nowhere/bench.json")


@pytest.mark.parametrize(
    "wrong",
    [["--encoding", "gif"], ["--concurrency", "4,0"], ["--size", "-1"], ["--images-per-request", "x"]],
)
def test_bench_refuses_what_it_cannot_measure(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "http://127.0.0.1:9", *wrong])
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_a_new_key_and_its_line_go_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """What is redirected into the file of keys is the line; the key stays on the screen."""
    assert main(["key", "new", "alice", "--lane", "train", "--images-per-minute", "600"]) == 0
    captured = capsys.readouterr()
    key = captured.err.split()[-1]
    caller = Keys(parse_keys(captured.out, where="stdout")).find(key.encode())
    assert caller is not None
    assert (caller.name, caller.lane, caller.images_per_minute) == ("alice", "train", 600)
    assert "the name 'no name'" in failure(capsys, "key", "new", "no name")


def test_the_key_of_a_server_comes_from_the_environment(
    rewards_here: Callable[..., Any],
    served: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key, line = new_key("alice")
    (tmp_path / "keys.yaml").write_text(line, encoding="utf-8")
    app = create_app(rewards_here({"jpeg": JpegScorer()}), http=Http(keys=str(tmp_path / "keys.yaml")))
    with served(app) as url:
        assert "Authorization: Bearer" in failure(capsys, "list", "--url", url)
        monkeypatch.setenv("REWARDS_API_KEY", key)
        assert main(["list", "--url", url]) == 0


@pytest.mark.slow
def test_serve_until_stopped(tmp_path: Path, picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
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


def test_what_the_machine_cannot_give_is_said_at_once(tmp_path: Path) -> None:
    """Serve would wait for another node, which never comes where Ray was started for this command."""
    config = tmp_path / "rewards.yaml"
    reward = "{scorer: jpeg, num_cpus: 0.1, resources: {tpu: 2}}"
    config.write_text(f"rewards: {{jpeg: {reward}}}\nhttp: {{port: {free_port()}}}\n")
    command = [sys.executable, "-m", "reward_services", "serve", str(config)]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("rewards: the rewards reserve 2 tpu of 0 on this machine: set num_cpus")


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
