"""What was measured of confidence, trust and sets: each figure with its interval, in plain words."""

from __future__ import annotations

from typing import NamedTuple

from secondlook.eval.measured import Measured


class Gauge(NamedTuple):
    """A figure and what it says."""

    name: str
    value: str
    ends: str
    """Of its 95 % interval; empty where there is none."""
    meaning: str


def gauges(measured: Measured) -> list[Gauge]:
    """List the figures that say whether confidence, trust and sets can be believed; those that were measured.

    Examples
    --------
    >>> measured = Measured({"cal/ece": 0.02, "cal/ece/lo": 0.01, "cal/ece/hi": 0.04}, {})
    >>> [(gauge.value, gauge.ends) for gauge in gauges(measured)]
    [('0.020', '0.010 to 0.040')]
    """
    rows = (
        ("cal/ece", "calibration error (ECE)", ".3f", "mean gap between confidence and share right; 0 is perfect"),
        ("cal/brier", "Brier score", ".3f", _brier(measured)),
        ("sel/auroc", "AUROC of trust", ".3f", "chance that a right answer is trusted more than a wrong one"),
        ("sel/eaurc", "excess AURC", ".3f", "what ordering the same answers perfectly would save; 0 is perfect"),
        ("sel/risk_at_90", "wrong at 90\u202f% coverage", "%", "among the most trusted nine in ten"),
        ("set/coverage", "sets that hold the truth", "%", _coverage(measured)),
        ("set/size", "labels in a set", ".2f", "on average"),
    )
    found = []
    for key, name, form, meaning in rows:
        if figure := measured.figure(key):
            ends = [_said(end, form) for end in (figure.lo, figure.hi) if end is not None and figure.lo != figure.hi]
            found.append(Gauge(name, _said(figure.value, form), " to ".join(ends), meaning))
    return found


def _said(value: float, form: str) -> str:
    return f"{100 * value:.1f}\u202f%" if form == "%" else f"{value:{form}}"


def _brier(measured: Measured) -> str:
    """Take the score apart, where its parts are known."""
    parts = [measured.numbers.get(f"cal/brier_{name}") for name in ("reliability", "resolution", "uncertainty")]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return "squared distance of the probabilities from the truth; 0 is perfect"
    reliability, resolution, uncertainty = known
    return (
        f"guessing by the labels' shares would score {uncertainty:.3f}; telling images apart takes off "
        f"{resolution:.3f}, miscalibration adds {reliability:.3f}"
    )


def _coverage(measured: Measured) -> str:
    """Say what was promised, whether it held, and where it held least."""
    figure, level = measured.figure("set/coverage"), measured.numbers.get("set/level")
    said = []
    if figure and level is not None:
        missed = "" if figure.value >= level else ", not kept here"
        if missed and figure.hi is not None and figure.hi >= level:
            missed = ", within the interval"
        said.append(f"promised {100 * level:.3g}\u202f%{missed}")
    for name, whose in (("label", "for the worst label"), ("size", "for sets of the worst size")):
        worst = measured.numbers.get(f"set/coverage_worst_{name}")
        if worst is not None:
            said.append(f"{_said(worst, '%')} {whose}")
    return "; ".join(said)
