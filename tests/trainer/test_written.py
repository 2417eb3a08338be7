"""A file is whole whenever it is read: what cannot be written leaves the earlier one."""

import resource
from pathlib import Path

import pytest

from trainer.written import write_whole


def test_text_stays_as_it_is(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.csv", "é\r\nb\n")
    assert (tmp_path / "a.csv").read_bytes() == "é\r\nb\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_without_room_the_earlier_file_stays(tmp_path: Path) -> None:
    path, limits = tmp_path / "a.json", resource.getrlimit(resource.RLIMIT_FSIZE)
    write_whole(path, "earlier")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole(path, "later" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text(encoding="utf-8") == "earlier"
