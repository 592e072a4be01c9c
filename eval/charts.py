"""The report's two curves, as coordinates; the template draws them, so that they follow light and dark."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from secondlook.eval.bootstrap import wilson
from secondlook.eval.reliability import reliability_bins
from secondlook.eval.selective import risk_coverage
from secondlook.eval.tally import Tally

Tick = tuple[float, str]

LEFT, RIGHT, TOP = 44.0, 350.0, 30.0
"""Edges of the plotted area in a picture 360 wide and 330 high; y grows downwards."""

POINTS = 400
"""A curve is thinned to at most this many points."""

CEILINGS = {0.02: 4, 0.05: 5, 0.1: 5, 0.2: 4, 0.3: 3, 0.5: 5, 1.0: 5}
"""Upper ends of the risk axis, and into how many steps each is divided."""


class Dot(NamedTuple):
    """A bin of the reliability diagram: what it holds, and where it is drawn."""

    n: int
    confidence: float
    accuracy: float
    x: float
    y: float
    lo: float
    hi: float
    r: float
    top: float
    """Upper end of the bin's bar in the histogram below."""


class Reliability(NamedTuple):
    """Share right against confidence, and a histogram below it."""

    x0: float
    x1: float
    y0: float
    y1: float
    xticks: list[Tick]
    yticks: list[Tick]
    dots: list[Dot]
    base: float
    most: int


class Risk(NamedTuple):
    """Error among the accepted against the share accepted."""

    x0: float
    x1: float
    y0: float
    y1: float
    xticks: list[Tick]
    yticks: list[Tick]
    points: str
    target: float | None
    gate: tuple[float, float, float] | None
    """Where the gate stood: x, y, and how far to the side its name is written."""


def _x(share: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * share, 1)


def _ticks(steps: int, top: float = 1.0) -> list[tuple[float, str]]:
    return [(top * i / steps, f"{100 * top * i / steps:g} %") for i in range(steps + 1)]


def reliability_chart(tally: Tally) -> Reliability | None:
    """Place the reliability diagram of the labelled cases; None without any that has a confidence."""
    confidence = np.frombuffer(tally.confidence, dtype=np.float32).astype(np.float64)
    known = np.isfinite(confidence)
    if not known.any():
        return None
    correct = np.frombuffer(tally.correct, dtype=np.uint8)[known]
    table = reliability_bins(confidence[known], correct, bins=15)
    bottom, base, room = 232.0, 312.0, 34.0
    most = int(table.n.max())

    def y(share: float) -> float:
        return round(bottom + (TOP - bottom) * share, 1)

    dots = []
    for n, conf, acc in zip(table.n.tolist(), table.confidence.tolist(), table.accuracy.tolist(), strict=True):
        if n:
            ends, share = wilson(round(acc * n), n), n / most
            dots.append(
                Dot(
                    n,
                    conf,
                    acc,
                    _x(conf),
                    y(acc),
                    y(ends.lo),
                    y(ends.hi),
                    round(2.5 + 4 * share**0.5, 1),
                    base - room * share,
                )
            )
    return Reliability(
        LEFT,
        RIGHT,
        bottom,
        TOP,
        [(_x(at), text) for at, text in _ticks(5)],
        [(y(at), text) for at, text in _ticks(5)],
        dots,
        base,
        most,
    )


def risk_chart(tally: Tally, target: float | None) -> Risk | None:
    """Place the risk-coverage curve of the labelled cases; None without any."""
    if not tally.labelled:
        return None
    curve = risk_coverage(np.frombuffer(tally.trust, dtype=np.float32), np.frombuffer(tally.correct, dtype=np.uint8))
    error = tally.accepted_wrong / tally.accepted_labelled if tally.accepted_labelled else None
    # Below a fifth of coverage one error is a spike; the axis ignores it, and the line is cut at the axis' end.
    settled = curve.risk[curve.coverage >= 0.2]
    needed = 1.1 * max(float(settled.max()), target or 0.0, error or 0.0)
    ceiling = next((c for c in CEILINGS if c >= needed), 1.0)
    bottom = 284.0

    def y(share: float) -> float:
        return round(bottom + (TOP - bottom) * min(1.0, share / ceiling), 1)

    kept = np.unique(np.linspace(0, len(curve.risk) - 1, POINTS).astype(int))
    points = " ".join(f"{_x(curve.coverage[i])},{y(curve.risk[i])}" for i in kept)
    gate = None
    if error is not None:
        coverage = tally.accepted_labelled / tally.labelled
        gate = (_x(coverage), y(error), 10.0 if coverage < 0.5 else -10.0)
    return Risk(
        LEFT,
        RIGHT,
        bottom,
        TOP,
        [(_x(at), text) for at, text in _ticks(5)],
        [(y(at), text) for at, text in _ticks(CEILINGS[ceiling], ceiling)],
        points,
        None if target is None else y(target),
        gate,
    )
