"""What an application is made of, as a digest: while it stays the same, deploying again changes nothing."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from reward_services.config import ServicesConfig


def fingerprint(config: ServicesConfig) -> str:
    """Changes with this package's code, the configuration, and the files of local model folders."""
    digest = hashlib.sha256(_of_code().encode())
    digest.update(config.model_dump_json().encode())
    for reward in config.rewards.values():
        for folder in reward.options.named_folders():
            digest.update(_of_files(Path(folder)).encode())
    return digest.hexdigest()


@cache
def _of_code() -> str:
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _of_files(folder: Path) -> str:
    """Names, sizes and times: digesting gigabytes takes longer than a restart. Empty without a folder."""
    files = sorted(path for path in folder.glob("*") if path.is_file())
    return "".join(f"{path.name}/{path.stat().st_size}/{path.stat().st_mtime_ns};" for path in files)
