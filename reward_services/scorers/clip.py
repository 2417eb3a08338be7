"""CLIPScore: 100 times the cosine between the features of an image and of its prompt, of CLIP or SigLIP.

The models are those of Radford et al. (arXiv 2103.00020), Zhai et al. (arXiv 2303.15343) and, of fixed size,
Tschannen et al. (arXiv 2502.14786); the score is that of Hessel et al. (arXiv 2104.08718) without its cut at
zero: a negative cosine still says which of two pictures is worse.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Unpack

from numpy.typing import NDArray
from PIL import Image

from reward_services.errors import ConfigInvalid
from reward_services.options import Preprocessing
from reward_services.scorers.clip_features import CLIP, CLIP_FILES, SIGLIP, ImageTower, TextTower, load_clip
from reward_services.scorers.cosine import CosineScorer
from reward_services.scorers.placement import Placement
from reward_services.scorers.preprocessing import cropped, stretched
from reward_services.scorers.scorer import Pixels
from reward_services.scorers.weights import digest, local_folder, matching, read_json


class ClipScorer(CosineScorer):
    """Any `CLIPModel` or `SiglipModel` of transformers, from a folder or the hub; safetensors only.

    Prompts are tokenised as transformers' tokenizer does it, without openai/CLIP's cleaning by ftfy.

    Raises:
        ConfigInvalid: the folder is missing, incomplete, or holds neither; a SigLIP has no `preprocessing`.
    """

    score_range: ClassVar[tuple[float | None, float | None]] = (-100.0, 100.0)

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        preprocessing: Preprocessing | None = None,
        **placement: Unpack[Placement],
    ) -> None:
        folder = local_folder(model, revision, CLIP_FILES)
        loaded = load_clip(folder, (CLIP, SIGLIP))
        images = ImageTower(loaded, folder, **placement)
        if loaded.config.model_type == SIGLIP.model_type:
            if preprocessing is not None:
                raise ConfigInvalid(f"{folder} holds a SigLIP; leave out `preprocessing`")
            convention, transform = "stretched", _as_siglip(folder, images.side)
        else:
            convention = preprocessing or "openai"
            transform = partial(cropped, side=images.side, preprocessing=preprocessing or "openai")
        super().__init__(images, TextTower(loaded, folder, **placement), transform, scale=100.0)
        self.revision = digest(matching(folder, CLIP_FILES), f"{convention}/{images.dtype}")


def _as_siglip(folder: Path, side: int) -> Callable[[Pixels], NDArray[Any]]:
    stated = read_json(folder / "preprocessor_config.json")
    resample = Image.Resampling(stated.get("resample", Image.Resampling.BICUBIC))
    return partial(stretched, side=side, resample=resample)
