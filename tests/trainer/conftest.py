"""Tiny pipelines, written once for all tests of the trainer that need one."""

from pathlib import Path

import pytest

from tests.tiny import write_clip, write_pipeline
from trainer.diffusion import PredictionType

PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction")


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pipeline folder for each prediction type."""
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: write_pipeline(root / kind, kind) for kind in PREDICTION_TYPES}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder."""
    return write_clip(tmp_path_factory.mktemp("clip"))
