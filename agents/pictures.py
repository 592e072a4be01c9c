"""The pictures that go with a question: the case's own, and those of similar cases that can be read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from secondlook.agents.case import Case, Neighbour
from secondlook.agents.errors import ConfigError, ImageError
from secondlook.agents.photo import Photo

if TYPE_CHECKING:
    from PIL import Image


class Shown(NamedTuple):
    """A case as it is asked about, with its pictures."""

    case: Case
    """Its neighbours have a path only where their picture is shown, so that the question counts the right ones."""
    photos: tuple[Photo, ...]
    """The case's own, which may turn out to be unreadable; then the neighbours'."""


def shown(case: Case, most: int) -> Shown:
    """Choose the pictures of a case: its own, and of its neighbours the most similar that can be read.

    Parameters
    ----------
    case : Case
    most : int
        Neighbours shown.
    """
    if case.evidence is None:
        return Shown(case, (case.photo,))
    photos, neighbours = [case.photo], []
    for neighbour in case.evidence.neighbours:
        photo = _readable(neighbour) if len(photos) <= most else None
        if photo is not None:
            photos.append(photo)
        neighbours.append(neighbour if photo else neighbour.model_copy(update={"path": None}))
    evidence = case.evidence.model_copy(update={"neighbours": tuple(neighbours)})
    return Shown(case.model_copy(update={"evidence": evidence}), tuple(photos))


def _readable(neighbour: Neighbour) -> Photo | None:
    if neighbour.path is None:
        return None
    try:
        photo = Photo.of(neighbour.path, name=neighbour.id)
        photo.shrink()
    except (ImageError, ConfigError):
        return None
    return photo


def shrunk(photo: Photo, max_pixels: int) -> Image.Image:
    """Return a photo at most so large, its sides in proportion.

    It is shrunk to 1,024 pixels a side first, as every other agent sees it, whichever of them looks first.

    Raises
    ------
    ImageError
        When it cannot be read.

    Examples
    --------
    >>> from PIL import Image
    >>> shrunk(Photo.of(Image.new("RGB", (400, 100))), 10_000).size
    (200, 50)
    """
    from PIL import Image

    photo.shrink()
    image = photo.pixels()
    width, height = image.size
    if width * height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (width * height))
    return image.resize((max(1, int(width * scale)), max(1, int(height * scale))), Image.Resampling.BICUBIC)
