"""The cases of a report as blocks of JSON, which the page's script reads piece by piece."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup

from secondlook.eval.tally import FLAGS, Row, Tally, read_rows

Pictures = Callable[[str], bytes | None]
"""Case digest or neighbour path -> a small JPEG, or None where there is none."""

CHUNK = 100
"""Cases a data block holds; the page splits a block when it shows one of its cases."""

MAX_NEIGHBOUR_PICTURES = 3000
"""Distinct neighbours whose picture is kept in the page; later ones are shown by name."""

MAX_PICTURE_BYTES = 64 * 1024
"""A larger picture is left out."""


def meta(tally: Tally) -> dict[str, Any]:
    """Build what the page's script must know before it reads a case."""
    filters = [("all", "all", 0), ("accepted", "accepted", FLAGS["accepted"]), ("review", "review", FLAGS["review"])]
    if tally.labelled:
        filters += [
            ("wrong", "wrong", FLAGS["wrong"]),
            ("accepted-wrong", "accepted and wrong", FLAGS["accepted"] | FLAGS["wrong"]),
            ("sure-wrong", "confident and wrong", FLAGS["confident"] | FLAGS["wrong"]),
        ]
    filters += [("second", "second look", FLAGS["second"]), ("strangers", "strangers", FLAGS["stranger"])]
    return {
        "names": tally.names,
        "chunk": CHUNK,
        "filters": [{"key": k, "text": text, "mask": mask, "n": tally.having(mask)} for k, text, mask in filters],
    }


def blocks(path: Path, tally: Tally, pictures: Pictures) -> Iterator[Markup]:
    """Write the cases as script elements that hold data.

    Parameters
    ----------
    path : Path
        A run's verdicts.jsonl.
    tally : Tally
        Counted over the same file; lines that were added since are left to the next report.
    pictures : callable
        Asked once for each case, and for each of the first neighbours.

    Yields
    ------
    Markup
        For each `CHUNK` cases: an index of them, their details one a line, and the neighbours' pictures new to them.
    """
    numbers = {name: i for i, name in enumerate(tally.names)}
    rows = islice(read_rows(path), tally.n)
    shown: dict[str, int | None] = {}
    stored = 0
    while chunk := list(islice(rows, CHUNK)):
        index, details = [], []
        fresh: list[str] = []
        for row in chunk:
            for near in dict.fromkeys(n.path for n in row.evidence if n.path):
                if near not in shown and len(shown) < MAX_NEIGHBOUR_PICTURES:
                    data = _base64(pictures(near))
                    shown[near] = None if data is None else stored + len(fresh)
                    fresh += [] if data is None else [data]
            label, truth = (-1 if name is None else numbers[name] for name in (row.label, row.truth))
            index.append([row.id, label, truth, row.flags, _rounded(row.trust)])
            details.append(_detail(row, _base64(pictures(row.digest)) if row.digest else None, shown))
        yield Markup('<script type="application/json" class="index">{}</script>').format(script(index))
        yield _lines('class="cases"', details)
        if fresh:
            yield _lines(f'class="pictures" data-first="{stored}"', fresh)
        stored += len(fresh)


def _detail(row: Row, picture: str | None, shown: dict[str, int | None]) -> dict[str, Any]:
    """Reduce a verdict to what the page shows of it."""
    said = {"__all__": {"opinions": {"__all__": {"label", "confidence"}}}}
    left_out: Any = {
        "labels": True,
        "model": True,
        "digest": True,
        "probs": True,
        "reason": True,
        "trust": True,
        "evidence": True,
        "cost": True,
    }
    kept: dict[str, Any] = _rounded(row.model_dump(mode="json", exclude=left_out | {"looks": said}))
    neighbours = [
        {"id": n.id, "label": n.label, "similarity": _rounded(n.similarity), "picture": shown.get(n.path or "")}
        for n in row.evidence
    ]
    for opinion in (opinion for look in kept["looks"] for opinion in look["opinions"]):
        if not opinion["reason"]:
            del opinion["reason"]
    spent = {"spent": row.cost.in_words} if row.cost.in_words else {}
    return kept | {"picture": picture, "evidence": neighbours} | spent


def _rounded(value: Any) -> Any:
    """Round every float of a JSON value to four digits; what is not finite becomes None."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return {key: _rounded(item) for key, item in value.items()} if isinstance(value, dict) else value


def _base64(picture: bytes | None) -> str | None:
    return base64.b64encode(picture).decode() if picture and len(picture) <= MAX_PICTURE_BYTES else None


def script(value: object) -> Markup:
    """Write JSON that can stand in a script element: nothing in it can end the element or open a comment."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _lines(attributes: str, values: list[Any]) -> Markup:
    body = Markup("\n").join(map(script, values))
    return Markup(f'<script type="application/jsonl" {attributes}>{body}</script>')
