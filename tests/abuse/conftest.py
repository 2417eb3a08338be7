"""The server that the tests of this folder abuse."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.abuse.victim import Victim, served


@pytest.fixture(scope="session")
def victim() -> Iterator[Victim]:
    """One server for all: whatever was done to it before, it answers."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of another process's memory is measured on Linux only")
    with served() as server:
        yield server
