"""The detector sees what its outputs say, worked out here without transformers' post-processing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

from reward_services.errors import ConfigInvalid
from reward_services.geneval.detector import Detector
from tests.tiny_detector import CLASSES, write_detector

Draw = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector"))


def seen(detector: Detector, pictures: list[Any]) -> list[Any]:
    sizes = [picture.shape[:2] for picture in pictures]
    return detector.find([detector.prepare(picture) for picture in pictures], sizes)


@torch.no_grad()
def worked_out(folder: Path, picture: Any) -> list[tuple[str, float, int]]:
    """Class, confidence and pixels of the six likeliest pairs of query and class, where they are likely."""
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    processor = Mask2FormerImageProcessorPil.from_pretrained(folder)
    out = model(pixel_values=processor(images=picture, return_tensors="pt")["pixel_values"])
    likely = torch.softmax(out.class_queries_logits[0], -1)[:, :-1]
    masks = torch.nn.functional.interpolate(out.masks_queries_logits, (384, 384), mode="bilinear")[0]
    best = sorted(
        ((float(likely[query, label]), query, label) for query in range(6) for label in range(3)),
        reverse=True,
    )[:6]
    objects = []
    for chance, query, label in best:
        inside = masks[query] > 0
        sureness = chance * float(masks[query].sigmoid()[inside].sum() / (inside.sum() + 1e-6))
        small = torch.nn.functional.interpolate(inside[None, None].float(), picture.shape[:2])[0, 0]
        if sureness >= 0.3 and small.any():
            name = "computer mouse" if CLASSES[label] == "mouse" else CLASSES[label]
            objects.append((name, sureness, int(small.sum())))
    return sorted(objects)


def test_a_picture_of_three_rows_is_read_row_by_row(folder: Path, draw: Draw) -> None:
    """Its stretched copy of 64 rows looks the same to the detector, which resizes pictures to that."""
    flat = np.ascontiguousarray(np.tile(draw(1, size=64)[0][:1], (3, 1, 1)))
    detector = Detector(folder)
    tall = detector.prepare(np.repeat(flat[:1], 64, axis=0))
    assert torch.allclose(detector.prepare(flat), tall, atol=1e-5)


def test_objects_are_what_the_outputs_say(folder: Path, draw: Draw) -> None:
    detector = Detector(folder)
    (picture,) = draw(1, size=48)
    (objects,) = seen(detector, [picture])
    found = sorted((one.class_name, one.confidence, int(one.mask.sum())) for one in objects)
    expected = worked_out(folder, picture)
    assert expected
    assert [(name, pixels) for name, _, pixels in found] == [(name, pixels) for name, _, pixels in expected]
    assert [sure for _, sure, _ in found] == pytest.approx([sure for _, sure, _ in expected], abs=1e-4)


def test_boxes_enclose_masks(folder: Path, draw: Draw) -> None:
    for objects in seen(Detector(folder), draw(3, size=40)):
        for one in objects:
            left, top, right, bottom = (int(edge) for edge in one.box)
            assert one.mask[top:bottom, left:right].sum() == one.mask.sum() > 0
            edges = (one.mask[top], one.mask[bottom - 1], one.mask[:, left], one.mask[:, right - 1])
            assert all(edge.any() for edge in edges)


def test_a_batch_of_different_sizes_is_what_each_is_alone(folder: Path, draw: Draw) -> None:
    detector = Detector(folder)
    pictures = [*draw(2, size=48), *draw(1, size=80)]
    together = seen(detector, pictures)
    for objects, picture in zip(together, pictures, strict=True):
        (alone,) = seen(detector, [picture])
        assert [one.box for one in objects] == [one.box for one in alone]
        assert all(one.mask.shape == picture.shape[:2] for one in objects)


def test_classes_have_genevals_names(folder: Path) -> None:
    assert Detector(folder).classes == {"bench", "clock", "computer mouse"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights.pop("class_predictor.bias"), "lacks class_predictor.bias"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "has no use for extra"),
        (lambda weights: weights.update({"class_predictor.bias": torch.zeros(9)}), r"shape \[9\], not \[4\]"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ConfigInvalid, match=reason):
        Detector(tmp_path)


def test_another_model_is_refused(tiny_clip: Path) -> None:
    with pytest.raises(ConfigInvalid, match="describes a clip, not a mask2former"):
        Detector(tiny_clip)


def test_nothing_found_is_an_empty_list(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["class_predictor.bias"] += torch.tensor([0.0, 0.0, 0.0, 1e4])
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert seen(Detector(tmp_path), [np.zeros((20, 20, 3), np.uint8)]) == [[]]
