"""The named ways to fuse, behind one signature."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from secondlook.agents.errors import ConfigError
from secondlook.orchestrator.confusion import Confusion, JointConfusion, fit_confusion, fit_joint_confusion
from secondlook.orchestrator.fusion import Fitted, Folds, Truth, measured
from secondlook.orchestrator.judge_fusion import fit_judge, judge_in
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.pool import Pool, fit_pool
from secondlook.orchestrator.rules import (
    Rule,
    Single,
    fit_best_agent,
    fit_neighbour_vote,
    fit_rule,
    neighbour_vote_in,
)
from secondlook.orchestrator.stacked import Stacked, fit_stacked

PolicyName = Literal[
    "best_agent",
    "neighbour_vote",
    "judge",
    "majority",
    "mean",
    "confidence_weighted",
    "cooked",
    "pool",
    "confusion",
    "stacked",
    "joint_confusion",
    "auto",
]
"""A way to fuse, the simplest first.

- ``best_agent``: the agent of lowest held-out NLL alone
- ``neighbour_vote``: the newest vote of retrieved neighbours alone
- ``judge``: the calibrated answer of a language model that read what the agents said; the best of them where it failed
- ``majority``, ``mean``, ``confidence_weighted``, ``cooked``: see `secondlook.orchestrator.rules.RuleKind`
- ``pool``: calibrated distributions multiplied, each to the power of a fitted weight; the best agent alone where its
  cross-fitted NLL is not lower
- ``confusion``: what each agent says, read by its own table of answers; independent given the truth
- ``stacked``: logistic regression on what they say
- ``joint_confusion``: one table of what they say together, shrunk towards independence
- ``auto``: of all these, the one of lowest cross-fitted NLL
"""
AnyFusion = Annotated[Pool | Rule | Single | Confusion | JointConfusion | Stacked, Field(discriminator="kind")]
"""Whatever a policy may be fitted to; told apart in JSON by `kind`."""
MOST_NUMBERS = {"confusion": 1_000_000, "joint_confusion": 1_000_000, "stacked": 5_000}
"""The largest M K^2, the number of (agent, label, label), for which a policy is fitted; it takes seconds there."""
Fit = Callable[[Opinions, Truth, Folds], Fitted]


def fit_fusion(name: str, opinions: Opinions, truth: Truth, folds: Folds) -> Fitted:
    """Fit a policy by its name.

    Parameters
    ----------
    name : str
        One of `POLICIES`.
    opinions : Opinions
        Of M agents on N held-out cases, calibrated by cross-fitting.
    truth : ndarray of shape (N,)
    folds : ndarray of shape (N,) or None
        Fold of each case, the same as of the calibration; None where no fold can be made.

    Returns
    -------
    Fitted
        A frozen value, and its beliefs about the N cases, none of which was fitted on the case itself. What is chosen
        out of a few (an agent, a strength of shrinkage, by `auto` a policy) is chosen on all of them. Without folds
        the beliefs are those of the fitted cases and their NLL is nan.

    Raises
    ------
    ConfigError
        When there is no such policy, or its agent is not among the columns.
    ValueError
        When the shapes do not fit together; see `Opinions.check_held_out`.
    """
    if name not in POLICIES:
        raise ConfigError(f"There is no policy {name!r}.", f"The policies are {', '.join(POLICIES)}.")
    opinions.check_held_out(truth, folds)
    if name in MOST_NUMBERS and name not in available(opinions.columns, opinions.n_labels):
        raise ConfigError(
            f"{opinions.n_labels} labels are too many for the policy {name!r}.", "Choose another, such as 'pool'."
        )
    fitted = measured(POLICIES[name](opinions, truth, folds), opinions, truth, folds)
    return do_no_harm(fitted, opinions, truth, folds) if name == "pool" else fitted


def do_no_harm(fitted: Fitted, opinions: Opinions, truth: Truth, folds: Folds) -> Fitted:
    """Return the fitted policy, or the best agent alone where its cross-fitted NLL is not lower than that agent's.

    A policy by which the best agent decides anyway, a judge for instance, keeps its name.
    """
    best = fit_fusion("best_agent", opinions, truth, folds)
    alike = isinstance(fitted.fusion, Single) and fitted.fusion.order == getattr(best.fusion, "order", None)
    return fitted if alike or fitted.fusion.nll < best.fusion.nll else best


def fit_all(opinions: Opinions, truth: Truth, folds: Folds) -> dict[str, Fitted]:
    """Fit every policy that these columns allow but `auto`, the simplest first; see `fit_fusion`."""
    names = available(opinions.columns, opinions.n_labels)
    return {name: fit_fusion(name, opinions, truth, folds) for name in names if name != "auto"}


def available(columns: tuple[str, ...], n_labels: int) -> tuple[str, ...]:
    """Names of the policies that can be fitted: all, but for those without their agent and of too many numbers."""
    names = dict.fromkeys(POLICIES)
    if neighbour_vote_in(columns) is None:
        del names["neighbour_vote"]
    if judge_in(columns) is None:
        del names["judge"]
    for name, most in MOST_NUMBERS.items():
        if len(columns) * n_labels**2 > most:
            del names[name]
    return tuple(names)


def choose(fitted: dict[str, Fitted]) -> Fitted:
    """Return the policy of lowest cross-fitted NLL: the first of equals, the best agent where nothing was held out."""
    return min(fitted.values(), key=lambda found: _or_infinite(found.fusion.nll))


def _or_infinite(nll: float) -> float:
    return nll if nll == nll else float("inf")


def _fit_auto(opinions: Opinions, truth: Truth, folds: Folds) -> Fitted:
    return choose(fit_all(opinions, truth, folds))


POLICIES: dict[str, Fit] = {
    "best_agent": fit_best_agent,
    "neighbour_vote": fit_neighbour_vote,
    "judge": fit_judge,
    "majority": partial(fit_rule, "majority"),
    "mean": partial(fit_rule, "mean"),
    "confidence_weighted": partial(fit_rule, "confidence_weighted"),
    "cooked": partial(fit_rule, "cooked"),
    "pool": fit_pool,
    "confusion": fit_confusion,
    "stacked": fit_stacked,
    "joint_confusion": fit_joint_confusion,
    "auto": _fit_auto,
}
"""How each of `PolicyName` is fitted, the simplest first."""
