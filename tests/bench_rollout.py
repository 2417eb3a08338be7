"""What callers notice when a Serve configuration changes under load: without a surge of replicas, and with.

    python -m tests.bench_rollout

Serve restarts every replica when `args` change, here the direction of the jpeg reward. Each way has a cluster
of its own; one caller asks two rewards of the embedded world, one request after the other.
"""

import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from reward_services import RewardClient, RewardError
from tests.ports import free_port

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
NAMES = ("clip", "jpeg")
PATIENCE_S, SETTLED_S = 600, 20.0


class Caller(threading.Thread):
    """Asks again and again until told to stop; keeps seconds, failures and the first score."""

    def __init__(self, client: RewardClient) -> None:
        super().__init__()
        self._client, self._ended = client, threading.Event()
        self.waits_s: list[float] = []
        self.failures: list[str] = []
        self.jpeg: float | None = None

    def run(self) -> None:
        """Ask until `stop`."""
        picture = np.zeros((64, 64, 3), dtype=np.uint8)
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                scores = self._client.score([picture], ["a red circle"], rewards=NAMES, deadline_s=60)
            except RewardError as error:
                self.failures.append(str(error))
                continue
            finally:
                self.waits_s.append(time.monotonic() - began)
            self.failures += [str(scores[name][0].error) for name in NAMES if not scores[name][0].ok]
            self.jpeg = scores["jpeg"][0].value

    def stop(self) -> None:
        """End after the request under way."""
        self._ended.set()
        self.join()


@contextmanager
def head(dashboard: int) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str]]]:
    """A Ray cluster here, closed by a token; gives its process and the environment that reaches it."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PYTHONPATH": str(ROOT),
    }
    ports = ("--dashboard-agent-listen-port", str(free_port()), "--ray-client-server-port", str(free_port()))
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", "2", "--disable-usage-stats"),
        *("--node-ip-address", "127.0.0.1", "--port", "0", "--dashboard-port", str(dashboard), *ports),
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield process, environment
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)


def config(port: int, *, surge: bool, direction: str) -> dict[str, Any]:
    """deploy/serve/cpu.yaml with two of its rewards, for this machine only."""
    written = (ROOT / "deploy" / "serve" / "cpu.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(written.replace("/app/", f"{ROOT}/"))
    (application,) = content["applications"]
    content["http_options"] |= {"host": "127.0.0.1", "port": port}
    application["args"]["http"] = {"host": "127.0.0.1", "port": port}
    rewards = application["args"]["rewards"]
    application["args"]["rewards"] = {name: rewards[name] for name in NAMES}
    rewards["jpeg"]["options"] = {"direction": direction}
    if surge:
        application["deployments"] = [{"name": name, "max_surge_percent": 100} for name in NAMES]
    return content


def until(what: str, holds: Callable[[], bool]) -> None:
    """Wait; SystemExit where it takes too long."""
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > ends:
            raise SystemExit(f"{what} took longer than {PATIENCE_S} s")
        time.sleep(1.0)


def measure(*, surge: bool) -> str:
    """Deploy, change under load, and say what the caller saw."""
    dashboard, port = free_port(), free_port()
    with head(dashboard) as (process, environment), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "serve.yaml"
        command = [str(BIN / "serve"), "deploy", "--address", f"http://127.0.0.1:{dashboard}", str(file)]

        def deployed(direction: str) -> bool:
            if process.poll() is not None:
                raise SystemExit("the cluster did not come up; what it said is above")
            file.write_text(yaml.safe_dump(config(port, surge=surge, direction=direction)), encoding="utf-8")
            return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0

        with RewardClient(f"http://127.0.0.1:{port}", retries=0) as client:
            until("a cluster", lambda: deployed("compressible"))
            until("the rewards", lambda: _ready(client))
            caller = Caller(client)
            caller.start()
            time.sleep(SETTLED_S)
            before, quiet_s = caller.jpeg, max(caller.waits_s)
            seen = len(caller.waits_s)
            until("another configuration", lambda: deployed("incompressible"))
            until("the change", lambda: caller.jpeg != before)
            time.sleep(SETTLED_S)
            caller.stop()
    asked, longest_s = len(caller.waits_s), max(caller.waits_s[seen:])
    said = f"surge {surge}: {asked} asked, longest {longest_s:.1f} s, before {quiet_s:.1f} s; "
    return said + f"{len(caller.failures)} failed: {sorted(set(caller.failures))}"


def _ready(client: RewardClient) -> bool:
    try:
        return all(info.ready for info in client.describe())
    except RewardError:
        return False


if __name__ == "__main__":
    for surge in (False, True):
        print(measure(surge=surge), flush=True)
