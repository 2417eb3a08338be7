"""Tiny pipelines, written once for all tests of the trainer that need one."""

from pathlib import Path

import pytest

from tests.tiny import write_clip, write_pipeline
from tests.tiny_families import write_flux, write_sd, write_sd3
from trainer.diffusion import PredictionType

PREDICTION_TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction")


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pipeline folder for each prediction type."""
    root = tmp_path_factory.mktemp("pipelines")
    return {kind: write_pipeline(root / kind, kind) for kind in PREDICTION_TYPES}


@pytest.fixture(scope="session")
def families(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pipeline folder of each kind that can be trained; FLUX's have no picture size of their own."""
    root = tmp_path_factory.mktemp("families")
    return {
        "sd1": write_sd(root / "sd1", "epsilon"),
        "sd2": write_sd(root / "sd2", "v_prediction"),
        "sdxl": pipelines["epsilon"],
        "sd3": write_sd3(root / "sd3"),
        "sd3-without-t5": write_sd3(root / "sd3-without-t5", t5=False),
        "sd35": write_sd3(root / "sd35", newer=True),
        "flux-dev": write_flux(root / "flux-dev", guided=True),
        "flux-schnell": write_flux(root / "flux-schnell", guided=False),
    }


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder."""
    return write_clip(tmp_path_factory.mktemp("clip"))
