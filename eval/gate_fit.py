"""The gates of a model, chosen on held-out cases: for runs of one look and of two."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secondlook.eval.embedded import Embedded
from secondlook.eval.look_fit import LookFit, count_flips, final_beliefs
from secondlook.orchestrator.config import Config
from secondlook.orchestrator.gate import Gate, choose_threshold
from secondlook.orchestrator.loss import Loss
from secondlook.orchestrator.prediction_set import fit_prediction_sets
from secondlook.orchestrator.track_record import FlipLedger


class Gates(NamedTuple):
    """What was chosen."""

    by_looks: dict[int, Gate]
    """By the number of looks of a run, each with the prediction sets of the beliefs that its cases end with."""
    ledger: FlipLedger


def choose_gates(
    config: Config,
    looks: dict[int, LookFit],
    typicality: NDArray[np.float64],
    split: Embedded,
    folds: NDArray[np.intp] | None,
    loss: Loss,
    again: NDArray[np.bool_] | None = None,
) -> Gates:
    """Choose thresholds and prediction sets, and count what second looks change.

    Parameters
    ----------
    config : Config
    looks : dict of int to LookFit
        Looks 1 and 2.
    typicality : ndarray of shape (N,)
    split : Embedded
        The N calibration cases.
    folds : ndarray of shape (N,) or None
        Without folds trust was fitted on the very cases it would be tested on, which proves nothing: no threshold.
    loss : Loss
    again : ndarray of bool of shape (N,), optional
        Cases that a judge sends on to the second look, whatever their trust.
    """
    sent = looks[1]
    if again is not None and again.any():
        # What asks for another look is never accepted at the first, as if it had no trust at all.
        sent = replace(sent, data=sent.data._replace(trust=np.where(again, 0.0, sent.data.trust)))
    gate = Gate(
        target_risk=config.target_risk,
        loss="cost" if loss.graded else "error",
        delta=config.delta,
        stranger_limit=config.stranger_limit,
        early_trust=config.early_trust,
    )
    gates: dict[int, Gate] = {}
    shown = {1: [looks[1].data], 2: [sent.data, looks[2].data]}
    for n, known in shown.items():
        gates[n] = gate if folds is None else choose_threshold(gate, known, typicality, split.groups)
        last = looks[1].fitted.beliefs if n == 1 else final_beliefs(sent, looks[2], gates[n], typicality)
        sets = fit_prediction_sets(
            config.set_method, last, split.truth, config.set_level, per_label=config.set_per_label
        )
        gates[n] = gates[n].model_copy(update={"sets": sets})
    return Gates(gates, count_flips(sent, looks[2], gates[1], typicality, split.truth))
