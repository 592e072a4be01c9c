"""The pictures that a question about a case shows: its own, and on a second look similar ones of known label."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from secondlook.agents.case import Case, Neighbour
from secondlook.agents.errors import AgentError, ConfigError
from secondlook.agents.photo import Photo

if TYPE_CHECKING:
    from PIL import Image


class Shown(NamedTuple):
    """A case whose pictures can be read."""

    case: Case
    """Its neighbours have a path only where their picture is shown, so that a question counts the right ones."""
    photos: tuple[Photo, ...]
    """The one in question first."""
    labels: tuple[str, ...]
    """Of the others."""


def show(case: Case, n_pictures: int) -> Shown:
    """Read the pictures of a case: up to `n_pictures` of its neighbours', without those that cannot be read.

    Raises
    ------
    ImageError
        When the picture in question cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> from secondlook.agents.case import Evidence
    >>> gone = Neighbour(id="n", label="cat", similarity=0.9, path="no/such/file.jpg")
    >>> case = Case(id="a", photo=Photo.of(np.zeros((8, 8), np.uint8)), evidence=Evidence(neighbours=(gone,)))
    >>> shown = show(case, 4)
    >>> len(shown.photos), shown.case.evidence.neighbours[0].path
    (1, None)
    """
    case.photo.pixels()
    if case.evidence is None or not n_pictures:
        return Shown(case, (case.photo,), ())
    neighbours: list[Neighbour] = []
    photos: list[Photo] = []
    labels: list[str] = []
    for neighbour in case.evidence.neighbours:
        photo = _readable(neighbour.path) if len(photos) < n_pictures else None
        if photo is not None:
            photos.append(photo)
            labels.append(neighbour.label)
        neighbours.append(neighbour if photo is not None else neighbour.model_copy(update={"path": None}))
    evidence = case.evidence.model_copy(update={"neighbours": tuple(neighbours)})
    return Shown(case.model_copy(update={"evidence": evidence}), (case.photo, *photos), tuple(labels))


def picture_digests(case: Case, n_pictures: int) -> tuple[str, ...]:
    """Digests of the files that `show` may read, without decoding any; empty for one that cannot be read."""
    neighbours = case.evidence.neighbours if case.evidence and n_pictures else ()
    return (_digest(case.photo), *(_digest_at(n.path) for n in neighbours if n.path))


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


def _readable(path: str | None) -> Photo | None:
    if path is None:
        return None
    try:
        photo = Photo.of(path)
        photo.pixels()
    except (AgentError, ConfigError):
        return None
    return photo


def _digest(photo: Photo) -> str:
    try:
        return photo.digest
    except AgentError:
        return ""


def _digest_at(path: str) -> str:
    try:
        return _digest(Photo.of(path))
    except ConfigError:
        return ""
