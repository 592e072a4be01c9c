"""A picture as text: what a chat message carries in place of a file."""

from __future__ import annotations

import base64
import io

from PIL import Image

LOSSLESS_PIXELS = 256 * 256
"""Up to so many pixels are written as PNG: there is little to save, and every pixel counts."""
QUALITY = 90


def picture_url(image: Image.Image, max_side: int) -> str:
    """Write a picture as a data URL, made smaller where a side is longer than `max_side` pixels.

    Small pictures are PNG, larger ones JPEG of quality 90. The picture itself stays as it is.

    Examples
    --------
    >>> picture_url(Image.new("RGB", (2, 2)), 768)[:30]
    'data:image/png;base64,iVBORw0K'
    >>> picture_url(Image.new("RGB", (2000, 1000)), 768)[:23]
    'data:image/jpeg;base64,'
    """
    small = fitted(image, max_side)
    if small.width * small.height <= LOSSLESS_PIXELS:
        return f"data:image/png;base64,{_base64(small, 'PNG')}"
    return f"data:image/jpeg;base64,{_base64(small, 'JPEG')}"


def picture_asset(image: Image.Image, max_side: int) -> dict[str, str]:
    """Write a picture as an asset of `/v1/systemone`: a PNG, made smaller where a side is longer than `max_side`."""
    return {"type": "image", "format": "png", "data_base64": _base64(fitted(image, max_side), "PNG")}


def fitted(image: Image.Image, max_side: int) -> Image.Image:
    """Return a copy as RGB whose longest side is at most `max_side` pixels, in the same proportions."""
    small = image.convert("RGB") if image.mode != "RGB" else image.copy()
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return small


def _base64(image: Image.Image, form: str) -> str:
    out = io.BytesIO()
    image.save(out, form, quality=QUALITY)
    return base64.b64encode(out.getvalue()).decode("ascii")
