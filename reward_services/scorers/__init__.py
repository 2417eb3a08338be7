"""The scorers, by the name a configuration calls them. A new reward is a file here and a line below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from reward_services.scorers.custom import custom_scorer
from reward_services.scorers.jpeg import Direction, JpegScorer
from reward_services.scorers.scorer import Scorer

# Scorers that load something heavy are imported when one is built: neither the ingress nor the jpeg reward
# should pay for torch.


def _on_torch(module: str, scorer: str) -> Callable[..., Scorer[Any, Any]]:
    def build(*, torch_threads: int, **options: Any) -> Scorer[Any, Any]:
        import torch  # noqa: PLC0415

        torch.set_num_threads(torch_threads)
        built: Scorer[Any, Any] = getattr(import_module(f"{__name__}.{module}"), scorer)(**options)
        return built

    return build


def _jpeg(*, direction: Direction) -> Scorer[Any, Any]:
    return JpegScorer(direction)


def _verifier() -> Scorer[Any, Any]:
    from reward_services.scorers.verifier import VerifierScorer  # noqa: PLC0415

    return VerifierScorer()


SCORERS: Mapping[str, Callable[..., Scorer[Any, Any]]] = {
    "aesthetic": _on_torch("aesthetic", "AestheticScorer"),
    "clip": _on_torch("clip", "ClipScorer"),
    "compositional": _on_torch("compositional", "CompositionalScorer"),
    "custom": custom_scorer,
    "geneval": _on_torch("geneval", "GenevalScorer"),
    "hpsv2": _on_torch("hpsv2", "Hpsv2Scorer"),
    "image_reward": _on_torch("image_reward", "ImageRewardScorer"),
    "jpeg": _jpeg,
    "pickscore": _on_torch("pickscore", "PickScoreScorer"),
    "verifier": _verifier,
}
"""Name to a function that builds the scorer from the options of its configuration."""
