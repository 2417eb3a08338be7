"""The LAION improved-aesthetic-predictor (Schuhmann, 2022): how much people would like the picture.

github.com/christophschuhmann/improved-aesthetic-predictor, sac+logos+ava1-l14-linearMSE.pth: five linear
layers on the features of CLIP ViT-L/14, with nothing between them but the dropout of their training. They
were fitted to ratings from 1 to 10, which do not bound them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reward_services.options import Preprocessing
from reward_services.schema import Modality, Score
from reward_services.scorers.clip_features import CLIP_FILES, ImageTower, load_clip
from reward_services.scorers.placement import Placement
from reward_services.scorers.preprocessing import cropped
from reward_services.scorers.scorer import Pixels, Scorer, finite_score
from reward_services.scorers.weights import check_weights, digest, local_folder, matching, read_weights

# Places in the published module; those between are dropout.
_LAYERS = (0, 2, 4, 6, 7)
_WIDTHS = (1024, 128, 64, 16, 1)


class AestheticScorer(Scorer[NDArray[np.uint8], float]):
    """The predictor's head on the unit features of a `CLIPModel`; the prompt plays no part.

    `head` is where the file `head_file` lies: a folder or a hub id.

    Raises:
        ConfigInvalid: one of them is missing, incomplete, or the head is of another CLIP.
    """

    modality: ClassVar[tuple[Modality, ...]] = ("image",)

    def __init__(
        self,
        model: str,
        *,
        head: str,
        head_file: str = "sac+logos+ava1-l14-linearMSE.pth",
        revision: str | None = None,
        head_revision: str | None = None,
        preprocessing: Preprocessing = "openai",
        **placement: Unpack[Placement],
    ) -> None:
        folder = local_folder(model, revision, CLIP_FILES)
        file = local_folder(head, head_revision, [head_file], option="head") / head_file
        clip = load_clip(folder)
        self.images = ImageTower(clip, folder, **placement)
        weights = read_weights(file)
        check_weights(weights, _head_shapes(clip.config.projection_dim), file)
        self.head = _head(weights).to(self.images.device).eval().requires_grad_(False)
        self._transform = partial(cropped, side=self.images.side, preprocessing=preprocessing)
        files = [*matching(folder, CLIP_FILES), file]
        self.revision = digest(files, f"{preprocessing}/{self.images.dtype}")

    def prepare(self, image: Pixels, prompt: str) -> NDArray[np.uint8]:
        """Resized, cropped pixels; the prompt plays no part."""
        return self._transform(image)

    @torch.inference_mode()
    def run(self, items: Sequence[NDArray[np.uint8]]) -> list[float]:
        """The predicted ratings of a batch."""
        ratings: list[float] = self.head(self.images.features(items))[:, 0].tolist()
        return ratings

    def finish(self, raw: float) -> Score:
        """The value as a score; NaN is a failure."""
        return finite_score(raw)


def _head_shapes(features: int) -> dict[str, tuple[int, ...]]:
    taken = (features, *_WIDTHS)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, inner, outer in zip(_LAYERS, taken, _WIDTHS, strict=False):
        shapes |= {f"layers.{layer}.weight": (outer, inner), f"layers.{layer}.bias": (outer,)}
    return shapes


def _head(weights: Mapping[str, Tensor]) -> torch.nn.Sequential:
    """The layers in their order; features and head stay in float32, whatever CLIP runs in."""
    head = torch.nn.Sequential()
    for layer in _LAYERS:
        weight, bias = weights[f"layers.{layer}.weight"], weights[f"layers.{layer}.bias"]
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        head.append(linear)
    return head
