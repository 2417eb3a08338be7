"""A very small Mask2Former with random weights that is sure of what it sees, saved by transformers."""

import json
from pathlib import Path

import torch
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    SwinConfig,
)

CLASSES = ("bench", "clock", "mouse")
SIDE = 64


def write_detector(folder: Path) -> Path:
    """A detector of three classes of COCO; returns the folder."""
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=SIDE,
        patch_size=4,
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=6,
        id2label=dict(enumerate(CLASSES)),
    )
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight.mul_(100)
    model.save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def write_geneval(folder: Path, prompt: str) -> dict[str, str]:
    """A detector and one task, a bench; returns them as options of the `geneval` scorer."""
    task = {"prompt": prompt, "tag": "single_object", "include": [{"class": "bench", "count": 1}]}
    metadata = folder / "evaluation_metadata.jsonl"
    metadata.write_text(json.dumps(task), encoding="utf-8")
    return {"metadata": str(metadata), "detector": str(write_detector(folder / "detector"))}
