"""Where a model runs and in which numbers."""

from __future__ import annotations

from typing import TypedDict

import torch

from reward_services.options import Dtype


class Placement(TypedDict, total=False):
    """The keyword arguments of `placed`, as scorers pass them on."""

    device: str
    dtype: Dtype


def placed(device: str = "auto", dtype: Dtype = "float32") -> tuple[torch.device, torch.dtype]:
    """torch's own names for them; `auto` is cuda where there is one, else cpu."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device), getattr(torch, dtype)
