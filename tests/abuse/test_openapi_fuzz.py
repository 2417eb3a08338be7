"""Requests made of the OpenAPI document by the thousand, right and wrong: answers are as it describes."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.abuse.victim import Victim, served

KEY = "rk_a"
KEYS = f"- {{name: alice, sha256: {hashlib.sha256(KEY.encode()).hexdigest()}}}\n"
CONFIG = Path(__file__).parent / "schemathesis.toml"


EVERY_PHASE = "examples,coverage,fuzzing,stateful"


def fuzz(victim: Victim, folder: Path, *, examples: int, phases: str) -> int:
    """Run schemathesis with all of its checks; returns how many requests it made."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run"]
    command += [f"{victim.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}"]
    command += ["--max-examples", str(examples), "--seed", "1", "--phases", phases]
    command += ["--generation-database", "none"]
    command += ["--generation-database", "none", "--suppress-health-check", "all"]
    command += ["--request-timeout", "60", "--no-color"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    (count,) = re.findall(r"Test cases:\n +(\d+) generated", done.stdout)
    return int(count)


@pytest.mark.parametrize(
    ("examples", "phases", "requests"),
    [
        (60, EVERY_PHASE, 600),
        # Walks of so many steps along the links between operations would take hours.
        pytest.param(3000, EVERY_PHASE.removesuffix(",stateful"), 20_000, marks=pytest.mark.slow),
    ],
)
def test_every_answer_is_described(tmp_path: Path, examples: int, phases: str, requests: int) -> None:
    (tmp_path / "keys.yaml").write_text(KEYS, encoding="utf-8")
    keys = str(tmp_path / "keys.yaml")
    with served(key=KEY, keys=keys) as victim, victim.bounded(512 * 2**20, within_s=3600):
        assert fuzz(victim, tmp_path, examples=examples, phases=phases) >= requests
