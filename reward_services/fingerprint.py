"""What an application is made of, as a digest: while it stays the same, deploying again changes nothing."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from reward_services.config import Reward, ServicesConfig


def fingerprint(config: ServicesConfig) -> str:
    """Changes with this package's code, the configuration, and the files of local model folders."""
    digest = hashlib.sha256(of_code().encode())
    digest.update(config.model_dump_json().encode())
    for reward in config.rewards.values():
        digest.update(of_files(reward).encode())
    return digest.hexdigest()


def of_files(reward: Reward) -> str:
    """Changes with the files of a reward's local model folders."""
    folders = [Path(folder) for folder in reward.options.named_folders()]
    return hashlib.sha256("".join(_listed(folder) for folder in folders).encode()).hexdigest()


@cache
def of_code() -> str:
    """Changes with this package's code and rubrics."""
    package = Path(__file__).parent
    sources = [*sorted(package.rglob("*.py")), *sorted(package.rglob("*.yaml"))]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _listed(named: Path) -> str:
    """Names, sizes and times of a folder's files, or of a file: a digest of gigabytes takes too long."""
    files = sorted(path for path in (named, *named.glob("*")) if path.is_file())
    return "".join(f"{path.name}/{path.stat().st_size}/{path.stat().st_mtime_ns};" for path in files)
