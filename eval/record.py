"""Track records from held-out answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.answer_table import DECIMALS
from secondlook.agents.calibration import Calibrator
from secondlook.eval.bootstrap import Interval, clustered_bootstrap, mean_interval
from secondlook.eval.held_out import Answers
from secondlook.eval.proper_scores import brier, nll
from secondlook.eval.reliability import auroc_of_confidence, ccc, ece, ocr
from secondlook.orchestrator.panel import column
from secondlook.orchestrator.track_record import Measure, TrackRecord

DRAWS = 200
SHRUNK_BY = 2.0
"""Cases' worth of the overall accuracy that each label's precision is shrunk towards."""
FEW = 6
"""An agent whose words know this many confidences or fewer is named, once it has answered enough cases."""
ENOUGH = 20
Floats = NDArray[np.float64]


def track_records(
    answers: Sequence[Answers],
    truth: NDArray[np.intp],
    groups: Sequence[str],
    labels: Sequence[str],
    rng: np.random.Generator,
) -> tuple[TrackRecord, ...]:
    """Measure every agent at every look; see `track_record`."""
    return tuple(
        track_record(a.agent, a.look, a.probs, a.raw, truth, groups, labels, a.calibrator, rng, a.stated)
        for a in answers
    )


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
    stated: Floats | None = None,
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
    stated : ndarray of shape (N,), optional
        The confidences in the agent's own words, nan where it stated none; without it, the tops of `raw` are judged.
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

    spoken = raw[answered].max(axis=1, initial=0.0) if stated is None else stated[~np.isnan(stated)]
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
        confidences=len(np.unique(np.round(spoken, DECIMALS))),
        degenerate=degenerate(spoken, FEW if stated is not None else 1),
    )


def degenerate(confidences: Floats, few: int = FEW) -> str:
    """Say in words if an agent gives hardly any different confidences.

    Parameters
    ----------
    confidences : ndarray of shape (N,)
    few : int
        The largest number of distinct ones that is worth a word. A single one always is, several only where there are
        at least 20 cases.

    Examples
    --------
    >>> degenerate(np.array([0.95, 0.95]))
    'says .95 to everything'
    >>> degenerate(np.tile([0.95, 0.85], 10))
    'says 2 values: .85, .95'
    >>> degenerate(np.array([0.95, 0.85]))
    ''
    """
    values = np.unique(np.round(confidences, DECIMALS))
    words = [f"{value:.4g}".removeprefix("0") or "0" for value in values[:FEW]]
    if len(values) == 1 and len(confidences) > 1:
        return f"says {words[0]} to everything"
    if 1 < len(values) <= few and len(confidences) >= ENOUGH:
        return f"says {len(values)} values: {', '.join(words)}"
    return ""


def confidence_notes(records: Sequence[TrackRecord]) -> list[str]:
    """Sentences for the notes of a model: who gives hardly any different confidences."""
    return [
        f"{column(record.agent, record.look)} {record.degenerate}"
        f"{'; that tells nothing beyond its label' if record.confidences == 1 else ''} "
        f"(calibrated by: {record.calibrator})."
        for record in records
        if record.degenerate
    ]


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
        case "table":
            bins = calibrator.table.n_bins if calibrator.table else 0
            return f"answer table, {bins} confidence {'bin' if bins == 1 else 'bins'}"
