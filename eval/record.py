"""Track records from held-out answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.calibration import Calibrator
from secondlook.eval.bootstrap import Interval, clustered_bootstrap, mean_interval
from secondlook.eval.reliability import auroc_of_confidence, brier, ccc, ece, nll, ocr
from secondlook.orchestrator.track_record import Measure, TrackRecord

DRAWS = 200
SHRUNK_BY = 2.0
"""Cases' worth of the overall accuracy that each label's precision is shrunk towards."""
Floats = NDArray[np.float64]


def track_record(
    agent: str,
    look: int,
    probs: Floats,
    raw: Floats,
    truth: NDArray[np.intp],
    groups: Sequence[str],
    labels: Sequence[str],
    calibrator: Calibrator,
    rng: np.random.Generator,
) -> TrackRecord:
    """Measure an agent.

    Parameters
    ----------
    agent, look
        Whose answers they are.
    probs : ndarray of shape (N, K)
        Cross-fitted calibrated answers; rows of nan for failures.
    raw : ndarray of shape (N, K)
        The same before calibration.
    truth : ndarray of shape (N,)
    groups : sequence of str
        N names; the intervals resample groups.
    labels : sequence of str
        K names.
    calibrator : Calibrator
    rng : numpy.random.Generator
    """
    answered: NDArray[np.bool_] = np.asarray(~np.isnan(probs).any(axis=1))
    p, y = probs[answered], truth[answered]
    units = [g for g, ok in zip(groups, answered, strict=True) if ok]
    confidence, top = p.max(axis=1, initial=0.0), p.argmax(axis=1)
    right = top == y
    raw_right = raw[answered].argmax(axis=1) == y

    def measure(found: Interval) -> Measure:
        return Measure(value=found.value, low=found.lo, high=found.hi, n=found.n)

    def over_groups(metric: str) -> Measure:
        statistic = {"ece": ece, "ccc": ccc}[metric]
        return measure(clustered_bootstrap(statistic, confidence, right, groups=units, draws=DRAWS, rng=rng))

    accuracy = float(right.mean()) if len(right) else float("nan")
    return TrackRecord(
        agent=agent,
        look=look,
        n=len(truth),
        n_failed=int((~answered).sum()),
        accuracy=measure(mean_interval(right, units, draws=DRAWS, rng=rng)),
        ece=over_groups("ece"),
        ece_raw=ece(raw[answered].max(axis=1, initial=0.0), raw_right),
        overconfidence=Measure(value=ocr(confidence, right), n=len(right)),
        correlation=over_groups("ccc"),
        brier=brier(p, y),
        nll=nll(p, y),
        auroc=auroc_of_confidence(confidence, right),
        precision={label: _precision(right[top == k], accuracy) for k, label in enumerate(labels)},
        calibrator=_in_words(calibrator),
    )


def _precision(right: NDArray[np.bool_], accuracy: float) -> Measure:
    value = (float(right.sum()) + SHRUNK_BY * accuracy) / (len(right) + SHRUNK_BY)
    return Measure(value=value, n=len(right))


def _in_words(calibrator: Calibrator) -> str:
    match calibrator.kind:
        case "none":
            return "none"
        case "temperature":
            return f"temperature {calibrator.temperature:.3g}"
        case "vector":
            return "vector"
