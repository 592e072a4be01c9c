"""The gate: accept, look again, or ask a human; with a bound on the error rate of what is accepted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Frozen, MaybeNan
from secondlook.orchestrator.prediction_set import PredictionSets

Floats = NDArray[np.float64]
GRID: tuple[float, ...] = (*(1 - 10 ** -(np.arange(80, 6, -1) / 20)).tolist(), 0.54, 0.53, 0.52, 0.51, 0.5)
"""Candidate thresholds on trust, strictest first; fixed beforehand, as fixed-sequence testing demands. None is below
one half: what is more likely wrong than right is not accepted, however good the others are."""


class Gate(Frozen):
    """What was promised, and the thresholds that keep it.

    Examples
    --------
    >>> gate = Gate(threshold=0.8, target_risk=0.05)
    >>> gate.least_trust(last=False), gate.least_trust(last=True)
    (0.95, 0.8)
    >>> gate.accepts(np.array([0.9, 0.7]), typicality=np.ones(2)).tolist()
    [True, False]
    """

    target_risk: float = 0.05
    """r: what the mean loss among accepted cases must not exceed; see `loss`."""
    loss: Literal["error", "cost"] = "error"
    """Of a case: 1 if its label is wrong; or with costs, what its label costs as a share of the largest cost."""
    delta: float = 0.1
    """The promise may fail with this probability, over draws of the calibration cases."""
    stranger_limit: float = 0.05
    """Cases of lower typicality go to review: about this share of one's own images does."""
    early_trust: float | None = None
    """Least trust to accept while a look is left; None for 1 - target_risk."""
    threshold: float | None = None
    """t: least trust to accept at the last look; None where no threshold can promise the target."""
    thresholds: tuple[float, ...] = ()
    """Least trust to accept at each look that was tested, as `least_trust` gives it; none where nothing is accepted."""
    coverage: float = 0.0
    """Share of held-out cases it accepts."""
    accepted_error: MaybeNan = float("nan")
    """Mean over groups of the mean loss of their accepted held-out cases."""
    n_units: int = 0
    """Groups with an accepted case, behind the promise."""
    p_value: float = 1.0
    needed: int = 0
    """Groups that would be needed to promise the target if not one accepted case were wrong."""
    sets: PredictionSets = PredictionSets()
    """Of the beliefs that cases end with."""

    @property
    def promise(self) -> str:
        """In words, what is held under the target: `errors under 5%`."""
        target = f"{100 * self.target_risk:.3g}%"
        return f"errors under {target}" if self.loss == "error" else f"the mean cost under {target} of the largest cost"

    def least_trust(self, *, last: bool = True) -> float | None:
        """Return the least trust to accept at a look; None where nothing is accepted.

        While a further look is left, it is never less than `early_trust`, by default 1 - target_risk: a case that is by
        itself riskier than what was promised of all is looked at again first, since looking costs less than erring.
        """
        if self.threshold is None or last:
            return self.threshold
        return max(self.threshold, 1 - self.target_risk if self.early_trust is None else self.early_trust)

    def accepts(self, trust: Floats, typicality: Floats, *, last: bool = True) -> NDArray[np.bool_]:
        """Which of N cases are accepted at a look, the last one or an earlier."""
        least = self.least_trust(last=last)
        if least is None:
            return np.zeros(len(trust), dtype=np.bool_)
        return (trust >= least) & ~self.strangers(typicality)

    def strangers(self, typicality: Floats) -> NDArray[np.bool_]:
        """Which of N cases resemble nothing the model was fitted on."""
        return typicality < self.stranger_limit


class LookData(NamedTuple):
    """Cross-fitted trust and loss of one look on N held-out cases."""

    trust: Floats
    loss: NDArray[np.bool_] | Floats
    """Booleans where it can only be 0 or 1; else in [0, 1]. See `secondlook.orchestrator.loss.Loss.of`."""


