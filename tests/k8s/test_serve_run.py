"""RAY. deploy/serve/cpu.yaml served by the command of its image: ready, closed without a key, scoring."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from reward_services import RewardClient
from reward_services.http.keys import new_key
from tests.k8s.kustomize import ROOT
from tests.ports import free_port

PATIENCE_S = 400
BIN = Path(sys.executable).parent


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Address and key of the rewards, with the image's paths as they are here."""
    key, line = new_key("test", "train", None)
    (tmp_path / "keys.yaml").write_text(line, encoding="utf-8")
    written = (ROOT / "deploy" / "serve" / "cpu.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(written.replace("/app/", f"{ROOT}/").replace("/etc/rewards/", f"{tmp_path}/"))
    here = {"host": "127.0.0.1", "port": free_port()}
    config["http_options"] |= here
    config["applications"][0]["args"]["http"] |= here
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    # A cluster of its own: without an address it would join any Ray that runs on this machine.
    own = ("--address", "local", "--app-dir", str(ROOT))
    command = [str(BIN / "serve"), "run", *own, str(tmp_path / "serve.yaml")]
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (tmp_path / "said.txt").open("wb") as said:
        process = subprocess.Popen(command, env=kept, stdout=said, stderr=said)
        yield f"http://127.0.0.1:{here['port']}", key
        process.terminate()
        process.wait(timeout=PATIENCE_S)


@pytest.mark.slow
def test_the_cpu_config_serves_to_who_has_a_key(served: tuple[str, str], tmp_path: Path) -> None:
    url, key = served
    ends = time.monotonic() + PATIENCE_S
    while not _ready(url):
        assert time.monotonic() < ends, (tmp_path / "said.txt").read_text(encoding="utf-8")[-3000:]
        time.sleep(1.0)
    assert httpx.get(f"{url}/v1/rewards").status_code == 401
    with RewardClient(url, api_key=key) as client:
        names = [info.id for info in client.describe()]
        picture = np.full((32, 32, 3), 255, dtype=np.uint8)
        scores = client.score([picture], ["a red circle"], rewards=names, deadline_s=60)
    assert set(names) == {"preference", "clip", "jpeg", "verifier"}
    assert all(scores[name][0].ok for name in names)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
