"""Fusion and trust of one look, and what a second look changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from secondlook.eval.embedded import Embedded
from secondlook.eval.error_correlation import error_correlation
from secondlook.eval.held_out import Answers
from secondlook.orchestrator.fusion import Fitted
from secondlook.orchestrator.gate import Gate, LookData
from secondlook.orchestrator.loss import Loss
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.policies import PolicyName, available, do_no_harm, fit_fusion
from secondlook.orchestrator.shared_errors import SharedErrors
from secondlook.orchestrator.track_record import FlipLedger
from secondlook.orchestrator.trust_model import Trust, features, fit_trust

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LookFit:
    """Fusion and trust of one look, with their cross-fitted output on the calibration cases."""

    fitted: Fitted
    trust: Trust
    data: LookData
    labels: NDArray[np.intp]
    """Of each cross-fitted belief, by the task's costs; of shape (N,)."""


def opinions_of(answers: Sequence[Answers]) -> Opinions:
    """Stack the cross-fitted answers of a look, or of both."""
    probs, said = np.stack([a.probs for a in answers]), np.stack([a.raw for a in answers])
    none = np.full(probs.shape[1], np.nan)
    consistency = np.stack([none if a.consistency is None else a.consistency for a in answers])
    return Opinions(tuple(a.column for a in answers), probs, said, consistency)


def fit_look(
    answers: Sequence[Answers],
    split: Embedded,
    typicality: Floats,
    folds: NDArray[np.intp] | None,
    policy: PolicyName = "pool",
    loss: Loss | None = None,
) -> LookFit:
    """Fit fusion and trust on calibrated answers, everything cross-fitted.

    The best agent alone decides where the policy's cross-fitted NLL is not lower, and where it cannot be fitted: a
    neighbour vote that this look has not, tables of too many labels.
    """
    opinions = opinions_of(answers)
    named = policy if policy in available(opinions.columns, opinions.n_labels) else "best_agent"
    fitted = do_no_harm(fit_fusion(named, opinions, split.truth, folds), opinions, split.truth, folds)
    loss = loss or Loss()
    labels = loss.labels(fitted.beliefs)
    x = features(fitted.beliefs, opinions.probs, typicality, labels, opinions.consistency)
    trust, held_out = fit_trust(x, labels == split.truth, folds)
    return LookFit(fitted, trust, LookData(held_out, loss.of(labels, split.truth)), labels)


def shared_errors(opinions: Opinions, truth: NDArray[np.intp]) -> tuple[SharedErrors, ...]:
    """Measure how each two of M agents err together; see `secondlook.eval.error_correlation`."""
    labels = np.where(opinions.answered, np.nan_to_num(opinions.probs).argmax(axis=2), -1)
    found = error_correlation(labels, truth)
    return tuple(
        SharedErrors(
            agents=(opinions.columns[a], opinions.columns[b]),
            n=int(found.n[a, b]),
            phi=float(found.phi[a, b]),
            both_wrong=float(found.both_wrong[a, b]),
            agree=float(found.agree[a, b]),
            wrong_of_agreed=float(found.wrong_of_agreed[a, b]),
        )
        for a, b in combinations(range(len(opinions.columns)), 2)
    )


def final_beliefs(first: LookFit, second: LookFit, gate: Gate, typicality: Floats) -> Floats:
    """Beliefs of shape (N, K) that cases end with: the first look's where it decides, else the second's."""
    decided = gate.accepts(first.data.trust, typicality, last=False)
    return np.where(decided[:, None], first.fitted.beliefs, second.fitted.beliefs)


def count_flips(first: LookFit, second: LookFit, gate: Gate, typicality: Floats, truth: NDArray[np.intp]) -> FlipLedger:
    """Count what second looks would do to the labels of the cases that would be looked at again."""
    asked = ~gate.accepts(first.data.trust, typicality, last=False)
    before, after = first.labels[asked] == truth[asked], second.labels[asked] == truth[asked]
    changed = first.labels[asked] != second.labels[asked]
    saved = first.data.loss[asked].astype(np.float64) - second.data.loss[asked]
    return FlipLedger(
        asked=int(asked.sum()),
        fixed=int((~before & after).sum()),
        broken=int((before & ~after).sum()),
        saved=float(saved.sum()),
        changed_between_wrongs=int((~before & ~after & changed).sum()),
    )
