"""The frozen records that pass between the parts of the trainer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of a prompt file; equal texts in two rows are two prompts."""

    index: int
    """Position in the file, from 0; rows that were left out have one, too."""
    text: str
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What else the file says about the prompt (further columns or keys)."""

    @property
    def category(self) -> str:
        """What it is evaluated with: its `category`, or what GenEval calls `tag`."""
        known = (self.extra.get(key) for key in ("category", "tag"))
        return next((str(value) for value in known if value is not None), "all")
