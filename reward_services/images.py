"""Images at the border: bytes become uint8 arrays within limits, anything picture-like becomes bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reward_services.errors import ImageInvalid, MediaTypeUnsupported, RewardError, TooLarge
from reward_services.schema import ImageRef, Limits


class HasArray(Protocol):
    """What NumPy can make an array of, such as a torch tensor in the host's memory."""

    def __array__(self) -> NDArray[Any]: ...


Picture = NDArray[np.uint8] | HasArray | Image.Image | bytes | Path | str
"""What the clients take: (H, W, 3) uint8 as array or tensor, a PIL image, encoded bytes or a path."""

RAW_MEDIA_TYPE = "application/octet-stream"
"""The media type of an array's bytes."""

_FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
# Progressive JPEGs have about ten. Each costs a pass over all pixels and may have ten bytes: 16 MB of them
# would keep a core busy for a day. Within a scan these two bytes cannot occur.
_SCAN, _MOST_SCANS = b"\xff\xda", 64


@dataclass(frozen=True, slots=True)
class Attachment:
    """An image as bytes: a PNG, JPEG or WebP file, or with `shape` (H, W, 3) the bytes of a uint8 array."""

    media_type: str
    content: bytes = field(repr=False)
    shape: tuple[int, int, int] | None = None


def decode(ref: ImageRef, limits: Limits) -> NDArray[np.uint8]:
    """As `read`, of an image in base64."""
    if ref.media_type not in _FORMATS:
        raise _not_read(ref.media_type)
    if len(ref.data) * 3 // 4 > limits.max_image_bytes + 2:
        raise _too_many_bytes(limits)
    try:
        content = base64.b64decode(ref.data, validate=True)
    except ValueError as error:
        raise ImageInvalid(f"data is not base64: {error}") from error
    return read(Attachment(ref.media_type, content), limits)


def read(image: Attachment, limits: Limits) -> NDArray[np.uint8]:
    """The picture as (H, W, 3) uint8, as CLIP's own code has it.

    Alpha is dropped, a palette resolved, 16 bits of a colour cut to 8; no profile is applied, and nothing is
    turned: EXIF's orientation is for viewers. Size is checked before anything is decoded: encoded bytes
    first, pixels from the header next.

    Raises:
        MediaTypeUnsupported, TooLarge, ImageInvalid: whatever stands in the way.
    """
    if image.shape is not None:
        return _as_array(image.media_type, image.content, image.shape, limits)
    if image.media_type not in _FORMATS:
        raise _not_read(image.media_type)
    if len(image.content) > limits.max_image_bytes:
        raise _too_many_bytes(limits)
    if image.content.count(_SCAN) > _MOST_SCANS and image.media_type == "image/jpeg":
        raise TooLarge(f"the JPEG has more than {_MOST_SCANS} scans; save it as an ordinary one")
    try:
        with Image.open(io.BytesIO(image.content), formats=[_FORMATS[image.media_type]]) as picture:
            _check_header(picture, limits)
            return np.asarray(picture.convert("RGB"), dtype=np.uint8)
    except RewardError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(limits) from error
    except Exception as error:  # whatever else Pillow raises on hostile bytes: there is no list of it
        raise ImageInvalid(f"no readable {image.media_type}: {type(error).__name__}") from error


def _as_array(
    media_type: str, content: bytes, shape: tuple[int, int, int], limits: Limits
) -> NDArray[np.uint8]:
    height, width, channels = shape
    if media_type != RAW_MEDIA_TYPE:
        raise MediaTypeUnsupported(f"with a shape the part is {RAW_MEDIA_TYPE}, not {media_type!r}")
    if height * width > limits.max_image_pixels:
        raise _too_many_pixels(limits)
    if len(content) != height * width * channels:
        raise ImageInvalid(f"{len(content)} bytes are no uint8 array of shape {list(shape)}")
    array = np.frombuffer(content, dtype=np.uint8).reshape(shape)
    check_array(array)
    return array


def _not_read(media_type: str) -> MediaTypeUnsupported:
    return MediaTypeUnsupported(f"{media_type!r} is not read; send {', '.join(_FORMATS)}")


def _too_many_bytes(limits: Limits) -> TooLarge:
    return TooLarge(f"the encoded image has more than {limits.max_image_bytes} bytes")


def _too_many_pixels(limits: Limits) -> TooLarge:
    return TooLarge(f"more than the {limits.max_image_pixels} pixels that the image may have in this request")


def _check_header(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_image_pixels:
        raise _too_many_pixels(limits)
    # A camera's JPEG may hold more, such as a small copy (MPO): the first is the picture that viewers show.
    if image.format != "MPO" and getattr(image, "n_frames", 1) != 1:
        raise ImageInvalid("the image is animated; send one frame")
    _check_mode(image)


def _check_mode(image: Image.Image) -> None:
    if image.mode not in _EIGHT_BIT_MODES:
        raise ImageInvalid(f"mode {image.mode} is not read; send 8 bits a channel")


def attach(picture: Picture) -> Attachment:
    """A picture for the wire: encoded ones go as they are, arrays and PIL images as the bytes of an array.

    Raises:
        ImageInvalid: it is none of the kinds of `Picture`, or its file cannot be read.
        MediaTypeUnsupported: its bytes are no PNG, JPEG or WebP.
    """
    if isinstance(picture, str | Path):
        picture = _bytes_of(Path(picture))
    if isinstance(picture, bytes):
        return Attachment(media_type_of(picture), picture)
    if isinstance(picture, Image.Image):
        _check_mode(picture)
        picture = np.asarray(picture.convert("RGB"), dtype=np.uint8)
    array = _array_of(picture)
    check_array(array)
    height, width, _ = array.shape
    return Attachment(RAW_MEDIA_TYPE, array.tobytes(), (height, width, 3))


def _array_of(picture: object) -> Any:
    if not hasattr(picture, "__array__"):
        return picture
    try:
        return np.asarray(picture)
    except (TypeError, RuntimeError) as error:  # a tensor on a GPU, or with gradients
        raise ImageInvalid(f"a {type(picture).__name__} cannot be read as an array: {error}") from error


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageInvalid(f"cannot read {path}: {error.strerror}") from error


def from_array(array: NDArray[np.uint8]) -> Image.Image:
    """A PIL image of an (H, W, 3) uint8 array; raises `ImageInvalid` for anything else."""
    check_array(array)
    return Image.fromarray(array)


def to_array(picture: NDArray[np.uint8] | Image.Image) -> NDArray[np.uint8]:
    """An (H, W, 3) uint8 array, of a PIL image in whatever mode; raises `ImageInvalid` for anything else."""
    array = np.asarray(picture.convert("RGB")) if isinstance(picture, Image.Image) else picture
    check_array(array)
    return array


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


def media_type_of(encoded: bytes) -> str:
    """What an encoded image's first twelve bytes say it is; raises `MediaTypeUnsupported`."""
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "image/webp"
    for signature, media_type in _SIGNATURES.items():
        if encoded.startswith(signature):
            return media_type
    raise MediaTypeUnsupported("the bytes are no PNG, JPEG or WebP image")
