"""The objects in pictures, by a Mask2Former (Cheng et al., arXiv 2112.01527) trained on COCO's instances.

GenEval takes MMDetection's Swin-S of 50 epochs; facebook/mask2former-swin-small-coco-instance is the same
architecture in transformers' layout, other weights, and resizes pictures its own way: some verdicts differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil

from reward_services.errors import ConfigInvalid
from reward_services.geneval.rules import CONFIDENCE, Found
from reward_services.scorers.placement import Placement, placed
from reward_services.scorers.weights import read_json

DETECTOR_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "preprocessor_config.json",
)
"""All of a detector's folder that is read."""
_NAMES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
"""COCO's names to GenEval's, where they differ."""
_COMPUTED = "relative_position_index"
"""A buffer that some checkpoints hold and transformers computes."""


class Detector:
    """Objects of the classes that a Mask2Former was trained on.

    Raises:
        ConfigInvalid: the folder holds none, or weights that do not fit.
    """

    def __init__(self, folder: Path, **placement: Unpack[Placement]) -> None:
        self.device, self.dtype = placed(**placement)
        self._model = _loaded(folder).to(self.device, self.dtype)
        self._processor = Mask2FormerImageProcessorPil.from_pretrained(folder)
        labels: dict[int, str] = self._model.config.id2label
        self._names = {number: _NAMES.get(label, label) for number, label in labels.items()}

    @property
    def classes(self) -> set[str]:
        """What it can see, by GenEval's names."""
        return set(self._names.values())

    def prepare(self, picture: NDArray[np.uint8]) -> Tensor:
        """(3, h, w) the model's input of an (H, W, 3) picture."""
        # Told, since pictures of three rows would be taken for ones whose channels come first.
        read = self._processor(images=picture, input_data_format="channels_last", return_tensors="pt")
        pixels: Tensor = read["pixel_values"][0]
        return pixels

    @torch.inference_mode()
    def find(self, prepared: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[list[Found]]:
        """What each picture holds, above the lower confidence; `sizes` are their own (H, W)."""
        found: list[list[Found]] = [[] for _ in prepared]
        for shape in {tuple(pixels.shape) for pixels in prepared}:
            places = [index for index, pixels in enumerate(prepared) if tuple(pixels.shape) == shape]
            batch = torch.stack([prepared[index] for index in places]).to(self.device, self.dtype)
            results = self._processor.post_process_instance_segmentation(
                self._model(pixel_values=batch),
                threshold=CONFIDENCE,
                target_sizes=[sizes[index] for index in places],
                return_binary_maps=True,
            )
            for index, result in zip(places, results, strict=True):
                found[index] = self._objects(result)
        return found

    def _objects(self, result: dict[str, Any]) -> list[Found]:
        segments = result["segments_info"]
        return [
            Found(self._names[segment["label_id"]], segment["score"], _box(mask), mask)
            for segment, mask in zip(segments, result["segmentation"][: len(segments)].bool().cpu().numpy())
        ]


def _box(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _loaded(folder: Path) -> Any:
    """The model of a folder, if its weights fit; transformers is asked, which renames them as it loads."""
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "mask2former":
        raise ConfigInvalid(f"{folder} describes a {kind}, not a mask2former; name a detector that is one")
    try:
        model, said = Mask2FormerForUniversalSegmentation.from_pretrained(
            folder,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            use_safetensors=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigInvalid(f"the detector in {folder} cannot be used: {reason}") from None
    strange = [key for key in said["unexpected_keys"] if not key.endswith(_COMPUTED)]
    for verb, keys in (("lacks", said["missing_keys"]), ("has no use for", strange)):
        if keys:
            raise ConfigInvalid(f"the weights of {folder} do not fit: it {verb} {sorted(keys)[0]}")
    if said["mismatched_keys"]:
        key, shape, own = sorted(said["mismatched_keys"])[0]
        raise ConfigInvalid(
            f"the weights of {folder} do not fit: {key} has shape {list(shape)}, not {list(own)}"
        )
    return model.eval().requires_grad_(False)
