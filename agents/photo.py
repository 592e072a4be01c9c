"""One image from anywhere: read once, decoded once, or refused in a sentence.

Whatever comes in (a path, bytes, a Pillow image, an array) comes out as RGB pixels the right way up, or as an
`ImageError` that names the image and the reason. Files are foreign input: their size is checked before they are read,
their dimensions before they are decoded (see `secondlook.agents.raster`).
"""

from __future__ import annotations

import hashlib
import io
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from secondlook.agents.crop import SUBJECT, WHOLE, pixels_of, sides_of
from secondlook.agents.errors import ConfigError, ImageError
from secondlook.agents.raster import opened, upright_rgb
from secondlook.agents.subject_mask import subject_view

MAX_BYTES = 256 * 2**20
"""Largest file read, in bytes."""


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
            case bytes():
                return cls(source, name)
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
                with self._remembering_failure():
                    self._decode() if isinstance(self._source, Image.Image) else self._read()
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
                with self._remembering_failure():
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
        """Return a view of the pixels by its name (see `secondlook.agents.crop`); "whole" is the pixels themselves.

        Raises
        ------
        ConfigError
            When there is no such view.
        """
        if name == SUBJECT:
            return subject_view(self.pixels())
        sides, image = sides_of(name), self.pixels()
        return image if name == WHOLE else image.crop(pixels_of(sides, *image.size))

    def thumbnail(self, side: int = 128) -> bytes:
        """Return a small JPEG of the whole image, its longest side at most `side` pixels.

        A JPEG file that is not decoded yet is decoded at a fraction of its size, and not kept.
        """
        with self._lock:
            if self._pixels is None and self._error is None and not isinstance(self._source, Image.Image):
                with self._remembering_failure(), opened(self._read()) as image:
                    image.draft("RGB", (side, side))
                    small = upright_rgb(image)
            else:
                small = self.pixels()
        # Averaging whole blocks: a thumbnail takes a third of the time that resampling to the exact side took.
        small = small.reduce(-(-max(small.size) // side))
        out = io.BytesIO()
        small.save(out, "JPEG", quality=80)
        return out.getvalue()

    def _read(self) -> bytes:
        """Return the bytes of the file; their digest is taken on the way, and must be what it was before."""
        assert not isinstance(self._source, Image.Image)
        try:
            data = self._source if isinstance(self._source, bytes) else _bytes_of(self._source)
        except OSError as error:
            raise ImageError(f"cannot be read ({error.strerror or error}).") from error
        if len(data) > MAX_BYTES:
            raise ImageError(f"is larger than {MAX_BYTES // 2**20} MiB.")
        digest = hashlib.sha256(data).hexdigest()
        if self._digest not in (None, digest):
            raise ImageError("has changed since it was first read.")
        self._digest = digest
        return data

    def _decode(self) -> Image.Image:
        if not isinstance(self._source, Image.Image):
            with opened(self._read()) as image:
                return upright_rgb(image)
        image = upright_rgb(self._source)
        self._digest = hashlib.sha256(f"RGB {image.size} ".encode() + image.tobytes()).hexdigest()
        return image

    @contextmanager
    def _remembering_failure(self) -> Iterator[None]:
        """Put the name before the reason of an `ImageError`, and raise the same again next time."""
        if self._error is not None:
            raise ImageError(self._error)
        try:
            yield
        except ImageError as error:
            self._error = f"{self.path or self.name}: {error}"
            raise ImageError(self._error) from error


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


def _shrunk(image: Image.Image, side: int | None) -> Image.Image:
    if side is None or max(image.size) <= side:
        return image
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
