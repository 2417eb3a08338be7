"""Pictures made to hurt whoever decodes them, and odd ones that are right: bytes, made when asked for."""

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

PICTURE = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG, JPEG, WEBP = "image/png", "image/jpeg", "image/webp"


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A file by Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(width: int, height: int, *, depth: int = 8, colour: int = 0, before: bytes = b"") -> bytes:
    """A PNG of zeros, grey if not said otherwise, with chunks of one's own before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = deflated(height * (1 + width * {0: 1, 2: 3}[colour] * depth // 8))
    return SIGNATURE + header + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def deflated(size: int) -> bytes:
    """So many zeros or up to a mebibyte more, as a zlib stream: a block of a mebibyte, repeated."""
    packer, blocks = zlib.compressobj(9, zlib.DEFLATED, -15), size // 2**20 + 1
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = (blocks * 2**20 % 65521) << 16 | 1
    return b"\x78\xda" + blocks * block + b"\x03\0" + struct.pack(">I", checksum)


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose pixels are gone over so many times, a dozen bytes each."""
    encoded = saved(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = encoded.rindex(b"\xff\xda")
    return encoded[:last] + encoded[last:-2] * scans + encoded[-2:]


def animated(kind: str, frames: int) -> bytes:
    """An animation of small frames, no two alike in a row."""
    images = [Image.new("L", (4, 4), 255 * (frame % 2)) for frame in range(frames)]
    return saved(images[0], kind, save_all=True, append_images=images[1:])


def gif_of(frames: int) -> bytes:
    """So many times the same frame."""
    start, frame, *_ = animated("GIF", 3).split(b"\x21\xf9\x04")
    return start + frames * (b"\x21\xf9\x04" + frame) + b";"


def webp_of(width: int, height: int) -> bytes:
    """A WebP that promises a canvas of that size and has a picture of 4 x 4."""
    encoded = bytearray(animated("WEBP", 2))
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    start = encoded.index(b"VP8X") + 12
    encoded[start : start + 6] = size
    return bytes(encoded)


def without(encoded: bytes, name: bytes) -> bytes:
    """A PNG that lacks a chunk."""
    start = encoded.index(name) - 4
    (length,) = struct.unpack_from(">I", encoded, start)
    return encoded[:start] + encoded[start + 12 + length :]


def bombs() -> Iterable[tuple[str, str, bytes, set[int]]]:
    """Name, media type, file, and what may come of it: files that are small to send and large to read."""
    yield "60000 x 60000 of zeros", PNG, png_of(60_000, 60_000, depth=1), {413}
    yield "one pixel wide", PNG, png_of(1, 20_000_000, depth=1), {413}
    yield "one pixel high", PNG, png_of(20_000_000, 1, depth=1), {413}
    yield "APNG of 10000 frames", PNG, animated("PNG", 10_000), {422}
    yield "GIF of 10000 frames", "image/gif", gif_of(10_000), {415}
    yield "GIF of 10000 frames as PNG", PNG, gif_of(10_000), {422}
    yield "animated WebP", WEBP, animated("WEBP", 500), {422}
    yield "WebP of a large canvas", WEBP, webp_of(16_383, 16_383), {413, 422}
    yield "WebP of the largest canvas", WEBP, webp_of(2**16, 2**16 - 1), {413, 422}
    text = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}
    for name, start in text.items():
        large = png_of(8, 8, before=chunk(name, start + deflated(2**29)))
        yield f"{name.decode()} of half a gigabyte", PNG, large, {422}
        many = b"".join(chunk(name, start + deflated(2**20 - 1)) for _ in range(300))
        yield f"300 {name.decode()} of a megabyte", PNG, png_of(8, 8, before=many), {200, 422}
    yield "pixels of a gigabyte for 8 x 8", PNG, png_of(8, 8, before=chunk(b"IDAT", deflated(2**30))), {200}
    yield "JPEG of 100000 scans", JPEG, jpeg_of_scans(2048, 100_000), {413}
    yield "100000 chunks", PNG, png_of(8, 8, before=chunk(b"aaAa", b"") * 100_000), {200}
    yield "100000 comments", JPEG, SMALL_JPEG[:2] + b"\xff\xfe\x00\x02" * 100_000 + SMALL_JPEG[2:], {200}


