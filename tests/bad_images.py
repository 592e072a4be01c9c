"""Files that are not one readable image, each with the words its refusal must hold."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class BadImage(NamedTuple):
    make: Callable[[], bytes]
    says: str


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def png_of_zeros(width: int, height: int) -> bytes:
    """A valid 1-bit PNG of any size, written without ever holding its pixels."""
    deflate = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join(deflate.compress(row * 100) for _ in range(height // 100)) + deflate.compress(row * (height % 100))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data + deflate.flush()) + chunk(b"IEND", b"")


def frames(kind: str, n: int, **options: object) -> bytes:
    first, *rest = [noise(seed=i) for i in range(n)]
    return encoded(first, kind, save_all=True, append_images=rest, **options)


@cache
def bomb() -> bytes:
    return png_of_zeros(30_000, 30_000)


BAD_IMAGES = {
    "empty.jpg": BadImage(lambda: b"", "is empty (0 bytes)"),
    "truncated.jpg": BadImage(lambda: encoded(noise(), "JPEG")[:-900], "truncated"),
    "truncated.png": BadImage(lambda: encoded(noise(), "PNG")[:-900], "damaged or cut short"),
    "truncated.webp": BadImage(lambda: encoded(noise(), "WEBP")[:-900], "starts as WEBP does, but is damaged"),
    "truncated.bmp": BadImage(lambda: encoded(noise(), "BMP")[:-900], "truncated"),
    "header-only.jpg": BadImage(lambda: encoded(noise(), "JPEG")[:20], "starts as JPEG does, but is damaged"),
    "text.jpg": BadImage(lambda: b"I am not a photograph.\n" * 40, "not an image that can be read"),
    "page.png": BadImage(lambda: b"<!doctype html><title>404</title>", "not an image that can be read"),
    "postscript.jpg": BadImage(lambda: encoded(noise(), "EPS"), "not an image that can be read"),
    "document.png": BadImage(lambda: encoded(noise(), "PDF"), "not an image that can be read"),
    "animated.gif": BadImage(lambda: frames("GIF", 3), "holds 3 frames; extract one"),
    "animated.webp": BadImage(lambda: frames("WEBP", 3), "holds 3 frames; extract one"),
    "animated.png": BadImage(lambda: frames("PNG", 3), "holds 3 frames; extract one"),
    "pages.tif": BadImage(lambda: frames("TIFF", 2), "holds 2 frames; extract one"),
    "bomb.png": BadImage(bomb, "is 30000 x 30000 pixels; at most 100 million"),
    "dot.png": BadImage(lambda: encoded(noise(1, 1), "PNG"), "is 1 x 1 pixels; a side needs at least 8"),
    "stripe.png": BadImage(lambda: encoded(noise(4000, 8), "PNG"), "is 4000 x 8 pixels; one side may be at most 50"),
}


def write_bad_images(folder: Path) -> dict[Path, str]:
    """Write them all; return what the refusal of each must say."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, bad in BAD_IMAGES.items():
        (folder / name).write_bytes(bad.make())
    return {folder / name: bad.says for name, bad in BAD_IMAGES.items()}
