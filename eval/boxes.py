"""The boxes column of a data set: JSON to boxes, checked."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from secondlook.agents.case import MOST_BOXES, Box
from secondlook.agents.errors import ConfigError

LONGEST = 16_384
"""Characters of one cell."""
_BOXES: TypeAdapter[tuple[Box, ...]] = TypeAdapter(Annotated[tuple[Box, ...], Field(max_length=MOST_BOXES)])
_FORM = (
    'Give a JSON list such as [{"left": 0.1, "top": 0.2, "right": 0.5, "bottom": 0.6, "word": "spot"}], '
    "in fractions of width and height; the word may be left out."
)


def read_boxes(cell: str, where: str) -> tuple[Box, ...]:
    """Read one cell; an empty one holds no boxes.

    Parameters
    ----------
    cell : str
        A JSON list of objects with left, top, right, bottom and, if it is known, word.
    where : str
        File and line, for messages.

    Raises
    ------
    ConfigError
        Names the line, the box and what is wrong with it.

    Examples
    --------
    >>> read_boxes('[{"left": 0, "top": 0.5, "right": 1, "bottom": 1}]', "line 2")
    (Box(left=0.0, top=0.5, right=1.0, bottom=1.0, word=None),)
    >>> read_boxes("", "line 3")
    ()
    """
    if not cell:
        return ()
    if len(cell) > LONGEST:
        raise ConfigError(f"{where}: the boxes take {len(cell):,} characters; {LONGEST:,} are read.", _FORM)
    try:
        return _BOXES.validate_json(cell, strict=True)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)[0]
        place = ", ".join(f"box {part + 1}" if isinstance(part, int) else str(part) for part in found["loc"])
        raise ConfigError(f"{where}: the boxes are wrong ({place or 'JSON'}: {found['msg']}).", _FORM) from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.what}", _FORM) from error
