"""A followed file: each line once, also when it is replaced, and no look at it fails."""

from pathlib import Path

import pytest

from trainer.tail import Tail


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def add(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_each_line_comes_once_and_whole(path: Path) -> None:
    tail = Tail(path)
    assert tail.new_lines() == []
    add(path, "one\ntwo\nthr")
    assert tail.new_lines() == ["one", "two"]
    assert tail.new_lines() == []
    add(path, "ee\n")
    assert tail.new_lines() == ["three"]


def test_only_what_is_new_is_read(path: Path) -> None:
    """What was read already is written over, in its length: nobody sees it."""
    add(path, "one\ntwo\n")
    tail = Tail(path)
    tail.new_lines()
    with path.open("r+", encoding="utf-8") as file:
        file.write("xxx\nxxx\nnew\n")
    assert tail.new_lines() == ["new"]


def test_a_shorter_file_is_read_anew(path: Path) -> None:
    add(path, "one\ntwo\n")
    tail = Tail(path)
    tail.new_lines()
    path.write_text("one\n", encoding="utf-8")
    assert tail.new_lines() == ["one"]


def test_another_file_in_its_place_is_read_anew(path: Path) -> None:
    """A run that resumes forgets later updates, and may have made them again before the next look."""
    add(path, "one\ntwo\n")
    tail = Tail(path)
    tail.new_lines()
    partial = path.with_suffix(".partial")
    add(partial, "one\nagain\nthree\n")
    partial.replace(path)
    assert tail.new_lines() == ["one", "again", "three"]


def test_what_cannot_be_read_is_nothing_new(path: Path) -> None:
    add(path, "one\n")
    tail = Tail(path)
    assert tail.new_lines() == ["one"]
    away = path.rename(path.with_suffix(".away"))
    path.mkdir()
    assert tail.new_lines() == []
    path.rmdir()
    away.rename(path)
    add(path, "two \N{SNOWMAN}\n")
    with path.open("ab") as file:
        file.write(b"\xff\n")
    assert tail.new_lines() == ["two \N{SNOWMAN}", "\N{REPLACEMENT CHARACTER}"]
