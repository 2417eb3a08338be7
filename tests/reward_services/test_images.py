"""The border for images: exact round trips, and every hostile or odd image is a typed error."""

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reward_services import ImageInvalid, ImageRef, Limits, MediaTypeUnsupported, RewardError, TooLarge
from reward_services.images import Attachment, attach, decode, packed, read

LIMITS = Limits(max_image_bytes=20_000, max_image_pixels=10_000)
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def reference(encoded: bytes, media_type: str = "image/png") -> ImageRef:
    return ImageRef(media_type=media_type, data=base64.b64encode(encoded).decode())


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A well-formed header that promises `width` x `height` pixels and delivers none."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT", b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


def without_palette() -> bytes:
    """A PNG with a transparent colour of a palette that is not there, which Pillow asserts."""
    encoded = saved(Image.fromarray(PICTURE).convert("P"), "PNG", transparency=1)
    start = encoded.index(b"PLTE") - 4
    (length,) = struct.unpack_from(">I", encoded, start)
    return encoded[:start] + encoded[start + 12 + length :]


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG that goes over its pixels so many times."""
    encoded = saved(Image.new("L", (8, 8)), "JPEG", progressive=True)
    last = encoded.rindex(b"\xff\xda")
    return encoded[:last] + encoded[last:-2] * (count - encoded.count(b"\xff\xda") + 1) + encoded[-2:]


def test_arrays_pil_bytes_and_paths_are_the_same_picture(tmp_path: Path) -> None:
    image = Image.fromarray(PICTURE)
    encoded = saved(image, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(encoded)
    for picture in (PICTURE, torch.from_numpy(PICTURE), image, encoded, path, str(path)):
        np.testing.assert_array_equal(read(attach(picture), LIMITS), PICTURE)


def test_encoded_images_are_sent_as_they_are() -> None:
    for kind, media_type in (("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")):
        encoded = saved(Image.fromarray(PICTURE), kind)
        assert attach(encoded) == Attachment(media_type, encoded)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_eight_bit_mode_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(PICTURE).convert(mode)
    for decoded in (decode(reference(saved(image, "PNG")), LIMITS), read(attach(image), LIMITS)):
        assert decoded.shape == PICTURE.shape
        np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


def test_of_a_cameras_jpeg_the_first_picture_is_read() -> None:
    """Phones put a small copy or a depth map behind it; viewers show the first."""
    alone, small = Image.fromarray(PICTURE), Image.fromarray(PICTURE[::2, ::2])
    several = saved(alone, "MPO", save_all=True, append_images=[small])
    assert attach(several).media_type == "image/jpeg"
    decoded = read(attach(several), LIMITS)
    np.testing.assert_array_equal(decoded, read(attach(saved(alone, "JPEG")), LIMITS))


FRAMES = [Image.fromarray(PICTURE), Image.fromarray(255 - PICTURE)]
HOSTILE: list[tuple[str, ImageRef, type[RewardError]]] = [
    ("no base64", ImageRef(media_type="image/png", data="a*b"), ImageInvalid),
    ("not ascii", ImageRef(media_type="image/png", data="é" * 8), ImageInvalid),
    ("empty", reference(b""), ImageInvalid),
    ("garbage", reference(b"\x80\x04pickle"), ImageInvalid),
    ("truncated", reference(saved(FRAMES[0], "PNG")[:-400]), ImageInvalid),
    ("another format", reference(saved(FRAMES[0], "JPEG")), ImageInvalid),
    ("gif", reference(saved(FRAMES[0], "GIF"), "image/gif"), MediaTypeUnsupported),
    ("svg", reference(b"<svg/>", "image/svg+xml"), MediaTypeUnsupported),
    ("tiff as png", reference(saved(FRAMES[0], "TIFF")), ImageInvalid),
    ("too many pixels", reference(saved(Image.new("L", (101, 100)), "PNG")), TooLarge),
    ("bomb", reference(png_of_size(60_000, 60_000)), TooLarge),
    ("no pixels", reference(png_of_size(0, 5)), ImageInvalid),
    ("no data", reference(png_of_size(5, 5)), ImageInvalid),
    ("too many bytes", reference(saved(FRAMES[0], "PNG") + b"\0" * 20_000), TooLarge),
    ("no palette", reference(without_palette()), ImageInvalid),
    ("too many scans", reference(jpeg_of_scans(65), "image/jpeg"), TooLarge),
    ("16 bits", reference(saved(Image.fromarray(np.full((4, 4), 9, np.uint16)), "PNG")), ImageInvalid),
    ("animated", reference(saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:])), ImageInvalid),
]


@pytest.mark.parametrize(
    ("image", "error"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
def test_what_cannot_be_read_is_a_typed_error(image: ImageRef, error: type[RewardError]) -> None:
    with pytest.raises(error) as caught:
        decode(image, LIMITS)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        PICTURE[..., :2],
        PICTURE.astype(np.float32),
        PICTURE[0],
        PICTURE[:0],
        "no such file.png",
        7,
        Image.new("F", (4, 4)),
        torch.from_numpy(PICTURE).permute(2, 0, 1),
        torch.zeros(8, 8, 3, dtype=torch.uint8, device="meta"),
    ],
)
def test_no_picture_is_refused(wrong: Any) -> None:
    with pytest.raises(ImageInvalid):
        attach(wrong)


def test_equal_shapes_travel_as_one_array() -> None:
    one = packed([PICTURE, 255 - PICTURE])
    assert isinstance(one, np.ndarray)
    np.testing.assert_array_equal(one[1], 255 - PICTURE)
    assert isinstance(packed([PICTURE, PICTURE[:5]]), list)


def test_a_jpeg_of_many_scans_is_read() -> None:
    assert decode(reference(jpeg_of_scans(64), "image/jpeg"), LIMITS).shape == (8, 8, 3)


def test_unknown_bytes_are_refused() -> None:
    with pytest.raises(MediaTypeUnsupported):
        attach(b"GIF89a")


RAW = "application/octet-stream"


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (Attachment(RAW, b"\0" * 11, (2, 2, 3)), ImageInvalid),
        (Attachment(RAW, b"\0" * 13, (2, 2, 3)), ImageInvalid),
        (Attachment(RAW, b"\0" * 12, (2**31, 2**31, 3)), TooLarge),
        (Attachment(RAW, b"\0" * 30_303, (101, 100, 3)), TooLarge),
        (Attachment("image/png", b"\0" * 12, (2, 2, 3)), MediaTypeUnsupported),
        (Attachment(RAW, b"\0" * 12), MediaTypeUnsupported),
    ],
)
def test_bytes_that_are_not_the_array_they_say(image: Attachment, error: type[RewardError]) -> None:
    with pytest.raises(error):
        read(image, LIMITS)
