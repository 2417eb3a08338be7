"""Placement: what a configuration names in the terms of torch, and the best device where it names none."""

import torch

from reward_services.scorers.placement import placed


def test_what_is_named_is_taken_and_the_rest_is_found() -> None:
    assert placed("meta", "bfloat16") == (torch.device("meta"), torch.bfloat16)
    found = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert placed() == placed("auto", "float32") == (found, torch.float32)
