"""One image from anywhere: read once, decoded once, or refused in a sentence.

Whatever comes in (a path, bytes, a Pillow image, an array) comes out as RGB pixels the right way up, or as an
`ImageError` that names the image and the reason. Files are foreign input: their size is checked before they are read,
their dimensions before they are decoded, and only plain raster formats are opened at all.
"""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from secondlook.agents.errors import ConfigError, ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""The only formats opened: no interpreters (PDF, EPS, PSD) for foreign input. MPO, as phones write it, is a JPEG."""
MAX_BYTES = 256 * 2**20
"""Largest file read, in bytes."""
MAX_PIXELS = 100_000_000
"""Largest image decoded, in pixels; known from the header, before any memory is spent on it."""
MIN_SIDE = 8
"""Smallest side of an image, in pixels: below it there is nothing to judge."""
MAX_ASPECT = 50
"""Longest side over shortest: a stripe becomes gigantic where an encoder scales its short side up."""

VIEWS: dict[str, tuple[float, float, float, float]] = {
    "whole": (0.0, 0.0, 1.0, 1.0),
    "zoom": (0.125, 0.125, 0.875, 0.875),
    "top_left": (0.0, 0.0, 2 / 3, 2 / 3),
    "top_right": (1 / 3, 0.0, 1.0, 2 / 3),
    "bottom_left": (0.0, 1 / 3, 2 / 3, 1.0),
    "bottom_right": (1 / 3, 1 / 3, 1.0, 1.0),
}
"""Named crops as fractions of width and height: left, top, right, bottom."""

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
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, AttributeError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError, Warning,
)  # fmt: skip

# Pillow warns about odd metadata it then copes with; `catch_warnings` is not safe in threads, so this is said once,
# and last, where every filter of the program's own goes before it.
warnings.filterwarnings("ignore", module=r"PIL\.", append=True)


class Photo:
    """One image, wherever it comes from. Make it with `Photo.of`.

    Nothing is read until digest or pixels are asked for. Safe to share between threads; the images it returns are
    shared too, so do not draw on them.

    Attributes
    ----------
    name : str
        What messages call it.
    path : Path or None
        Where it came from, if from a file.

    Examples
    --------
    >>> photo = Photo.of(np.zeros((16, 32), np.uint8), name="night")
    >>> photo.pixels().size, photo.pixels().mode, photo.view("zoom").size
    ((32, 16), 'RGB', (24, 12))
    >>> Photo.of(b"")
    Photo('image')
    >>> Photo.of(b"").pixels()
    Traceback (most recent call last):
    secondlook.agents.errors.ImageError: image: is empty (0 bytes).
    """

    __slots__ = ("_digest", "_error", "_lock", "_pixels", "_side", "_source", "name", "path")

    def __init__(self, source: Path | bytes | Image.Image, name: str | None = None) -> None:
        self._source = source
        self.path = source if isinstance(source, Path) else None
        self.name = name or (self.path.name if self.path else "image")
        self._lock = threading.RLock()
        self._digest: str | None = None
        self._error: str | None = None
        self._pixels: Image.Image | None = None
        self._side: int | None = None

    @classmethod
    def of(cls, source: Photo | str | Path | bytes | Image.Image | np.ndarray, name: str | None = None) -> Photo:
        """Make a photo of anything that holds one image.

        Parameters
        ----------
        source : Photo, str, Path, bytes, PIL.Image.Image or ndarray of uint8
            A path must exist. An array is [H, W] (gray), [H, W, 3] (RGB) or [H, W, 4] (RGBA) and is copied. A photo is
            returned as it is.
        name : str, optional
            What messages call it; the file's name by default.

        Raises
        ------
        ConfigError
            For a missing file, a folder, a URL, or an array of another shape or type.
        """
        match source:
            case Photo():
                return source
            case str() | Path():
                return cls(_existing(source), name)
            case bytes() | bytearray() | memoryview():
                return cls(bytes(source), name)
            case Image.Image():
                return cls(source, name)
            case np.ndarray():
                return cls(_picture(source), name)
        raise ConfigError(
            f"An image cannot be made of {type(source).__name__}.",
            "Give a path, the bytes of a file, a PIL.Image or a uint8 array [H, W, 3].",
        )

    def __repr__(self) -> str:
        return f"Photo({str(self.path or self.name)!r})"

    def __reduce__(self) -> tuple[type[Photo], tuple[Path | bytes | Image.Image, str]]:
        return Photo, (self._source, self.name)

    @property
    def digest(self) -> str:
        """SHA-256 as 64 hexadecimal digits: of the file's bytes; of the upright RGB pixels for images and arrays.

        A file need not be an image to have a digest, but it must be readable: else `ImageError`.
        """
        with self._lock:
            if self._digest is None:
                if isinstance(self._source, Image.Image):
                    self._decode()
                else:
                    self._read()
            assert self._digest is not None
            return self._digest

    def pixels(self) -> Image.Image:
        """Return the image as upright RGB, decoded once and kept until `release`.

        Gray values of 16 bits are scaled to 8, never clipped; transparency is laid over white.

        Raises
        ------
        ImageError
            Names the image and the reason. A failure is remembered, and raised again without reading again.
        """
        with self._lock:
            if self._pixels is None:
                self._pixels = _shrunk(self._decode(), self._side)
            return self._pixels

    def release(self) -> None:
        """Forget the pixels; asked again, they are decoded again."""
        with self._lock:
            self._pixels = None

    def shrink(self, side: int = 1024) -> None:
        """Keep from now on only a version whose longest side is at most `side` pixels; the digest stays."""
        with self._lock:
            self._pixels = _shrunk(self.pixels(), side)
            self._side = min(side, self._side or side)

    def view(self, name: str) -> Image.Image:
        """Return a named crop of the pixels (see `VIEWS`); "whole" is the pixels themselves."""
        if name not in VIEWS:
            raise ConfigError(f"There is no view {name!r}.", f"The views are {', '.join(VIEWS)}.")
        image = self.pixels()
        if name == "whole":
            return image
        left, top, right, bottom = VIEWS[name]
        width, height = image.size
        return image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))

    def thumbnail(self, side: int = 112) -> bytes:
        """Return a small JPEG of the whole image, its longest side at most `side` pixels."""
        out = io.BytesIO()
        _shrunk(self.pixels(), side).save(out, "JPEG", quality=80)
        return out.getvalue()

    def _refuse(self, reason: str, cause: BaseException | None = None) -> ImageError:
        self._error = f"{self.path or self.name}: {reason}"
        error = ImageError(self._error)
        error.__cause__ = cause
        return error

    def _read(self) -> bytes:
        """Return the bytes of the file; its digest is taken on the way, and must be what it was before."""
        if self._error is not None:
            raise ImageError(self._error)
        assert not isinstance(self._source, Image.Image)
        try:
            data = self._source if isinstance(self._source, bytes) else _bytes_of(self._source)
        except OSError as error:
            raise self._refuse(f"cannot be read ({error.strerror or error}).", error) from error
        if len(data) > MAX_BYTES:
            raise self._refuse(f"is larger than {MAX_BYTES // 2**20} MiB.")
        digest = hashlib.sha256(data).hexdigest()
        if self._digest not in (None, digest):
            raise self._refuse("has changed since it was first read.")
        self._digest = digest
        return data

    def _decode(self) -> Image.Image:
        if self._error is not None:
            raise ImageError(self._error)
        if isinstance(self._source, Image.Image):
            image = self._rgb(self._source)
            self._digest = hashlib.sha256(f"RGB {image.size} ".encode() + image.tobytes()).hexdigest()
            return image
        data = self._read()
        if not data:
            raise self._refuse("is empty (0 bytes).")
        opened = _opened(data)
        if opened is None:
            raise self._refuse(f"is not an image that can be read ({', '.join(FORMATS)} can).")
        with opened:
            return self._rgb(opened)

    def _rgb(self, image: Image.Image) -> Image.Image:
        if reason := _fault(image):
            raise self._refuse(reason)
        try:
            if frames := _frames(image):
                raise self._refuse(f"holds {frames} frames; extract one.")
            image.load()
            return _rgb8(_upright(image))
        except _DAMAGE as error:
            raise self._refuse(f"is damaged or cut short ({error}).", error) from error


def _existing(source: str | Path) -> Path:
    if "://" in str(source)[:16] or str(source)[:6].lower() in ("http:/", "https:"):
        raise ConfigError(f"{str(source)[:200]} is a URL; images are not fetched.", "Download it and give the file.")
    path = Path(source)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{str(source)[:200]}: {reason}.", "Check the path; it is relative to here.") from error
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{path} is a folder, not an image.", "Give one image; a folder goes to triage.")
    return path


def _picture(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ConfigError(
            f"image: expected uint8 [H, W, 3], [H, W, 4] or [H, W], got {array.dtype} {array.shape}.",
            "Scale the values to 0..255, convert to uint8, and put the channels last.",
        )
    if array.size == 0:
        raise ConfigError(f"image: the array {array.shape} holds no pixel.", "Give an array with height and width.")
    return Image.fromarray(array.copy())


def _bytes_of(path: Path) -> bytes:
    # A named pipe called leaf.jpg would block for ever, and /dev/zero never end.
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _opened(data: bytes) -> Image.Image | None:
    """Open as one of `FORMATS`, header only.

    Image.open would do, but for its own limit on pixels, a warning that depends on a global.
    """
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(data[:16]) is True:
            try:
                return factory(io.BytesIO(data), "")
            except _DAMAGE:
                continue
    return None


def _fault(image: Image.Image) -> str | None:
    """Say what is wrong with an image's dimensions, known before it is decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        return f"is {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are decoded."
    if min(width, height) < MIN_SIDE:
        return f"is {width} x {height} pixels; a side needs at least {MIN_SIDE}."
    if max(width, height) > MAX_ASPECT * min(width, height):
        return f"is {width} x {height} pixels; the longer side may be at most {MAX_ASPECT} times the shorter."
    return None


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


def _eight_bits(gray: np.ndarray) -> np.ndarray:
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
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def _shrunk(image: Image.Image, side: int | None) -> Image.Image:
    if side is None or max(image.size) <= side:
        return image
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
