"""Files that are whole whenever somebody reads them: a full disk or a kill leaves the earlier ones."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all: beside its place, then renamed."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8", newline="")
    partial.replace(path)
