"""Which heads form the panel: by their kinds, from a YAML file, or all there are, to be compared."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from secondlook.agents.adaptation import AnyAdapter
from secondlook.agents.clip_svd import ClipSvdSpec
from secondlook.agents.errors import ConfigError
from secondlook.agents.heads import KINDS, AnyHead
from secondlook.agents.maple import MapleSpec
from secondlook.eval.yaml_file import read_yaml

AUTO = "auto"
FORM = (
    "Write `panel:`, a list of heads, each with a kind; or `candidates:`, a list to choose from; and if need be "
    "`adapters:`. See docs/methods.md."
)
ADAPTERS = {"clip-svd": ClipSvdSpec, "maple": MapleSpec}
"""What may stand beside the heads, by kind."""
BOXES = "com-clip"
KEYS = {"panel": AnyHead, "candidates": AnyHead, "adapters": AnyAdapter}


class PanelChoice(NamedTuple):
    """Heads to take as they are, or candidates to choose from; and ways to adapt the encoder."""

    panel: tuple[AnyHead, ...] | None
    """None: the default."""
    candidates: tuple[AnyHead, ...] = ()
    adapters: tuple[AnyAdapter, ...] = ()
    boxes: bool = False
    """Whether ComCLIP looks at the boxes of the cases."""


def read_panel(text: str) -> PanelChoice:
    """Read what a person says of the panel.

    Parameters
    ----------
    text : str
        ``auto``; kinds with commas between, such as ``linear,gda,clip-svd``; or a YAML file with `panel` or
        `candidates`, and `adapters`.

    Raises
    ------
    ConfigError
        When there is no such kind or file, or a setting is wrong: names it.

    Examples
    --------
    >>> [head.kind for head in read_panel("linear").panel]
    ['linear']
    """
    if text == AUTO:
        return PanelChoice(None, tuple(kind() for kind in KINDS.values()))
    if text.endswith((".yaml", ".yml")):
        return _read_file(Path(text))
    kinds = [kind.strip() for kind in text.split(",")]
    known = [*KINDS, *ADAPTERS, BOXES]
    if unknown := [kind for kind in kinds if kind not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"There is no head {unknown[0]!r}.", f"{hint}There are {', '.join(known)}, and auto.")
    heads = tuple(KINDS[kind]() for kind in kinds if kind in KINDS)
    adapters = tuple(ADAPTERS[kind]() for kind in kinds if kind in ADAPTERS)
    return PanelChoice(heads or None, adapters=adapters, boxes=BOXES in kinds)


def _read_file(path: Path) -> PanelChoice:
    found = read_yaml(path, "the panel", FORM)
    if not isinstance(found, dict) or not found or set(found) - {*KEYS, "boxes"}:
        raise ConfigError(f"{path} holds other things than `panel:`, `candidates:` and `adapters:`.", FORM)
    read: dict[str, Any] = {}
    boxes = found.pop("boxes", False)
    if not isinstance(boxes, bool):
        raise ConfigError(f"{path}: boxes is {str(boxes)[:40]!r}.", "Write `boxes: true`, or leave it out.")
    for key, rows in found.items():
        try:
            read[key] = TypeAdapter(tuple[KEYS[key], ...]).validate_python(rows)  # type: ignore[valid-type]
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, (key, *first["loc"])))
            raise ConfigError(f"{path}: {where}: {first['msg']}.", FORM) from None
    return PanelChoice(read.get("panel"), read.get("candidates", ()), read.get("adapters", ()), boxes)
