"""Pictures to learn from: decoded within limits, scaled and cropped to a size that the model draws.

Sizes are (height, width) in pixels.
"""

import io
import math
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Size = tuple[int, int]

MOST_PIXELS = 89_478_485
"""Pictures of more are refused before they are decoded; Pillow's own bound, a quarter of a gigabyte."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # EXIF 2.3, section 4.6.4

# Appendix I of the paper on SDXL (arXiv 2307.01952); the shorter side of each, by the longer.
_SDXL = {
    512: (2048, 1984, 1920, 1856),
    576: (1792, 1728, 1664),
    640: (1600, 1536),
    704: (1472, 1408, 1344),
    768: (1344, 1280),
    832: (1216, 1152),
    896: (1152, 1088),
    960: (1088, 1024),
    1024: (1024,),
}


class PictureError(ValueError):
    """A picture that cannot be used; the message says what it is or has."""


def size_of(content: bytes) -> Size:
    """The size of an encoded picture as it is to be seen, from its header alone. Raises PictureError."""
    with _opened(content) as image:
        width, height = image.size
        # A PNG may say it after its pixels, all of which would be read; cameras make none.
        exif = {} if image.format == "PNG" else image.getexif()
        on_its_side = exif.get(_ORIENTATION) in _ON_ITS_SIDE
        return (width, height) if on_its_side else (height, width)


def decode(content: bytes) -> Image.Image:
    """An RGB picture, turned as it is to be seen, on white where it is transparent. Raises PictureError."""
    with _opened(content) as image:
        try:
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("P", "PA", "LA", "RGBA") or "transparency" in upright.info:
                seen = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
            return upright.convert("RGB")
        except Exception as error:  # noqa: BLE001  whatever Pillow raises on broken bytes: there is no list of it
            raise PictureError(f"is a broken picture ({_first_line(error)})") from None


def fit(
    image: Image.Image, size: Size, generator: random.Random | None = None
) -> tuple[NDArray[np.uint8], Size]:
    """Scale a picture until it covers a size and cut out that size.

    Args:
        image: RGB.
        size: what is cut out.
        generator: draws where; None is the centre.

    Returns:
        (H, W, 3) pixels, and how far (down, right) they were cut from the scaled picture's corner.
    """
    height, width = size
    scale = max(height / image.height, width / image.width)
    tall, wide = max(height, round(image.height * scale)), max(width, round(image.width * scale))
    room = tall - height, wide - width
    top, left = (generator.randint(0, r) for r in room) if generator else (r // 2 for r in room)
    down, right = image.height / tall, image.width / wide
    # Only what is cut out is scaled: a picture as thin as a line would fill the memory.
    low = min((top + height) * down, image.height), min((left + width) * right, image.width)
    part = left * right, top * down, low[1], low[0]
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=part), dtype=np.uint8), (
        top,
        left,
    )


def resolutions(side: int, step: int) -> list[Size]:
    """SDXL's resolutions for pictures of about `side` x `side` pixels: the paper's 40 and one's mirror image.

    Args:
        side: of the square one.
        step: pixels of which all sides are multiples; those of SDXL are of 64 at 1024 pixels.
    """
    tall = [(long, short) for short, longer in _SDXL.items() for long in longer]
    both = [*tall, *((short, long) for long, short in tall)]
    return list(dict.fromkeys((_scaled(h, side, step), _scaled(w, side, step)) for h, w in both))


def nearest(size: Size, choices: Sequence[Size]) -> int:
    """Which of the choices has the proportions that are closest to those of a size."""
    proportions = math.log(size[0] / size[1])
    distances = [abs(math.log(height / width) - proportions) for height, width in choices]
    return distances.index(min(distances))


def _scaled(length: int, side: int, step: int) -> int:
    return max(1, round(length * side / 1024 / step)) * step


def _opened(content: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(f"is a picture of more than {MOST_PIXELS} pixels") from None
    except Exception as error:  # noqa: BLE001  as above
        raise PictureError(f"is no picture that can be read ({_first_line(error)})") from None
    if image.width * image.height > MOST_PIXELS:
        raise PictureError(f"is a picture of more than {MOST_PIXELS} pixels")
    if image.mode not in _EIGHT_BIT_MODES:
        raise PictureError(f"is a picture with mode {image.mode}; save it with 8 bits a channel")
    return image


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].partition("<")[0].strip() or type(error).__name__
