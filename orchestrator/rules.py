"""Rules that need no fitting but a temperature: majority, means, and one agent alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, assert_never, cast

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.calibration import Calibrator, log_distribution
from secondlook.agents.errors import ConfigError
from secondlook.orchestrator.fusion import (
    Fitted,
    Folds,
    Fusion,
    Truth,
    cross_fit,
    fit_temperature,
    nll_of,
    prior_of,
)
from secondlook.orchestrator.opinions import Opinions

Floats = NDArray[np.float64]
RuleKind = Literal["majority", "mean", "confidence_weighted", "cooked"]
"""How the agents that answered are put together.

- ``majority``: one vote each
- ``mean``: the mean of the calibrated distributions
- ``confidence_weighted``: one vote each, weighted by its calibrated top probability
- ``cooked``: the mean of the distributions as said, each at its own scale; with calibrated ones it would be ``mean``
"""
WORDS: dict[RuleKind, str] = {
    "majority": "majority of the agents",
    "mean": "mean of the agents",
    "confidence_weighted": "agents weighted by confidence",
    "cooked": "mean of the agents as said",
}
TIE = 1e-6
"""Share of the mean distribution in a vote, so that equal votes go to the higher mean probability."""
VOTES = ("neighbour-vote", "neighbour_vote", "rag")
"""How the names of columns begin that are votes of retrieved neighbours, in small letters."""


class Rule(Fusion):
    """A rule, and the temperature that makes probabilities of its shares."""

    kind: RuleKind
    calibrator: Calibrator = Calibrator(kind="temperature")

    @property
    def fused_by(self) -> str:
        """In words, for trails."""
        return WORDS[self.kind]

    def fuse(self, opinions: Opinions) -> Floats:
        """Fuse; see `Fusion.fuse`."""
        return self.calibrator.apply(log_shares(self.kind, self.checked(opinions)))


def log_shares(kind: RuleKind, opinions: Opinions) -> Floats:
    """Logarithms of what a rule gives each label, shape (N, K); nan where nobody answered.

    Votes are smoothed as in `secondlook.agents.calibration.log_distribution`: a few agents prove no impossibility.
    """
    answered = opinions.answered
    count = answered.sum(axis=0)[:, None].astype(np.float64)
    count[count == 0] = np.nan
    probs = np.nan_to_num(opinions.probs)
    average = probs.sum(axis=0) / count
    votes = (probs.argmax(axis=2)[..., None] == np.arange(opinions.n_labels)) & answered[..., None]
    match kind:
        case "mean":
            return log_distribution(average, "probability")
        case "cooked":
            return log_distribution(np.nan_to_num(opinions.said).sum(axis=0) / count, "probability")
        case "majority":
            return log_distribution(votes.sum(axis=0) / count + TIE * average, "vote")
        case "confidence_weighted":
            weighted = (votes * probs).sum(axis=0) / count
            return log_distribution(weighted / weighted.sum(axis=1, keepdims=True) + TIE * average, "vote")
        case _:
            assert_never(kind)


def fit_rule(kind: RuleKind, opinions: Opinions, truth: Truth, folds: Folds) -> Fitted:
    """Fit a rule's temperature on its own shares."""
    calibrator, beliefs = fit_temperature(log_shares(kind, opinions), truth, folds)
    return Fitted(Rule(kind=kind, agents=opinions.columns, calibrator=calibrator), beliefs)


class Single(Fusion):
    """One agent decides; where it failed, the next in `order` that answered."""

    kind: Literal["best_agent", "neighbour_vote", "judge"]
    order: tuple[str, ...]
    """All of `agents`, the one that decides first."""

    @property
    def fused_by(self) -> str:
        """In words, for trails."""
        return f"{self.kind.replace('_', ' ')}: {self.order[0]}"

    def fused_from(self, answered: Collection[str]) -> str:
        """In words, who decided one case of those who answered, by column."""
        decides = next((name for name in self.order if name in answered), self.order[0])
        return self.fused_by if decides == self.order[0] else f"{decides}, as those before it failed"

    def fuse(self, opinions: Opinions) -> Floats:
        """Fuse; see `Fusion.fuse`."""
        ranked = self.checked(opinions).of(self.order)
        first = ranked.answered.argmax(axis=0)
        return cast("Floats", ranked.probs[first, np.arange(len(ranked))])


def fit_best_agent(opinions: Opinions, truth: Truth, folds: Folds) -> Fitted:
    """Let the agent of lowest held-out NLL decide; each belief is of the agent chosen on the other folds."""

    def chosen(known: Opinions, y: Truth) -> Single:
        return Single(kind="best_agent", agents=known.columns, order=ranked(known, y))

    beliefs = cross_fit(lambda known, y, asked: chosen(known, y).fuse(asked), opinions, truth, folds)
    return Fitted(chosen(opinions, truth), beliefs)


def fit_neighbour_vote(opinions: Opinions, truth: Truth, folds: Folds) -> Fitted:
    """Let the newest vote of retrieved neighbours decide.

    Raises
    ------
    ConfigError
        When no column is one.
    """
    del folds
    name = neighbour_vote_in(opinions.columns)
    if name is None:
        raise ConfigError(
            f"There is no neighbour vote among {', '.join(opinions.columns)}.",
            f"Choose another policy, or a panel with a column whose name begins with {VOTES[0]}.",
        )
    others = tuple(other for other in ranked(opinions, truth) if other != name)
    single = Single(kind="neighbour_vote", agents=opinions.columns, order=(name, *others))
    return Fitted(single, single.fuse(opinions))


def neighbour_vote_in(columns: tuple[str, ...]) -> str | None:
    """Name the newest column that is a vote of retrieved neighbours, None where there is none.

    Examples
    --------
    >>> neighbour_vote_in(("linear-head", "neighbour-vote@2", "linear-head@2"))
    'neighbour-vote@2'
    """
    return next((name for name in reversed(columns) if name.lower().startswith(VOTES)), None)


def ranked(opinions: Opinions, truth: Truth) -> tuple[str, ...]:
    """Columns by held-out NLL, the lowest first."""
    prior = prior_of(truth, opinions.n_labels)
    nll = {name: nll_of(row, truth, prior) for name, row in zip(opinions.columns, opinions.probs, strict=True)}
    return tuple(sorted(nll, key=lambda name: nll[name]))
