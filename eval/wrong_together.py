"""Which agents are wrong on the same images, laid out for the report."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

from secondlook.eval.measured import Measured
from secondlook.eval.standings import spoken

PANEL = 12
"""Up to this many columns the errors that agents share are shown as a matrix."""


class Pair(NamedTuple):
    """A cell of the matrix of errors that agents share; on the diagonal an agent meets itself."""

    wrong: float | None
    """Share of images on which both are wrong."""
    phi: float | None
    shade: int
    """0 to 5, by the correlation."""


class WrongTogether(NamedTuple):
    """Errors that agents share: a matrix, lower half, and a sentence."""

    names: list[str]
    rows: list[list[Pair]]
    sentence: str


def wrong_together(measured: Measured) -> WrongTogether | None:
    """Lay out which agents are wrong together; None where it was not measured, or for more than `PANEL` columns."""
    columns, numbers = measured.names("agents", "acc"), measured.numbers
    pairs = {(a, b): f"errors/{a} + {b}" for a, b in combinations(columns, 2)}
    known = {pair: key for pair, key in pairs.items() if f"{key}/both_wrong" in numbers}
    if not known or len(columns) > PANEL:
        return None
    rows = []
    for i, b in enumerate(columns):
        row = []
        for a in columns[:i]:
            phi = numbers.get(f"{pairs[a, b]}/phi")
            wrong = numbers.get(f"{pairs[a, b]}/both_wrong")
            row.append(Pair(wrong, phi, 0 if phi is None else max(0, min(5, round(5 * phi)))))
        rows.append([*row, Pair(1 - numbers[f"agents/{b}/acc"], None, 0)])
    # Two looks of one agent share most errors; that is no news.
    others = [pair for pair in known if pair[0].partition("@")[0] != pair[1].partition("@")[0]] or list(known)
    a, b = max(others, key=lambda pair: numbers[f"{known[pair]}/both_wrong"])
    both, agreed = (numbers.get(f"{known[a, b]}/{figure}") for figure in ("both_wrong", "wrong_of_agreed"))
    sentence = f"Of different agents, {spoken(a)} and {spoken(b)} are most often wrong together: on {_percent(both)} of"
    sentence += " the images" + ("." if agreed is None else f"; where they agree, {_percent(agreed)} is wrong.")
    return WrongTogether([spoken(name) for name in columns], rows, sentence)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}\u202f%"