SMALL_JPEG = saved(Image.new("L", (8, 8)), "JPEG")


def broken() -> Iterable[tuple[str, str, bytes, set[int]]]:
    """What is no picture, or not the one that it says."""
    image = Image.fromarray(PICTURE)
    for kind, media_type in (("PNG", PNG), ("JPEG", JPEG), ("WEBP", WEBP)):
        encoded = saved(image, kind)
        yield f"half a {kind}", media_type, encoded[: len(encoded) // 2], {422}
        yield f"the first bytes of a {kind}", media_type, encoded[:12], {422}
        yield f"no {kind} at all", media_type, b"", {422}
        wrong = next(other for other in (PNG, JPEG, WEBP) if other != media_type)
        yield f"a {kind} as {wrong}", wrong, encoded, {422}
    for kind in ("TIFF", "PDF", "BMP", "ICO", "GIF"):
        other = saved(image, kind)
        yield f"{kind}", f"image/{kind.lower()}", other, {415}
        yield f"{kind} as PNG", PNG, other, {422}
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "SVG", "image/svg+xml", svg, {415}
    yield "SVG as PNG", PNG, svg, {422}
    yield "PSD as PNG", PNG, b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(300), {422}
    yield "pickle as PNG", PNG, b"\x80\x04c__main__\nexit\n)R.", {422}
    yield "0 x 0", PNG, SIGNATURE + chunk(b"IHDR", bytes(8) + b"\x08\0\0\0\0") + chunk(b"IEND", b""), {422}
    yield "16 bits of grey", PNG, png_of(4, 4, depth=16), {422}
    palette = saved(image.convert("P"), "PNG", transparency=1)
    yield "a transparent colour without a palette", PNG, without(palette, b"PLTE"), {422}
    yield "no pixels", PNG, without(saved(image, "PNG"), b"IDAT"), {422}
    yield "no header", PNG, without(saved(image, "PNG"), b"IHDR"), {422}


def odd() -> Iterable[tuple[str, str, bytes, Image.Image]]:
    """Name, media type, file, and the picture that is scored: unusual and right."""
    image = Image.fromarray(PICTURE)
    turned = Image.Exif()
    turned[0x0112] = 6  # a viewer shows it turned by 90 degrees
    yield "EXIF orientation", PNG, saved(image, "PNG", exif=turned), image
    sideways = saved(image, "JPEG", exif=turned)
    yield "EXIF orientation in a JPEG", JPEG, sideways, Image.open(io.BytesIO(saved(image, "JPEG")))
    cmyk = saved(image.convert("CMYK"), "JPEG")
    yield "CMYK", JPEG, cmyk, Image.open(io.BytesIO(cmyk)).convert("RGB")
    yield "16 bits of a colour", PNG, png_of(4, 4, depth=16, colour=2), Image.new("RGB", (4, 4))
    palette = image.quantize(7)
    yield "palette with alpha", PNG, saved(palette, "PNG", transparency=bytes(7)), palette.convert("RGB")
    clear = image.convert("RGBA")
    clear.putalpha(0)
    yield "wholly transparent", PNG, saved(clear, "PNG"), image
    yield "1 x 1", PNG, png_of(1, 1), Image.new("RGB", (1, 1))
    yield "1 x 1000", PNG, png_of(1, 1000), Image.new("RGB", (1, 1000))
    yield "followed by a ZIP", PNG, saved(image, "PNG") + b"PK\x03\x04" + bytes(100), image
    page = (
        PNG,
        saved(image, "PNG")[:-12] + chunk(b"tEXt", b"a\0<script>alert(1)</script>") + chunk(b"IEND", b""),
    )
    yield ("with a script in its text", *page, image)
    yield "WebP without loss", WEBP, saved(image, "WEBP", lossless=True), image
