"""The figures of an evaluated run, as one flat dictionary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secondlook.eval.alternatives import alternatives
from secondlook.eval.answers import answer_figures
from secondlook.eval.bootstrap import Interval, mean_interval, ratio_interval, wilson
from secondlook.eval.measured import Metrics
from secondlook.eval.ood import aupr, auroc, fpr_at_recall
from secondlook.eval.proper_scores import brier_parts
from secondlook.eval.reliability import class_wise_ece, ece
from secondlook.eval.resample import intervals
from secondlook.eval.set_metrics import coverage_by_label, coverage_by_size
from secondlook.eval.tally import Row
from secondlook.orchestrator.fitted import Model
from secondlook.orchestrator.loss import Loss
from secondlook.orchestrator.opinions import Opinions

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SHARES = ("acc/top1", "cal/ocr", "set/coverage")
"""Figures that are shares of the cases."""


@dataclass(frozen=True)
class Scored:
    """A run's rows as arrays; a case nobody could judge has no label and a uniform belief counted against it.

    Attributes
    ----------
    truth, label, first_label : ndarray of shape (N,)
        Indices; -1 where there is no label. `first_label` is the first look's.
    probs : ndarray of shape (N, K)
        Beliefs; uniform where nobody answered.
    sets : ndarray of bool, shape (N, K)
        Prediction sets; all labels where nobody answered.
    trust, confidence : ndarray of shape (N,)
    accepted, looked_twice : ndarray of shape (N,)
    groups : tuple of N str
    """

    truth: NDArray[np.intp]
    label: NDArray[np.intp]
    first_label: NDArray[np.intp]
    probs: Floats
    sets: Bools
    trust: Floats
    accepted: Bools
    looked_twice: Bools
    groups: tuple[str, ...]

    @property
    def right(self) -> Bools:
        """Whether the label is the truth."""
        return np.asarray(self.label == self.truth)

    @property
    def confidence(self) -> Floats:
        """Top probability of each belief."""
        return np.asarray(self.probs.max(axis=1))


def score(rows: Iterable[Row]) -> Scored:
    """Collect labelled rows; only numbers are kept."""
    truth, label, first, probs, sets, trust, accepted, twice, groups = [], [], [], [], [], [], [], [], []
    for row in rows:
        index = {name: k for k, name in enumerate(row.labels)}
        truth.append(index[row.truth] if row.truth is not None else -1)
        label.append(index[row.label] if row.label is not None else -1)
        first.append(index[row.first_label] if row.first_label is not None else -1)
        probs.append(row.probs or (1 / len(index),) * len(index))
        sets.append([name in row.prediction_set for name in row.labels])
        trust.append(row.trust or 0.0)
        accepted.append(row.action == "accept")
        twice.append(len(row.looks) > 1)
        groups.append(row.group or row.id)
    return Scored(
        truth=np.array(truth, dtype=np.intp),
        label=np.array(label, dtype=np.intp),
        first_label=np.array(first, dtype=np.intp),
        probs=np.array(probs, dtype=np.float64),
        sets=np.array(sets, dtype=np.bool_),
        trust=np.array(trust),
        accepted=np.array(accepted, dtype=np.bool_),
        looked_twice=np.array(twice, dtype=np.bool_),
        groups=tuple(groups),
    )


def summarise(scored: Scored, model: Model, opinions: Opinions, rng: np.random.Generator) -> Metrics:
    """Compute every figure of an evaluation.

    Parameters
    ----------
    scored : Scored
        N labelled cases.
    model : Model
    opinions : Opinions
        What each agent says of every case when it is asked about all of them.
    rng : numpy.random.Generator
        Draws the bootstrap samples.

    Returns
    -------
    dict
        By the name of the figure; `/lo` and `/hi` are the ends of a 95 % interval that resamples groups. None where a
        figure is undefined.
    """
    s, gate = scored, model.gate
    right = s.right
    wrong_accepted = s.accepted & ~right
    metrics: Metrics = {"n": len(right), "n_groups": len(set(s.groups)), "n_failed": int((s.label < 0).sum())}
    figures = answer_figures(s.probs, s.truth, labels=s.label, trust=s.trust, sets=s.sets, risk=gate.target_risk)
    for name, found in intervals({"": figures}, len(right), s.groups, rng=rng).items():
        _put(metrics, name, _share(found) if name in SHARES else found)
    if "cal/ece_classwise" not in metrics:
        metrics["cal/ece_classwise"] = class_wise_ece(s.probs, s.truth)
    metrics |= {f"cal/brier_{name}": value for name, value in brier_parts(s.probs, s.truth)._asdict().items()}
    metrics |= {
        "cal/trust_ece": ece(s.trust, right),
        "set/level": gate.sets.level,
        "set/coverage_worst_label": coverage_by_label(s.sets, s.truth).least,
        "set/coverage_worst_size": coverage_by_size(s.sets, s.truth).least,
    }
    _put(metrics, "sel/coverage", _share(mean_interval(s.accepted, s.groups, rng=rng)))
    accepted_groups = len({g for g, taken in zip(s.groups, s.accepted, strict=True) if taken})
    error = ratio_interval(wrong_accepted, s.accepted, s.groups, rng=rng)._replace(groups=accepted_groups)
    _put(metrics, "sel/accepted_error", _share(error))
    if (loss := Loss(costs=model.task.costs)).graded:
        cost = loss.of(s.label, s.truth) * s.accepted
        _put(metrics, "sel/accepted_cost", ratio_interval(cost, s.accepted, s.groups, rng=rng))
    metrics |= {
        "sel/target_risk": gate.target_risk,
        "sel/delta": gate.delta,
        "sel/threshold": gate.threshold,
        "look/second_share": float(s.looked_twice.mean()),
        "look/fixed": int((s.looked_twice & right & (s.first_label != s.truth)).sum()),
        "look/broken": int((s.looked_twice & ~right & (s.first_label == s.truth)).sum()),
    }
    metrics |= alternatives(model, opinions, s.truth, right, s.groups, rng)
    return {name: _clean(value) for name, value in metrics.items()}


def summarise_strangers(inside: Sequence[float], outside: Sequence[float], reviewed: int) -> Metrics:
    """Figures of a folder of images that are not of the task.

    Parameters
    ----------
    inside, outside : sequence of float
        Typicality of the task's own images, and of these; unreadable ones left out.
    reviewed : int
        How many of these went to review.
    """
    n = len(outside)
    known, strange = [-x for x in inside], [-x for x in outside]
    return {
        "n": n,
        "review_share": _clean(reviewed / n if n else math.nan),
        "auroc": _clean(auroc(known, strange)),
        "aupr": _clean(aupr(known, strange)),
        "fpr95": _clean(fpr_at_recall(known, strange)),
    }


def _share(found: Interval) -> Interval:
    """Give a share of 0 or 1, where resampling has no width, the interval of as many independent groups."""
    if found.value in (0.0, 1.0) and found.groups:
        return wilson(round(found.value * found.groups), found.groups)._replace(n=found.n)
    return found


def _put(metrics: Metrics, name: str, found: Interval) -> None:
    metrics |= {name: found.value, f"{name}/lo": found.lo, f"{name}/hi": found.hi}


def _clean(value: float | int | str | None) -> float | int | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
