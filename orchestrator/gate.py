"""The gate: accept, look again, or ask a human; with a bound on the error rate of what is accepted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Frozen, MaybeNan

Floats = NDArray[np.float64]
GRID: tuple[float, ...] = (*(1 - 10 ** -(np.arange(80, 6, -1) / 20)).tolist(), 0.54, 0.53, 0.52, 0.51, 0.5)
"""Candidate thresholds on trust, strictest first; fixed beforehand, as fixed-sequence testing demands. None is below
one half: what is more likely wrong than right is not accepted, however good the others are."""


class Gate(Frozen):
    """What was promised, and the threshold that keeps it."""

    target_risk: float = 0.05
    """r: the error rate among accepted cases that must not be exceeded."""
    delta: float = 0.1
    """The promise may fail with this probability, over draws of the calibration cases."""
    stranger_limit: float = 0.05
    """Cases of lower typicality go to review: about this share of one's own images does."""
    threshold: float | None = None
    """Least trust to accept; None where no threshold can promise the target."""
    coverage: float = 0.0
    """Share of held-out cases it accepts."""
    accepted_error: MaybeNan = float("nan")
    """Mean over groups of the share of their accepted held-out cases that are wrong."""
    n_units: int = 0
    """Groups with an accepted case, behind the promise."""
    p_value: float = 1.0
    needed: int = 0
    """Groups that would be needed to promise the target if not one accepted case were wrong."""
    set_level: float = 0.9
    """Coverage of the prediction sets."""
    set_limit: float = 1.0
    """A label enters the prediction set when 1 - belief is at most this."""

    def least_trust(self, *, last: bool = True) -> float | None:
        """Return the least trust to accept at a look; None where nothing is accepted.

        While a further look is left, it is never less than 1 - target_risk: a case that is by itself riskier than
        what was promised of all is looked at again first, since looking costs less than erring.
        """
        if self.threshold is None or last:
            return self.threshold
        return max(self.threshold, 1 - self.target_risk)

    def accepts(self, trust: Floats, typicality: Floats, *, last: bool = True) -> NDArray[np.bool_]:
        """Which of N cases are accepted at a look, the last one or an earlier."""
        least = self.least_trust(last=last)
        if least is None:
            return np.zeros(len(trust), dtype=np.bool_)
        return (trust >= least) & ~self.strangers(typicality)

    def strangers(self, typicality: Floats) -> NDArray[np.bool_]:
        """Which of N cases resemble nothing the model was fitted on."""
        return typicality < self.stranger_limit

    def prediction_sets(self, belief: Floats) -> NDArray[np.bool_]:
        """Membership of shape (N, K): labels that together hold the truth at `set_level`; all where unknown."""
        # 1 - belief, as in `conformal_limit`: the other way round, rounding would lose the label at the limit.
        inside = np.isnan(belief) | (1 - belief <= self.set_limit)
        inside[np.arange(len(belief)), np.nan_to_num(belief).argmax(axis=1)] = True
        return inside


class LookData(NamedTuple):
    """Cross-fitted trust and correctness of one look on N held-out cases."""

    trust: Floats
    wrong: NDArray[np.bool_]


