"""A head that `fit` compared with others when it chose the panel."""

from __future__ import annotations

from secondlook.agents.case import Frozen, MaybeNan

NAN = float("nan")


class Candidate(Frozen):
    """What was measured of a head by cross-validation on the train split, no group on both sides."""

    name: str
    kind: str
    n: int = 0
    """Training cases it was judged on; 0 where it was not."""
    accuracy: MaybeNan = NAN
    nll: MaybeNan = NAN
    """Mean negative log-likelihood of the truth, after cross-fitted calibration."""
    ece: MaybeNan = NAN
    """After cross-fitted calibration, 15 bins."""
    seconds: float = 0.0
    """Of all its fits."""
    chosen: bool = False
    """Whether it joined the panel."""
    note: str = ""
    """Why it was not judged, where it was not."""
