"""The scorers, by the name a configuration calls them. A new reward is a file here and a line below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from reward_services.scorers.jpeg import Direction, JpegScorer
from reward_services.scorers.scorer import Scorer

# Scorers that load something heavy are imported when one is built: neither the ingress nor the jpeg reward
# should pay for torch.


def _clip(*, torch_threads: int, **options: Any) -> Scorer[Any, Any]:
    import torch  # noqa: PLC0415

    from reward_services.scorers.clip import ClipScorer  # noqa: PLC0415

    torch.set_num_threads(torch_threads)
    return ClipScorer(**options)


def _jpeg(*, direction: Direction) -> Scorer[Any, Any]:
    return JpegScorer(direction)


def _verifier() -> Scorer[Any, Any]:
    from reward_services.scorers.verifier import VerifierScorer  # noqa: PLC0415

    return VerifierScorer()


SCORERS: Mapping[str, Callable[..., Scorer[Any, Any]]] = {"clip": _clip, "jpeg": _jpeg, "verifier": _verifier}
"""Name to a function that builds the scorer from the options of its configuration."""
