"""Stable Diffusion 1.x and 2.x: the token features of one CLIP, and no safety checker."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from trainer.config import ModelConfig
from trainer.families.sd import StableDiffusion
from trainer.policy import Policy

CPU = torch.device("cpu")


def test_a_prompt_is_encoded_as_the_pipeline_does(families: dict[str, Path]) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(families["sd1"])
    hidden, empty = pipeline.encode_prompt("a red circle", CPU, 1, True)
    family = StableDiffusion(pipeline)
    torch.testing.assert_close(family.encode(["a red circle"], CPU).hidden, hidden)
    torch.testing.assert_close(family.encode_empty(CPU).hidden, empty)
    assert family.encode(["a red circle"], CPU).pooled.shape == (1, 0)


def test_the_safety_checker_stays_on_disk(families: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(families["sd1"], folder)
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    vision = {**tower, "image_size": 8, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=tower, vision_config=vision, projection_dim=8)
    )
    checker.save_pretrained(folder / "safety_checker")
    CLIPImageProcessor().save_pretrained(folder / "feature_extractor")
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    policy = Policy.load(ModelConfig(path=str(folder)))
    assert policy._pipeline.safety_checker is None
