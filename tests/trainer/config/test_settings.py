"""What follows from settings: scored steps, branches replayed together, guidance under which is learned."""

from pathlib import Path

import pytest

from trainer.config import TrainConfig, load_config


def config(folder: Path, *overrides: str) -> TrainConfig:
    path = folder / "run.yaml"
    path.write_text(
        "model: {path: base}\nprompts: {train: a.txt}\nrewards: {services: b.yaml, weights: {clip: 1}}\n",
        encoding="utf-8",
    )
    return load_config(path, overrides)


def test_previews_are_counted_from_either_end(tmp_path: Path) -> None:
    made = config(tmp_path, "sampling.steps=8", "branching.previews=[-1, 7, 2, -4]")
    assert made.preview_steps == (2, 4, 7)


def test_branches_may_end_and_stop_on_the_way(tmp_path: Path) -> None:
    stops = ("branching.previews=[5, -1]", "branching.stop={after: 5, keep: 2}", "branching.end=12")
    made = config(tmp_path, *stops)
    assert (made.path_steps, made.stages, made.finished_branches) == (12, (6, 12), 2)
    assert config(tmp_path).stages == (20,)


@pytest.mark.parametrize(
    ("method", "most", "together"), [("rlhf_sharpening", 5, 4), ("d3po", 1, 2), ("ddpo", 5, 5)]
)
def test_pairs_are_replayed_whole(tmp_path: Path, method: str, most: int, together: int) -> None:
    made = config(tmp_path, f"method={method}", f"loss.branches_per_micro_batch={most}")
    assert made.branches_at_a_time == together


def test_branches_are_learned_as_they_were_drawn_and_given_pictures_without_guidance(tmp_path: Path) -> None:
    assert config(tmp_path, "sampling.guidance=5").learned_guidance == 5
    given = ("method=standard", "data.source=pictures", "sampling.guidance=5")
    assert config(tmp_path, *given).learned_guidance == 1
