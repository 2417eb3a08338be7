"""CLIPScore: 100 times the cosine between the CLIP features of an image and of its prompt.

N images of a batch, U different prompts, L tokens, S side of the model's input in pixels, D features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import huggingface_hub
import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from reward_services.errors import ConfigInvalid, ImageInvalid
from reward_services.images import check_array
from reward_services.schema import Score
from reward_services.scorers.scorer import Pixels, Scorer, finite_score

Preprocessing = Literal["openai", "transformers"]
"""Which image transform to equal.

openai: openai/CLIP's (resized in the image's own mode, corner of the crop rounded), as in most CLIP rewards.
transformers: `CLIPImageProcessor`'s (RGB first, corner floored). Odd margins and non-RGB images show it.
"""
Dtype = Literal["float32", "bfloat16", "float16"]

_FILES = ["*.json", "*.safetensors", "merges.txt", "vocab.json"]
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_MAX_RESIZED_PIXELS = 2**25
_LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


class ClipItem(NamedTuple):
    """A prepared input: pixels (S, S, 3) uint8 and token ids without padding, the end-of-text token last."""

    pixels: NDArray[np.uint8]
    token_ids: tuple[int, ...]


class ClipScorer(Scorer[ClipItem, float]):
    """Any `CLIPModel` of transformers, from a folder or the hub; safetensors only, no code of the model's.

    Prompts beyond the model's positions are cut, their end-of-text token kept.

    Raises:
        ConfigInvalid: the folder is missing, incomplete, or holds no CLIP.
    """

    score_range: ClassVar[tuple[float | None, float | None]] = (-100.0, 100.0)

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: Dtype = "float32",
        preprocessing: Preprocessing = "openai",
    ) -> None:
        folder = _local_folder(model, revision)
        self._device = torch.device(_default_device() if device == "auto" else device)
        self._model = _load(folder).to(device=self._device, dtype=getattr(torch, dtype))
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._positions: int = self._model.config.text_config.max_position_embeddings
        self._side: int = self._model.config.vision_config.image_size
        self._own_mode = preprocessing == "openai"
        mean, std = _normalisation(folder)
        self._mean = torch.tensor(mean, device=self._device)
        self._std = torch.tensor(std, device=self._device)
        self._token_ids = lru_cache(maxsize=8192)(self._tokenised)
        self.revision = _digest(folder, f"{preprocessing}/{dtype}")

    def prepare(self, image: Pixels, prompt: str) -> ClipItem:
        """Resized, cropped pixels and token ids; an image of the model's size is taken as it is."""
        if isinstance(image, np.ndarray):
            check_array(image)
            if image.shape[:2] == (self._side, self._side):
                return ClipItem(image, self._token_ids(prompt))
            image = Image.fromarray(image)
        return ClipItem(_cropped(image, self._side, self._own_mode), self._token_ids(prompt))

    @torch.inference_mode()
    def run(self, items: Sequence[ClipItem]) -> list[float]:
        """100 times the cosines of a batch."""
        image_features_ND = self._image_features(np.stack([item.pixels for item in items]))
        different = list(dict.fromkeys(item.token_ids for item in items))
        text_features_UD = self._text_features(different)
        row = {token_ids: index for index, token_ids in enumerate(different)}
        rows = torch.tensor([row[item.token_ids] for item in items], device=self._device)
        cosines: Tensor = (image_features_ND * text_features_UD[rows]).sum(dim=-1)
        return [100 * value for value in cosines.tolist()]

    def finish(self, raw: float) -> Score:
        """The value as a score; NaN is a failure."""
        return finite_score(raw)

    def _image_features(self, pixels_NSS3: NDArray[np.uint8]) -> Tensor:
        unit = torch.from_numpy(pixels_NSS3).to(self._device).float() / 255
        normal = ((unit - self._mean) / self._std).permute(0, 3, 1, 2).to(self._model.dtype)
        pooled = self._model.vision_model(pixel_values=normal).pooler_output
        return _unit(self._model.visual_projection(pooled))

    def _text_features(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        longest = max(len(ids) for ids in prompts)
        # Text attention is causal and the feature is read at the first end-of-text token: what pads after it
        # changes nothing.
        ids_UL = torch.tensor(
            [[*ids, *[ids[-1]] * (longest - len(ids))] for ids in prompts], device=self._device
        )
        pooled = self._model.text_model(input_ids=ids_UL).pooler_output
        return _unit(self._model.text_projection(pooled))

    def _tokenised(self, prompt: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(prompt, truncation=True, max_length=self._positions)["input_ids"])


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _cropped(image: Image.Image, side: int, own_mode: bool) -> NDArray[np.uint8]:
    """Bicubic resize of the shorter side to `side`, then the central square: (side, side, 3) uint8."""
    if not own_mode:
        image = image.convert("RGB")
    width, height = image.size
    short, long = min(width, height), max(width, height)
    if side * side * long / short > _MAX_RESIZED_PIXELS:
        raise ImageInvalid(
            f"{width} x {height} pixels are too narrow to be resized to {side}; crop the image first"
        )
    resized = (side, side * long // short) if width <= height else (side * long // short, side)
    if resized != image.size:
        image = image.resize(resized, Image.Resampling.BICUBIC)
    half = round if own_mode else int
    left, top = half((image.width - side) / 2), half((image.height - side) / 2)
    return np.asarray(image.crop((left, top, left + side, top + side)).convert("RGB"), dtype=np.uint8)


def _local_folder(model: str, revision: str | None) -> Path:
    """The folder itself, or the hub's snapshot; only weights and JSON are fetched."""
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigInvalid(
                f"{folder} has no config.json; name a folder that CLIPModel.save_pretrained wrote"
            )
        return folder
    if folder.is_absolute() or model.startswith("."):
        raise ConfigInvalid(
            f"model folder {folder} does not exist; correct `model`, or make the folder first"
        )
    try:
        return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigInvalid(
            f"model {model!r} is no folder and cannot be fetched from the hub ({type(error).__name__}); "
            "correct `model`, or download it where the reward runs"
        ) from error


def _load(folder: Path) -> Any:
    if not list(folder.glob("*.safetensors")):
        raise ConfigInvalid(f"{folder} has no .safetensors weights; convert them with save_pretrained")
    if _json(folder / "config.json").get("model_type") != "clip":
        raise ConfigInvalid(f"{folder}/config.json does not describe a CLIP model (model_type: clip)")
    try:
        model, report = CLIPModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except _LOAD_ERRORS as error:
        raise ConfigInvalid(
            f"{folder} cannot be loaded as CLIPModel: {type(error).__name__}: {error}"
        ) from error
    # transformers draws missing weights at random and only warns; such a reward would be noise.
    if report["missing_keys"]:
        raise ConfigInvalid(f"{folder} lacks weights: {', '.join(sorted(report['missing_keys'])[:3])} ...")
    return model.eval().requires_grad_(False)


def _normalisation(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    path = folder / "preprocessor_config.json"
    stated = _json(path) if path.is_file() else {}
    return stated.get("image_mean", _MEAN), stated.get("image_std", _STD)


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigInvalid(f"{path} is not JSON: {error}") from error
    return loaded if isinstance(loaded, dict) else {}


def _digest(folder: Path, convention: str) -> str:
    """A digest over everything that decides the scores: weights, configuration, vocabulary, convention."""
    digest = hashlib.sha256(convention.encode())
    for path in sorted(path for pattern in _FILES for path in folder.glob(pattern)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
