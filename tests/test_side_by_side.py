"""RAY. Runs side by side on a cluster: each has its own rewards, and what it served goes with it."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray import serve
from ray.serve.context import _set_global_client

from reward_services import RewardClient
from tests.ports import free_port
from tests.processes import PATIENCE_S
from tests.small_run import settings

ROOT = Path(__file__).parents[1]
SHARED = "The rewards are those that are served on the cluster already."
OWN = re.compile(r"rewards-[0-9a-f]{8}")

# Ray leaves sockets and files of its processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("default::ResourceWarning", "default::FutureWarning")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster that outlives the runs, on which nobody has served anything yet."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    serve.shutdown()
    ray.shutdown()


def written(folder: Path, **options: Any) -> Path:
    """Settings whose one reward has these options."""
    values = settings(folder, Path("model"))
    services = folder / "rewards.yaml"
    values["rewards"] = {"services": str(services), "weights": {"jpeg": 1.0}, "ready_timeout_s": PATIENCE_S}
    jpeg = {"scorer": "jpeg", "num_cpus": 0.1, "options": options}
    http = {"port": free_port()}
    services.write_text(yaml.safe_dump({"rewards": {"jpeg": jpeg}, "http": http}), encoding="utf-8")
    (folder / "settings.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder / "settings.yaml"


class ScoringRun:
    """A run in a process of its own."""

    def __init__(self, path: Path, address: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.scoring_run", str(path), address],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def score(self, *, first: bool = False) -> float:
        """Of its next picture."""
        if not first:
            self.tell("next")
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        return float(json.loads(line)["jpeg"])

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """Let it end; what it has said of that."""
        return self.process.communicate(timeout=PATIENCE_S)[1]


def served() -> set[str]:
    """Applications on the cluster."""
    _set_global_client(None)  # another process may have started Serve anew
    return set(serve.status().applications)


def rewards_serve(settings: Path, address: str) -> subprocess.CompletedProcess[str]:
    """Serve for everybody what these settings name."""
    services = settings.with_name("rewards.yaml")
    command = [sys.executable, "-m", "reward_services", "serve", str(services), "--address", address]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_two_runs_have_their_own_rewards_and_leave_none(address: str, tmp_path: Path) -> None:
    """They begin at the same time, and call by one name what is not the same; one of them crashes."""
    one = ScoringRun(written(tmp_path / "one", direction="compressible"), address)
    two = ScoringRun(written(tmp_path / "two", direction="incompressible"), address)
    assert one.score(first=True) == -two.score(first=True) < 0
    names = served()
    assert len(names) == 2
    assert all(map(OWN.fullmatch, names))
    assert one.score() == -two.score() < 0
    two.tell("fail")
    assert "RuntimeError: failed" in two.end()
    assert len(served()) == 1
    assert one.score() < 0
    assert SHARED not in one.end()
    assert one.process.returncode == 0
    assert served() == set()
    assert ray.available_resources()["CPU"] == 2


def test_what_a_killed_run_has_left_goes_with_the_next(address: str, tmp_path: Path) -> None:
    """While a run is on, nothing can be served over HTTP beside it, which is said; Ctrl-C ends its own."""
    path = written(tmp_path, direction="compressible")
    killed = ScoringRun(path, address)
    killed.score(first=True)
    killed.process.kill()
    killed.end()
    (left,) = served()
    interrupted = ScoringRun(path, address)
    interrupted.score(first=True)
    (own,) = served()
    assert own != left
    refused = rewards_serve(path, address)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"rewards: Serve runs without HTTP on this cluster, for {own}: ")
    interrupted.process.send_signal(signal.SIGINT)
    interrupted.end()
    assert served() == set()


def test_rewards_that_are_served_already_are_shared_and_stay(address: str, tmp_path: Path) -> None:
    """They come after runs, and over HTTP; a run whose file is another one has its own beside them."""
    path = written(tmp_path / "shared", direction="compressible")
    serving = rewards_serve(path, address)
    assert serving.returncode == 0, serving.stderr
    url = re.search(r"http://\S+(?=;)", serving.stdout)
    assert url
    sharing = ScoringRun(path, address)
    assert sharing.score(first=True) < 0
    assert served() == {"rewards"}
    other = ScoringRun(written(tmp_path / "other", direction="incompressible"), address)
    assert other.score(first=True) > 0
    assert len(served()) == 2
    assert SHARED in sharing.end()
    assert SHARED not in other.end()
    assert served() == {"rewards"}
    with RewardClient(url[0]) as client:
        assert [info.id for info in client.describe()] == ["jpeg"]