def choose_threshold(gate: Gate, looks: Sequence[LookData], typicality: Floats, groups: Sequence[str]) -> Gate:
    """Choose the threshold of largest coverage whose risk is bounded, by learn-then-test.

    A case is accepted at the first look whose trust reaches `Gate.least_trust`. For each threshold of `GRID`, strictest
    first, the hypothesis "the risk exceeds the target" is tested at level delta; the last one rejected before the
    first that is not is chosen, which bounds the chance of any false promise by delta (fixed-sequence testing). The
    unit is the group, its loss the share of its accepted cases that are wrong. Thresholds that accept so few groups
    that not even zero errors could reject are passed over; that depends on no label.

    A larger target accepts more on average, not always: it begins with fewer groups, and one wrong among those may end
    the walk at once.

    Parameters
    ----------
    gate : Gate
        Holds the target, delta and the stranger limit.
    looks : sequence of LookData
        In the order of asking.
    typicality : ndarray of shape (N,)
    groups : sequence of str
        N names.

    Returns
    -------
    Gate
        With threshold and evidence filled in.

    References
    ----------
    Angelopoulos et al. (2021), Learn then Test, https://arxiv.org/abs/2110.01052.
    """
    unit = np.unique(np.asarray(groups), return_inverse=True)[1]
    single = bool(np.bincount(unit).max() == 1)
    needed = units_needed(gate.target_risk, gate.delta)
    chosen = gate.model_copy(update={"threshold": None, "needed": needed})
    for threshold in GRID:
        tried = gate.model_copy(update={"threshold": threshold})
        accepted, wrong = accept_in_order(tried, looks, typicality)
        losses = group_losses(unit, accepted, wrong)
        if len(losses) < needed:
            continue
        p = risk_p_value(losses, gate.target_risk, exact=single)
        if p > gate.delta:
            break
        chosen = chosen.model_copy(
            update={
                "threshold": threshold,
                "coverage": float(accepted.mean()),
                "accepted_error": float(losses.mean()),
                "n_units": len(losses),
                "p_value": p,
            }
        )
    return chosen


def accept_in_order(
    gate: Gate, looks: Sequence[LookData], typicality: Floats
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which cases are accepted at some look, and which of those wrongly; both of shape (N,)."""
    accepted = np.zeros(len(typicality), dtype=np.bool_)
    wrong = np.zeros(len(typicality), dtype=np.bool_)
    for number, look in enumerate(looks, 1):
        now = ~accepted & gate.accepts(look.trust, typicality, last=number == len(looks))
        accepted |= now
        wrong |= now & look.wrong
    return accepted, wrong


def group_losses(unit: NDArray[np.intp], accepted: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> Floats:
    """Share of wrong among accepted cases, for each group that has an accepted case."""
    taken = np.bincount(unit, weights=accepted)
    lost = np.bincount(unit, weights=wrong)
    return lost[taken > 0] / taken[taken > 0]


def risk_p_value(losses: Floats, target: float, *, exact: bool) -> float:
    """P-value of "the mean loss exceeds the target".

    Parameters
    ----------
    losses : ndarray of shape (n,)
        In [0, 1].
    target : float
    exact : bool
        Whether every unit is one case, so that losses can only be 0 or 1: the binomial test is then exact.
        Otherwise the Hoeffding-Bentkus bound.

    References
    ----------
    Bates et al. (2021), https://arxiv.org/abs/2101.02703, section 3.1.
    """
    from scipy.special import bdtr

    n, mean = len(losses), float(losses.mean())
    if exact:
        return float(bdtr(round(losses.sum()), n, target))
    if mean >= target:
        return 1.0
    hoeffding = math.exp(-n * _bernoulli_divergence(mean, target))
    bentkus = math.e * float(bdtr(math.ceil(n * mean - 1e-9), n, target))
    return min(1.0, hoeffding, bentkus)


def units_needed(target: float, delta: float) -> int:
    """Count the groups needed to promise the target without a single error: the least n with (1 - r)^n <= delta."""
    return math.ceil(math.log(delta) / math.log1p(-target) - 1e-9)


def conformal_limit(belief: Floats, truth: NDArray[np.intp], level: float) -> float:
    """Least-ambiguous-set limit: the finite-sample quantile of 1 - belief in the truth, on held-out cases.

    A belief of nan scores 0, since its set holds every label.

    References
    ----------
    Sadinle, Lei and Wasserman (2019), https://arxiv.org/abs/1609.00451.
    """
    scores = np.sort(np.nan_to_num(1 - belief[np.arange(len(truth)), truth], nan=0.0))
    rank = math.ceil((len(scores) + 1) * level)
    return 1.0 if rank > len(scores) else float(scores[rank - 1])


def _bernoulli_divergence(a: float, b: float) -> float:
    first = 0.0 if a == 0 else a * math.log(a / b)
    return first + (1 - a) * math.log((1 - a) / (1 - b))
