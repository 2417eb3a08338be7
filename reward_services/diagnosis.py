"""Why a deployment does not come up, in one line: what is left of Serve's messages for a person."""

from __future__ import annotations

import re

_RAISED = re.compile(r"^(?:\w+\.)*(\w+): (.+)$", flags=re.MULTILINE)


def is_hopeless(message: str) -> bool:
    """Whether a replica refused its configuration: starting it again will not help."""
    return "ConfigInvalid: " in message


def cause_of(message: str) -> str:
    """Cause and remedy from a deployment's message, which is prose or ends in a traceback."""
    raised = _RAISED.findall(message)
    if not raised:
        return f"{first_line(message) or 'it is still starting'}; allow more time or free resources"
    kind, text = raised[-1]
    return str(text) if kind == "ConfigInvalid" else f"{kind}: {text}; see the replica's log of Ray Serve"


def first_line(text: str) -> str:
    """The first line that is not blank, at most 200 characters."""
    return (text.strip().splitlines() or [""])[0][:200]
