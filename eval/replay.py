"""Replay: policies fitted and judged on recorded answers by repeated cross-fitting, without calling a model.

Each repeat deals the cases into folds, whole groups at a time and labels evenly. Calibrators, fusion and whatever else
a policy fits are fitted on all folds but one, with inner folds of their own, and decide the one left out. So no case is
judged by anything that was fitted on it, and every repeat judges every case once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.calibration import log_distributions
from secondlook.agents.errors import ConfigError
from secondlook.agents.folds import grouped_folds
from secondlook.agents.prediction import Outcome, Prediction
from secondlook.agents.threads import one_thread
from secondlook.eval.held_out import calibrate_all
from secondlook.eval.policy import Decided, Policy, Training
from secondlook.eval.progress import Progress, silent, tracked
from secondlook.eval.recorded_answers import RecordedAnswers, Spent
from secondlook.orchestrator.opinions import Opinions

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Replay:
    """What every policy made of every case in every repeat.

    Attributes
    ----------
    answers : RecordedAnswers
    decided : dict of str to list of Decided
        By policy, one for each of the R repeats.
    folds : int
        As many as were made; fewer than asked for where a label has fewer groups.
    seed : int
    """

    answers: RecordedAnswers
    decided: Mapping[str, list[Decided]]
    folds: int
    seed: int

    @property
    def repeats(self) -> int:
        """R."""
        return len(next(iter(self.decided.values())))


def replay(
    answers: RecordedAnswers,
    policies: Sequence[Policy],
    *,
    folds: int = 5,
    repeats: int = 20,
    seed: int = 0,
    progress: Progress = silent,
) -> Replay:
    """Fit and judge policies by repeated stratified cross-fitting.

    Parameters
    ----------
    answers : RecordedAnswers
        Of M columns on N cases.
    policies : sequence of Policy
    folds : int
        At least 2.
    repeats : int
        At least 1.
    seed : int
        Of the folds.
    progress : callable

    Returns
    -------
    Replay

    Raises
    ------
    ConfigError
        Where no fold can be made, because a label has only one case or group.
    """
    if folds < 2 or repeats < 1:
        raise ConfigError(f"{folds} folds and {repeats} repeats.", "Give at least 2 folds and 1 repeat.")
    outcomes = answers.ask()
    decided: dict[str, list[Decided]] = {policy.name: [] for policy in policies}
    dealt = None
    with one_thread():
        for r in tracked(range(repeats), "repeats", repeats, progress):
            dealt = grouped_folds(answers.truth, answers.groups, np.random.default_rng([seed, r]), folds)
            if dealt is None:
                raise ConfigError(*_too_few(answers))
            found = cross_fit(answers, outcomes, policies, dealt, np.random.default_rng([seed, r, 1]))
            for name, one in found.items():
                decided[name].append(one)
    return Replay(answers, decided, 0 if dealt is None else len(np.unique(dealt)), seed)


def _too_few(answers: RecordedAnswers) -> tuple[str, str]:
    units = {k: {g for g, y in zip(answers.groups, answers.truth, strict=True) if y == k} for k in set(answers.truth)}
    rare = [answers.labels[k] for k, groups in sorted(units.items()) if len(groups) < 2]
    return (
        f"The label {rare[0]!r} has only one {'group' if answers.grouped else 'case'}: none can be held out.",
        "Add cases of it, or leave it out.",
    )


def cross_fit(
    answers: RecordedAnswers,
    outcomes: Mapping[str, list[Outcome]],
    policies: Sequence[Policy],
    folds: Ints,
    rng: np.random.Generator,
) -> dict[str, Decided]:
    """Let policies decide each fold, fitted on the others.

    Parameters
    ----------
    answers : RecordedAnswers
        Truth, groups and costs of N cases.
    outcomes : mapping of str to list of Outcome
        By column, what was said of them.
    policies : sequence of Policy
    folds : ndarray of shape (N,)
    rng : numpy.random.Generator
        Of the inner folds.

    Returns
    -------
    dict of str to Decided
        By policy.
    """
    n, k, m = len(answers.cases), len(answers.labels), len(outcomes)
    found = {policy.name: Decided(np.full((n, k), np.nan), np.zeros((m, n), dtype=np.bool_)) for policy in policies}
    for fold in np.unique(folds):
        outside = folds == fold
        training, held_out = _prepared(answers, outcomes, ~outside, rng)
        for policy in policies:
            beliefs, asked = policy.fit(training).decide(held_out)
            found[policy.name].beliefs[outside] = beliefs
            found[policy.name].asked[:, outside] = asked
    return found


def _prepared(
    answers: RecordedAnswers, outcomes: Mapping[str, list[Outcome]], inside: Bools, rng: np.random.Generator
) -> tuple[Training, Opinions]:
    """Calibrate on the cases inside, by inner folds; and with that the cases outside."""
    inner, outer, k = np.flatnonzero(inside), np.flatnonzero(~inside), len(answers.labels)
    truth = answers.truth[inner]
    folds = grouped_folds(truth, [answers.groups[i] for i in inner], rng)
    known = calibrate_all({name: [row[i] for i in inner] for name, row in outcomes.items()}, truth, folds, k)
    columns = tuple(outcomes)
    opinions = Opinions(columns, np.stack([a.probs for a in known]), np.stack([a.raw for a in known]))
    probs = np.full((len(columns), len(outer), k), np.nan)
    said = probs.copy()
    for m, (name, own) in enumerate(zip(columns, known, strict=True)):
        asked = [outcomes[name][i] for i in outer]
        ok = np.array([isinstance(outcome, Prediction) for outcome in asked], dtype=np.bool_)
        given = [outcome for outcome in asked if isinstance(outcome, Prediction)]
        if given:
            log_q, _ = log_distributions(given)
            said[m, ok], probs[m, ok] = np.exp(log_q), own.calibrator.apply(log_q)
    spent = {
        name: Spent(each.kind, each.calls[inner], each.seconds[inner], each.usd[inner])
        for name, each in answers.spent.items()
    }
    return Training(opinions, truth, folds, spent), Opinions(columns, probs, said)
