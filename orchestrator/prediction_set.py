"""Prediction sets: the labels that together hold the truth at a stated coverage, by split conformal prediction."""

from __future__ import annotations

import math
from typing import Annotated, Literal, assert_never

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.case import Frozen

Floats = NDArray[np.float64]
Method = Literal["lac", "aps"]
"""How strange a label is for a case; a label enters the set when that is at most the limit.

- ``lac``: least ambiguous sets: 1 - p(label); the smallest sets on average
- ``aps``: adaptive sets: the probability of all labels down to this one; larger sets for harder cases
"""


class PredictionSets(Frozen):
    """The fitted limits. Without any, every label is in every set.

    Examples
    --------
    >>> sets = fit_prediction_sets("lac", np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array([0, 1, 1]), 0.5)
    >>> sets.limits
    (0.19999999999999996,)
    >>> sets.of(np.array([[0.85, 0.15], [0.5, 0.5], [np.nan, np.nan]])).tolist()
    [[True, False], [True, False], [True, True]]
    """

    method: Method = "lac"
    level: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """The share of cases whose set holds the truth."""
    limits: tuple[float | None, ...] = (None,)
    """One for all labels, or one per label; None where there were too few cases for the level: always inside."""
    counts: tuple[int, ...] = (0,)
    """Held-out cases behind each limit."""
    randomised: bool = False
    """Whether `aps` draws how much of the label's own probability counts; never in a pipeline, see `of`."""

    @property
    def per_label(self) -> bool:
        """Whether the level holds for the cases of each label, not only for all together."""
        return len(self.limits) > 1

    def of(self, belief: Floats, rng: np.random.Generator | None = None) -> NDArray[np.bool_]:
        """Return the sets, as membership of shape (N, K).

        The top label is always inside, and every label is where the belief is nan.

        Parameters
        ----------
        belief : ndarray of shape (N, K)
        rng : numpy.random.Generator, optional
            Needed by randomised sets, and used by them only.

        Raises
        ------
        ValueError
            For another shape or number of labels, or randomised sets without a generator.
        """
        if belief.ndim != 2 or len(self.limits) not in (1, belief.shape[1]):
            k = len(self.limits) if self.per_label else "K"
            raise ValueError(f"belief: expected [N, {k}], got {belief.shape}")
        if self.randomised and rng is None:
            raise ValueError("rng: randomised sets need one")
        u = rng.random(len(belief)) if rng is not None and self.randomised else None
        limits = np.array([math.inf if limit is None else limit for limit in self.limits])
        inside = np.isnan(belief) | (strangeness(self.method, belief, u) <= limits)
        inside[np.arange(len(belief)), np.nan_to_num(belief).argmax(axis=1)] = True
        return np.asarray(inside)

    def describe(self) -> str:
        """Say in words what the sets promise.

        Examples
        --------
        >>> PredictionSets(limits=(0.4,), counts=(120,)).describe()
        'Prediction sets (lac) hold the truth for 90% of cases, by 120 held-out cases'
        """
        whose = "of each label's cases" if self.per_label else "of cases"
        said = f"Prediction sets ({self.method}) hold the truth for {self.level:.0%} {whose}"
        said += f", by {sum(self.counts)} held-out cases"
        if missing := sum(limit is None for limit in self.limits):
            said += f"; too few of {missing} labels, which are always inside" if self.per_label else ", too few: all"
        return said


def fit_prediction_sets(
    method: Method,
    belief: Floats,
    truth: NDArray[np.intp],
    level: float,
    *,
    per_label: bool = False,
    rng: np.random.Generator | None = None,
) -> PredictionSets:
    """Choose the limits on held-out cases: the ceil((n + 1) level)-th smallest strangeness of the truth.

    A new case that is exchangeable with these n then has its truth in its set with a probability of at least `level`,
    and of at most level + 1 / (n + 1) where no two are equally strange; the top label, always inside, may add to that.
    With a limit per label (Mondrian), the same holds among the cases of each label.

    The unit is the case. Cases of one group (photographs of one leaf) are not independent: coverage then varies
    between fits as if there were as few cases as groups, and with G groups of equally many like cases it can fall
    short by up to 1 / (G + 1).

    Parameters
    ----------
    method : {"lac", "aps"}
    belief : ndarray of shape (N, K)
        Of cases that the belief was not fitted on. A row of nan counts as covered, since its set holds every label.
    truth : ndarray of shape (N,)
    level : float
        In (0, 1).
    per_label : bool
        Whether each label gets its own limit.
    rng : numpy.random.Generator, optional
        Gives `aps` in its randomised form, whose sets are smaller. Without one it is deterministic, as in a pipeline:
        one case always gets one set.

    Raises
    ------
    ValueError
        For other shapes, a truth that is no label, or a level outside (0, 1).

    References
    ----------
    Sadinle, Lei and Wasserman (2019), https://arxiv.org/abs/1609.00451 (lac).
    Romano, Sesia and Candes (2020), https://arxiv.org/abs/2006.02544 (aps).
    Vovk (2012), https://arxiv.org/abs/1209.2673 (label-conditional).
    """
    if belief.ndim != 2 or truth.shape != belief.shape[:1]:
        raise ValueError(f"belief, truth: expected [N, K] and [N], got {belief.shape} and {truth.shape}")
    n, k = belief.shape
    if n and (truth.dtype.kind not in "iu" or not 0 <= truth.min() <= truth.max() < k):
        raise ValueError(
            f"truth: expected whole numbers 0 to {k - 1}, got {truth.dtype} {truth.min()} to {truth.max()}"
        )
    if not 0 < level < 1:
        raise ValueError(f"level: expected a share between 0 and 1, got {level}")
    randomised = rng is not None and method == "aps"
    u = rng.random(len(truth)) if rng is not None and randomised else None
    found = strangeness(method, belief, u)[np.arange(n), truth]
    parts = [found[truth == label] for label in range(k)] if per_label else [found]
    return PredictionSets(
        method=method,
        level=level,
        limits=tuple(_limit(part, level) for part in parts),
        counts=tuple(len(part) for part in parts),
        randomised=randomised,
    )


def strangeness(method: Method, belief: Floats, u: Floats | None = None) -> Floats:
    """Score every label of every case; low for those that belong into the set.

    Parameters
    ----------
    method : {"lac", "aps"}
    belief : ndarray of shape (N, K)
    u : ndarray of shape (N,), optional
        For `aps`: the share of a label's own probability that does not count.

    Returns
    -------
    ndarray of shape (N, K)
        In [0, 1] but for rounding; 0 where the belief is nan.
    """
    known = np.nan_to_num(belief)
    match method:
        case "lac":
            score = 1 - known
        case "aps":
            # Among equals the first label comes first, whatever the truth is.
            order = np.argsort(-known, axis=1, kind="stable")
            score = np.empty_like(known)
            np.put_along_axis(score, order, np.cumsum(np.take_along_axis(known, order, axis=1), axis=1), axis=1)
            if u is not None:
                score = score - u[:, None] * known
        case _:
            assert_never(method)
    return np.where(np.isnan(belief), 0.0, score)


def _limit(scores: Floats, level: float) -> float | None:
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return None if rank > len(scores) else float(np.sort(scores)[rank - 1])
