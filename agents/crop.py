"""Names of the views of a picture: crops, groups of them, and the subject alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

from secondlook.agents.errors import ConfigError

Sides = tuple[float, float, float, float]
"""Left, top, right and bottom of a crop, as fractions of width and height."""
WHOLE = "whole"
SUBJECT = "subject"
"""The picture with everything but its subject blurred; see `secondlook.agents.subject_mask`."""
CROPS: dict[str, Sides] = {
    WHOLE: (0.0, 0.0, 1.0, 1.0),
    "zoom": (0.125, 0.125, 0.875, 0.875),
    "top_left": (0.0, 0.0, 2 / 3, 2 / 3),
    "top_right": (1 / 3, 0.0, 1.0, 2 / 3),
    "bottom_left": (0.0, 1 / 3, 2 / 3, 1.0),
    "bottom_right": (1 / 3, 1 / 3, 1.0, 1.0),
    "centre": (1 / 6, 1 / 6, 5 / 6, 5 / 6),
}
VIEWS = (*CROPS, SUBJECT)
"""Every view that has a name of its own."""
GROUPS: dict[str, tuple[str, ...]] = {
    "five_crop": ("top_left", "top_right", "bottom_left", "bottom_right", "centre"),
}
"""Names that stand for several views: four corners and the centre, all of one size."""
BOX = "box:"
"""How the name of a crop of one's own begins: box:0.1,0.2,0.5,0.6 is left, top, right, bottom."""
_FORMS = f"The views are {', '.join(VIEWS)}; {', '.join(GROUPS)}; and box:LEFT,TOP,RIGHT,BOTTOM in fractions."


def expanded(names: Iterable[str]) -> tuple[str, ...]:
    """Put its views in the place of each group; a view that is named twice counts once.

    Raises
    ------
    ConfigError
        When there is no such view.

    Examples
    --------
    >>> expanded(["five_crop", "centre", "zoom"])
    ('top_left', 'top_right', 'bottom_left', 'bottom_right', 'centre', 'zoom')
    """
    found = [view for name in names for view in GROUPS.get(name, (name,))]
    return tuple(dict.fromkeys(view if view in VIEWS else box_view(sides_of(view)) for view in found))


def box_view(sides: Sides) -> str:
    """Name the crop of a box; equal boxes have one name.

    Examples
    --------
    >>> box_view((0, 0.25, 0.5, 1))
    'box:0.0,0.25,0.5,1.0'
    """
    return BOX + ",".join(repr(float(side)) for side in sides)


def sides_of(view: str) -> Sides:
    """Where a crop lies.

    Raises
    ------
    ConfigError
        When there is no such crop.

    Examples
    --------
    >>> sides_of("zoom"), sides_of("box:0,0.25,0.5,1")
    ((0.125, 0.125, 0.875, 0.875), (0.0, 0.25, 0.5, 1.0))
    """
    if view in CROPS:
        return CROPS[view]
    if not view.startswith(BOX):
        raise ConfigError(f"There is no view {view[:80]!r}.", _FORMS)
    try:
        left, top, right, bottom = (float(number) for number in view.removeprefix(BOX)[:200].split(","))
    except ValueError as error:
        raise ConfigError(f"The view {view[:80]!r} has no four sides.", _FORMS) from error
    check_sides(left, top, right, bottom)
    return left, top, right, bottom


def pixels_of(sides: Sides, width: int, height: int) -> tuple[int, int, int, int]:
    """Bring a crop to whole pixels, at least one wide and high.

    Examples
    --------
    >>> pixels_of((0.5, 0.0, 0.501, 1.0), 100, 50)
    (50, 0, 51, 50)
    """
    left, top = min(round(sides[0] * width), width - 1), min(round(sides[1] * height), height - 1)
    return left, top, max(round(sides[2] * width), left + 1), max(round(sides[3] * height), top + 1)


def check_sides(left: float, top: float, right: float, bottom: float) -> None:
    """Refuse a box that is not in the picture, or has no area.

    Raises
    ------
    ConfigError
    """
    sides = (left, top, right, bottom)
    if not all(map(math.isfinite, sides)) or not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ConfigError(
            f"A box cannot have the sides {', '.join(f'{side:g}' for side in sides)}.",
            "Give left, top, right, bottom as fractions of width and height: 0 <= left < right <= 1, the same down.",
        )
