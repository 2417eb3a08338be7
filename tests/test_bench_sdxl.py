"""`make bench-sdxl` on a narrow model here: it counts operations and writes what it measured."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from tests import published
from tests.bench_sdxl import GIB, configured, counted, main
from tests.full_size import unet, write_sdxl
from tests.small_run import memory_of


def test_a_product_of_matrices_is_counted_by_its_multiplications_and_additions() -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert counted(lambda: a @ b) == 2 * 3 * 4 * 5


def test_the_full_size_is_that_of_the_model_people_use() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in unet().parameters()) == 2_567_463_684


def test_what_was_measured_is_written(tmp_path: Path) -> None:
    folder = write_sdxl(tmp_path / "model", torch.device("cpu"), small=True)
    where = ["--device", "cpu", "--model", str(folder), "--folder", str(tmp_path)]
    main([*where, "--sizes", "32", "--prompts", "1", "--updates", "1", "--training", "adapters"])
    found = json.loads((tmp_path / "sdxl.json").read_text(encoding="utf-8"))
    measured = found["adapters, 32 px"]
    assert measured["seconds"] > measured["sampling_s"] + measured["learning_s"] > 0
    assert measured["planned_gib"] > 0
    assert measured["teraflop"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lora", "size", "planned_gib"),
    [(True, 512, 27.2), (True, 1024, 14.9), (False, 512, 51.5), (False, 1024, 57.5)],
)
def test_what_the_full_size_is_planned_to_take(
    tmp_path: Path, lora: bool, size: int, planned_gib: float
) -> None:
    """The README's figures, beside those measured."""
    folder = published.write_sdxl(tmp_path / "model")
    arguments = argparse.Namespace(model=folder, prompts=2, compile=False)
    config = configured(arguments, tmp_path, lora=lora, size=size)
    assert memory_of(config).peak / GIB == pytest.approx(planned_gib, abs=0.1)
