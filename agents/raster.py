"""From the bytes of a file to upright RGB of 8 bits, or an `ImageError` that says why not.

Files are foreign input: only plain raster formats are opened at all, and dimensions are checked before decoding.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from secondlook.agents.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""The only formats opened: no interpreters (PDF, EPS, PSD) for foreign input. MPO, as phones write it, is a JPEG."""
MAX_PIXELS = 100_000_000
"""Largest image decoded, in pixels; known from the header, before any memory is spent on it."""
MIN_SIDE = 8
"""Smallest side of an image, in pixels: below it there is nothing to judge."""
MAX_ASPECT = 50
"""Longest side over shortest: a stripe becomes gigantic where an encoder scales its short side up."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow raises on damaged files, found by corrupting files of every format at random (see the tests).
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError, Warning,
)  # fmt: skip

# Pillow warns about odd metadata it then copes with; `catch_warnings` is not safe in threads, so this is said once,
# and last, where every filter of the program's own goes before it.
warnings.filterwarnings("ignore", module=r"PIL\.", append=True)


def opened(data: bytes) -> Image.Image:
    """Open as one of `FORMATS`, reading the header only.

    Image.open would do, but for its own limit on pixels, a warning that depends on a global.

    Raises
    ------
    ImageError
        Where there are no bytes, or they are of no such format, or damaged.
    """
    if not data:
        raise ImageError("is empty (0 bytes).")
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(data[:16]) is True:
            try:
                return factory(io.BytesIO(data), "")
            except _DAMAGE as error:
                raise ImageError(f"starts as {name} does, but is damaged or cut short ({error}).") from error
    raise ImageError(f"is not an image that can be read ({', '.join(FORMATS)} can).")


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode one picture to RGB, turned as the camera noted, transparency laid over white.

    Raises
    ------
    ImageError
        For dimensions beyond the limits, several frames, or damage.
    """
    _check_size(*image.size)
    try:
        if frames := _frames(image):
            raise ImageError(f"holds {frames} frames; extract one.")
        image.load()
        return _rgb8(_upright(image))
    except _DAMAGE as error:
        raise ImageError(f"is damaged or cut short ({error}).") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"is {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are decoded.")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"is {width} x {height} pixels; a side needs at least {MIN_SIDE}.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"is {width} x {height} pixels; one side may be at most {MAX_ASPECT} times the other.")


def _frames(image: Image.Image) -> int:
    """Count the frames where there are several, else 0; a phone's MPO counts as the one photograph it shows."""
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return 0
    return int(getattr(image, "n_frames", 1))


def _upright(image: Image.Image) -> Image.Image:
    """Turn as the camera noted; a note that cannot be read is no reason to lose the photograph."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:
        return image
    return image if turn is None else image.transpose(turn)


def _rgb8(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(clear, mask=clear)
        return white
    return image.convert("RGB")


def _eight_bits(gray: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale gray values [H, W] to uint8.

    16-bit files by 1/257, whatever they hold, so that dark stays dark. For 32-bit integers and floats the file does
    not say what white is: 1 for floats up to 1, 255 and 65,535 where the values fit, else the largest value; black is
    0, or the smallest value where one is negative.
    """
    low, high = float(gray.min()), float(gray.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels that are not numbers")
    black = min(low, 0.0)
    if gray.dtype.itemsize == 2:
        white = 65535.0
    else:
        steps = (1.0, 255.0, 65535.0) if gray.dtype.kind == "f" else (255.0, 65535.0)
        white = next((s for s in steps if high <= s and low >= 0), high)
    scaled = (gray.astype(np.float32) - black) * np.float32(255.0 / max(white - black, 1e-12))
    eight: NDArray[np.uint8] = np.rint(scaled).clip(0, 255).astype(np.uint8)
    return eight
