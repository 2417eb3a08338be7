"""Objects are cut out on grey, and their colours are those of the nearest captions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, CLIPModel

from reward_services.geneval.colours import ColourNamer, cut_out
from reward_services.geneval.rules import COLOURS, Found
from reward_services.scorers.preprocessing import CLIP_MEAN, CLIP_STD, cropped

Draw = Callable[..., list[Any]]


def corner(size: int) -> Found:
    """The lower left triangle of a square's upper left quarter."""
    mask = np.zeros((size, size), dtype=np.bool_)
    half = size // 2
    mask[:half, :half] = np.tri(half, dtype=np.bool_)
    return Found("bench", 0.9, (0.0, 0.0, float(half), float(half)), mask)


def test_what_is_not_the_objects_own_is_grey(draw: Draw) -> None:
    (picture,) = draw(1, size=32)
    cut = np.asarray(cut_out(picture, corner(32)))
    assert cut.shape == (16, 16, 3)
    inside = np.tri(16, dtype=np.bool_)
    assert (cut[inside] == picture[:16, :16][inside]).all()
    assert (cut[~inside] == 0x99).all()


@torch.no_grad()
def test_the_colour_is_that_of_the_nearest_captions(tiny_clip: Path, draw: Draw) -> None:
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_clip)
    unit = torch.nn.functional.normalize
    padded = {"padding": True, "truncation": True, "max_length": 16, "return_tensors": "pt"}
    means = []
    for colour in COLOURS:
        captions = [f"a photo of a {colour} bench", f"a photo of a {colour}-colored bench"]
        ids = tokenizer([*captions, f"a photo of a {colour} object"], **padded)
        features = model.text_projection(model.text_model(**ids).pooler_output)
        means.append(unit(features, dim=-1).mean(0))
    pictures = draw(6, size=64)
    crops = np.stack([cropped(cut_out(picture, corner(64)), 32, "openai") for picture in pictures])
    pixels = (torch.from_numpy(crops) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    images = model.visual_projection(
        model.vision_model(pixel_values=pixels.permute(0, 3, 1, 2)).pooler_output
    )
    nearest = (unit(images, dim=-1) @ unit(torch.stack(means), dim=-1).T).argmax(1).tolist()
    namer = ColourNamer(tiny_clip)
    named = [namer.name(picture, "bench", [corner(64)])[0] for picture in pictures]
    assert named == [COLOURS[index] for index in nearest]