def choose_threshold(gate: Gate, looks: Sequence[LookData], typicality: Floats, groups: Sequence[str]) -> Gate:
    """Choose the threshold of largest coverage whose risk is bounded, by learn-then-test.

    A case is accepted at the first look whose trust reaches `Gate.least_trust`. For each threshold of `GRID`, strictest
    first, the hypothesis "the risk exceeds the target" is tested at level delta; the last one rejected before the
    first that is not is chosen, which bounds the chance of any false promise by delta (fixed-sequence testing). One
    threshold governs all looks, so there is one sequence. The unit is the group, its loss the mean over its accepted
    cases; the risk is the mean over groups. Thresholds that accept so few groups that not even zero errors could
    reject are passed over; that depends on no label.

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

    Raises
    ------
    ValueError
        When the shapes do not fit together, or a trusted case has a loss outside [0, 1].

    References
    ----------
    Angelopoulos et al. (2021), Learn then Test, https://arxiv.org/abs/2110.01052.
    """
    _check(looks, typicality, groups)
    unit = np.unique(np.asarray(groups), return_inverse=True)[1]
    single = len(set(unit.tolist())) == len(unit)
    exact = single and all(look.loss.dtype == np.bool_ for look in looks)
    needed = units_needed(gate.target_risk, gate.delta)
    chosen = gate.model_copy(update={"threshold": None, "thresholds": (), "needed": needed})
    for threshold in GRID:
        tried = gate.model_copy(update={"threshold": threshold})
        accepted, loss = accept_in_order(tried, looks, typicality)
        losses = group_losses(unit, accepted, loss)
        if len(losses) < needed:
            continue
        p = risk_p_value(losses, gate.target_risk, exact=exact)
        if p > gate.delta:
            break
        chosen = chosen.model_copy(
            update={
                "threshold": threshold,
                "thresholds": tuple(tried.least_trust(last=n == len(looks)) for n in range(1, len(looks) + 1)),
                "coverage": float(accepted.mean()),
                "accepted_error": float(losses.mean()),
                "n_units": len(losses),
                "p_value": p,
            }
        )
    return chosen


def _check(looks: Sequence[LookData], typicality: Floats, groups: Sequence[str]) -> None:
    n = len(groups)
    shapes = [array.shape for look in looks for array in look]
    if not looks or typicality.shape != (n,) or any(shape != (n,) for shape in shapes):
        raise ValueError(
            f"looks, typicality, groups: expected a look or more and [N={n}] each, got {shapes} and {typicality.shape}"
        )
    for look in looks:
        # A loss of nan would pass every comparison, and with it any promise.
        wrong = ~np.isnan(look.trust) & ~((look.loss >= 0) & (look.loss <= 1))
        if wrong.any():
            raise ValueError(f"loss: expected 0 to 1 where there is trust, got {look.loss[wrong][:3]}")


class Accepted(NamedTuple):
    """What a gate accepts of N held-out cases."""

    accepted: NDArray[np.bool_]
    loss: Floats
    """0 where not accepted."""


def accept_in_order(gate: Gate, looks: Sequence[LookData], typicality: Floats) -> Accepted:
    """Accept each case at the first look that trusts it, with that look's loss."""
    accepted = np.zeros(len(typicality), dtype=np.bool_)
    loss = np.zeros(len(typicality))
    for number, look in enumerate(looks, 1):
        now = ~accepted & gate.accepts(look.trust, typicality, last=number == len(looks))
        accepted |= now
        loss[now] = look.loss[now]
    return Accepted(accepted, loss)


def group_losses(unit: NDArray[np.intp], accepted: NDArray[np.bool_], loss: Floats) -> Floats:
    """Mean loss of the accepted cases, for each group that has one.

    Parameters
    ----------
    unit : ndarray of shape (N,)
        Numbers of groups.
    accepted : ndarray of shape (N,)
    loss : ndarray of shape (N,)
        0 where not accepted.
    """
    taken = np.bincount(unit, weights=accepted)
    lost = np.bincount(unit, weights=loss)
    return lost[taken > 0] / taken[taken > 0]


def risk_p_value(losses: Floats, target: float, *, exact: bool) -> float:
    """P-value of "the mean loss exceeds the target".

    Parameters
    ----------
    losses : ndarray of shape (n,)
        In [0, 1].
    target : float
    exact : bool
        Whether every unit is one case and errors are all alike, so that losses can only be 0 or 1: the binomial test
        is then exact. Otherwise the Hoeffding-Bentkus bound, which holds for any losses in [0, 1].

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


def _bernoulli_divergence(a: float, b: float) -> float:
    first = 0.0 if a == 0 else a * math.log(a / b)
    return first + (1 - a) * math.log((1 - a) / (1 - b))
