"""Why a deployment does not come up, in one line: what is left of Serve's messages for a person."""

from __future__ import annotations

import re
from collections.abc import Mapping

_RAISED = re.compile(r"^(?:\w+\.)*(\w+): (.+)$", flags=re.MULTILINE)


def failure_among(states: Mapping[str, tuple[str, str]], *, is_late: bool) -> str | None:
    """Which deployment has failed, and why; None while there is hope.

    Args:
        states: status and message of each deployment, as Serve reports them.
        is_late: whether those that are not healthy have had their time.
    """
    for name, (status, message) in states.items():
        # A replica that refused its configuration would refuse it again, though Serve tries.
        failed = status == "DEPLOY_FAILED" or "ConfigInvalid: " in message
        if failed or (is_late and status != "HEALTHY"):
            what = "the HTTP endpoint" if name.startswith("_") else f"reward {name}"
            return f"{what} never became ready: {cause_of(message)}"
    return "the rewards never became ready; see the logs of Ray Serve" if is_late else None


def cause_of(message: str) -> str:
    """Cause and remedy from a deployment's message, which is prose or ends in a traceback."""
    raised = _RAISED.findall(message)
    if not raised:
        return f"{first_line(message) or 'it is still starting'}; allow more time or free resources"
    kind, text = raised[-1]
    return str(text) if kind == "ConfigInvalid" else f"{kind}: {text}; see the replica's log of Ray Serve"


def more_telling(now: str, earlier: str) -> str:
    """The newer of a deployment's messages, unless the earlier alone names an error.

    While a replica is started again, Serve says only that this takes long.
    """
    return earlier if _RAISED.search(earlier) and not _RAISED.search(now) else now


def first_line(text: str) -> str:
    """The first line that is not blank, at most 200 characters."""
    return (text.strip().splitlines() or [""])[0][:200]
