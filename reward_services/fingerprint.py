"""What an application is made of, as a digest: while it stays the same, deploying again changes nothing."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from reward_services.config import Reward, ServicesConfig
from reward_services.options import CustomOptions


def fingerprint(config: ServicesConfig) -> str:
    """Changes with this package's code, the configuration, and the files of local model folders."""
    digest = hashlib.sha256(_of_package().encode())
    digest.update(config.model_dump_json().encode())
    for reward in config.rewards.values():
        digest.update(of_files(reward).encode())
    return digest.hexdigest()


def of_files(reward: Reward) -> str:
    """Changes with the files of a reward's local model folders."""
    folders = [Path(folder) for folder in reward.options.named_folders()]
    return hashlib.sha256("".join(_listed(folder) for folder in folders).encode()).hexdigest()


def of_code(reward: Reward) -> str:
    """Changes with the code that a reward's replicas run: this package's, and a custom reward's own."""
    options = reward.options
    own = f"{options.path}/{of_files(reward)}" if isinstance(options, CustomOptions) else ""
    return hashlib.sha256(f"{_of_package()}/{own}".encode()).hexdigest()


def of_contents(path: Path) -> str:
    """Changes with a file, or with the names and contents of a folder's files; reads them all."""
    digest = hashlib.sha256()
    for file in _files(path):
        with file.open("rb") as content:
            digest.update(f"{file.relative_to(path)}/".encode())
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


@cache
def _of_package() -> str:
    """Changes with this package's code and rubrics."""
    package = Path(__file__).parent
    sources = [*sorted(package.rglob("*.py")), *sorted(package.rglob("*.yaml"))]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _listed(named: Path) -> str:
    """Names, sizes and times of a folder's files, or of a file: a digest of gigabytes takes too long."""
    stats = {file.relative_to(named): file.stat() for file in _files(named)}
    return "".join(f"{file}/{stat.st_size}/{stat.st_mtime_ns};" for file, stat in stats.items())


def _files(named: Path) -> list[Path]:
    """A file itself, or those of a folder and the folders in it, but for what Python leaves there."""
    found = (path for path in (named, *named.rglob("*")) if "__pycache__" not in path.parts)
    return sorted(path for path in found if path.is_file())
