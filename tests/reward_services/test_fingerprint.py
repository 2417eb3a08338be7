"""Rewards are deployed anew when what they are made of has changed, and only then."""

import os
import shutil
from pathlib import Path
from typing import Any

from reward_services.config import ServicesConfig
from reward_services.fingerprint import fingerprint, of_code, of_contents


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


def custom(path: Path, **arguments: int) -> ServicesConfig:
    reward = {"scorer": "custom", "options": {"path": str(path), "arguments": arguments}}
    return ServicesConfig.model_validate({"rewards": {"one": reward}})


def test_so_is_code_of_ones_own_in_however_deep_a_package(tmp_path: Path) -> None:
    """Its replicas are to restart, which other arguments do not make them do."""
    one, other = custom(tmp_path), custom(tmp_path, n=1)
    (tmp_path / "nets").mkdir()
    before = fingerprint(one), of_code(one.rewards["one"]), of_contents(tmp_path)
    assert fingerprint(other) != before[0]
    assert of_code(other.rewards["one"]) == before[1]
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "net.pyc").touch()
    assert (fingerprint(one), of_code(one.rewards["one"]), of_contents(tmp_path)) == before
    (tmp_path / "nets" / "net.py").touch()
    after = fingerprint(one), of_code(one.rewards["one"]), of_contents(tmp_path)
    assert not set(after) & set(before)


def test_other_files_of_a_model_restart_nothing(tmp_path: Path) -> None:
    reward = config(tmp_path).rewards["one"]
    before = of_code(reward)
    (tmp_path / "model.safetensors").touch()
    assert of_code(reward) == before
