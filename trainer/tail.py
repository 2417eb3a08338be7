"""A file that others write, followed: what was added since the last look, and no byte read twice."""

import os
from pathlib import Path


class Tail:
    """Whole lines of a file as they come.

    A file that became shorter, or that another took the place of, is read anew. What cannot be read just now,
    on storage that is shared, is nothing new; so is a line that is not written to its end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._read = 0

    def new_lines(self) -> list[str]:
        """Lines that were not there at the last look, in order."""
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                if about.st_ino != self._file or about.st_size < self._read:
                    self._file, self._read = about.st_ino, 0
                file.seek(self._read)
                whole, end, _ = file.read().rpartition(b"\n")
        except OSError:
            return []
        self._read += len(whole) + len(end)
        return whole.decode("utf-8", "replace").split("\n") if end else []
