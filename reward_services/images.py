"""Images at the border: encoded ones become uint8 arrays within limits, anything picture-like is encoded."""

from __future__ import annotations

import base64
import binascii
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reward_services.errors import ImageInvalid, MediaTypeUnsupported, TooLarge
from reward_services.schema import ImageRef, Limits

Picture = NDArray[np.uint8] | Image.Image | bytes | Path | str
"""What the clients take: an (H, W, 3) uint8 array, a PIL image, an encoded image's bytes, or its path."""

_FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
# Everything that Pillow's PNG, JPEG and WebP readers are known to raise on hostile bytes.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
)


def decode(ref: ImageRef, limits: Limits) -> NDArray[np.uint8]:
    """The picture as (H, W, 3) uint8. Alpha is dropped and a palette resolved, as CLIP's own code does.

    Size is checked before anything is decoded: encoded bytes first, pixels from the header next.

    Raises:
        MediaTypeUnsupported, TooLarge, ImageInvalid: whatever stands in the way.
    """
    if ref.media_type not in _FORMATS:
        raise MediaTypeUnsupported(f"{ref.media_type!r} is not read; send {', '.join(_FORMATS)}")
    if len(ref.data) * 3 // 4 > limits.max_image_bytes + 2:
        raise TooLarge(f"the encoded image has more than {limits.max_image_bytes} bytes")
    try:
        encoded = base64.b64decode(ref.data, validate=True)
        with Image.open(io.BytesIO(encoded), formats=[_FORMATS[ref.media_type]]) as image:
            _check_header(image, limits)
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except Image.DecompressionBombError as error:
        raise TooLarge(f"more pixels than the {limits.max_image_pixels} that are read") from error
    except binascii.Error as error:
        raise ImageInvalid(f"data is not base64: {error}") from error
    except _DECODE_ERRORS as error:
        raise ImageInvalid(f"no readable {ref.media_type}: {type(error).__name__}") from error


def _check_header(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_image_pixels:
        raise TooLarge(f"{width} x {height} pixels; at most {limits.max_image_pixels} are read")
    if getattr(image, "n_frames", 1) != 1:
        raise ImageInvalid("the image is animated; send one frame")
    if image.mode not in _EIGHT_BIT_MODES:
        raise ImageInvalid(f"mode {image.mode} is not read; send 8 bits a channel")


def encode(picture: Picture) -> ImageRef:
    """A picture for the wire: encoded ones go as they are, arrays and PIL images as PNG.

    Raises:
        ImageInvalid: it is none of the kinds of `Picture`, or its file cannot be read.
        MediaTypeUnsupported: its bytes are no PNG, JPEG or WebP.
    """
    encoded = _encoded(picture)
    return ImageRef(media_type=_media_type(encoded), data=base64.b64encode(encoded).decode("ascii"))


def _encoded(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | Path):
        try:
            return Path(picture).read_bytes()
        except OSError as error:
            raise ImageInvalid(f"cannot read {picture}: {error.strerror}") from error
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else from_array(picture)
    # The fastest compression: encoding costs the client more than anything else on the way.
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def from_array(array: NDArray[np.uint8]) -> Image.Image:
    """A PIL image of an (H, W, 3) uint8 array; raises `ImageInvalid` for anything else."""
    check_array(array)
    return Image.fromarray(array)


def packed(images: Sequence[NDArray[np.uint8]]) -> Sequence[NDArray[np.uint8]] | NDArray[np.uint8]:
    """One array where all images have one shape: a single buffer travels faster than many."""
    same = len({(image.shape, image.dtype) for image in images}) == 1
    return np.stack(images) if same else list(images)


def check_array(array: object) -> None:
    """Raises `ImageInvalid` unless it is a non-empty (H, W, 3) uint8 array."""
    if not isinstance(array, np.ndarray):
        raise ImageInvalid(f"an image is an (H, W, 3) uint8 array, not {type(array).__name__}")
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ImageInvalid(f"an image is an (H, W, 3) uint8 array, not {array.shape} {array.dtype}")


def _media_type(encoded: bytes) -> str:
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "image/webp"
    for signature, media_type in _SIGNATURES.items():
        if encoded.startswith(signature):
            return media_type
    raise MediaTypeUnsupported("the bytes are no PNG, JPEG or WebP image")
