"""Rewards are deployed anew when what they are made of has changed, and only then."""

import os
import shutil
from pathlib import Path
from typing import Any

from reward_services.config import ServicesConfig
from reward_services.fingerprint import fingerprint


def config(model: Path | str, **more: Any) -> ServicesConfig:
    reward = {"scorer": "clip", "options": {"model": str(model)}, **more}
    return ServicesConfig.model_validate({"rewards": {"one": reward}})


def test_the_same_is_the_same() -> None:
    assert fingerprint(config("openai/clip")) == fingerprint(config("openai/clip"))


def test_every_setting_is_part_of_it() -> None:
    variants = [config("a"), config("b"), config("a", num_cpus=0.5), config("a", batch={"max_images": 3})]
    assert len({fingerprint(variant) for variant in variants}) == len(variants)


def test_so_are_the_files_of_every_folder_that_a_reward_names(tmp_path: Path) -> None:
    reward = {"scorer": "aesthetic", "options": {"head": str(tmp_path)}}
    one = ServicesConfig.model_validate({"rewards": {"one": reward}})
    before = fingerprint(one)
    (tmp_path / "head.pth").touch()
    assert fingerprint(one) != before


def test_so_are_the_files_of_several_folders(tmp_path: Path) -> None:
    models = {"one": str(tmp_path / "one"), "two": str(tmp_path / "two")}
    reward = {"scorer": "compositional", "options": {"models": models}}
    both = ServicesConfig.model_validate({"rewards": {"both": reward}})
    before = fingerprint(both)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "ImageReward.pt").touch()
    assert fingerprint(both) != before


def test_so_is_a_rubric_of_ones_own(tmp_path: Path) -> None:
    rubric = tmp_path / "rubric.yaml"
    reward = {"scorer": "openai_judge", "options": {"model": "gpt-4o", "rubric": str(rubric)}}
    one = ServicesConfig.model_validate({"rewards": {"one": reward}})
    rubric.touch()
    before = fingerprint(one)
    rubric.write_text("name: mood")
    assert fingerprint(one) != before


def test_so_are_the_files_of_a_model_folder(tiny_clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(tiny_clip, folder)
    before = fingerprint(config(folder))
    assert fingerprint(config(folder)) == before
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert fingerprint(config(folder)) != before
