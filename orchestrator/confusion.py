"""Fusion by tables of answers: what agents' labels and confidences, one by one or together, say of the truth."""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.answer_table import AnswerTable
from secondlook.agents.calibration import Calibrator
from secondlook.orchestrator.fusion import (
    TINY,
    Fitted,
    Folds,
    Fusion,
    Truth,
    cross_fit,
    fit_temperature,
    nll_of,
    normalised,
    prior_of,
)
from secondlook.orchestrator.opinions import Opinions

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
STRENGTHS = (50.0, 20.0, 5.0)
"""Candidate strengths of the pull of joint answers towards independence, in cases of each label."""


class Confusion(Fusion):
    """p(k) ~ prior(k) prod_m P(what agent m said | k): agents independent given the truth.

    An agent that failed drops out of the product. Agents that err together are counted as if they did not, which the
    temperature makes up for on average; see `JointConfusion`.

    References
    ----------
    Dawid and Skene (1979), https://doi.org/10.2307/2346806; here the truth is known. Xu, Krzyzak and Suen (1992),
    Methods of combining multiple classifiers, https://doi.org/10.1109/21.155943, by Bayes' rule.
    """

    kind: Literal["confusion"] = "confusion"
    prior: tuple[float, ...]
    tables: tuple[AnswerTable, ...]
    """Of each agent."""
    calibrator: Calibrator = Calibrator()

    @property
    def fused_by(self) -> str:
        """In words, for trails."""
        return "tables of answers"

    def fuse(self, opinions: Opinions) -> Floats:
        """Fuse; see `Fusion.fuse`."""
        log_p = np.log(self.prior) + log_likelihood(self.tables, self.checked(opinions))
        return self.calibrator.apply(_unless_silent(log_p, opinions))


class JointConfusion(Fusion):
    """p(k) ~ prior(k) (n(cell, k) + s prod_m P(what agent m said | k)) / (n(k) + s).

    A cell is what all the agents said together, labels and bins of confidence. Where it was seen before, the count
    decides, errors that agents make together included; where it was not, the agents count as independent. Where some
    failed, cells are what the others said, counted on the cases they answered.

    References
    ----------
    Huang and Suen (1995), A method of combining multiple experts for the recognition of unconstrained handwritten
    numerals (behaviour-knowledge space), https://doi.org/10.1109/34.368145.
    """

    kind: Literal["joint_confusion"] = "joint_confusion"
    prior: tuple[float, ...]
    tables: tuple[AnswerTable, ...]
    cells: tuple[tuple[int, ...], ...]
    """Truth, cases counted, then the code of each agent's answer (see `answer_codes`)."""
    strength: float
    """s."""
    calibrator: Calibrator = Calibrator()

    @property
    def fused_by(self) -> str:
        """In words, for trails."""
        return "table of joint answers"

    def fuse(self, opinions: Opinions) -> Floats:
        """Fuse; see `Fusion.fuse`."""
        seen = _seen(self.tables, np.array(self.cells, dtype=np.intp), self.checked(opinions))
        return self.calibrator.apply(_unless_silent(seen.log_belief(np.array(self.prior), self.strength), opinions))


class Seen(NamedTuple):
    """How often each of N joint answers was seen, by truth."""

    here: Floats
    """Cases counted in the same cell, of shape (N, K)."""
    anywhere: Floats
    """Cases counted in any cell of the same agents, of shape (N, K)."""
    independent: Floats
    """Log-likelihood of the answers were the agents independent, of shape (N, K)."""

    def log_belief(self, prior: Floats, strength: float) -> Floats:
        """Logarithm of the belief up to a constant a row, of shape (N, K)."""
        pulled = self.here + strength * np.exp(self.independent)
        return cast("Floats", np.log(prior) + np.log(np.maximum(pulled, TINY**20)) - np.log(self.anywhere + strength))


def log_likelihood(tables: tuple[AnswerTable, ...], opinions: Opinions) -> Floats:
    """Log-likelihood of shape (N, K) of what was said, the agents independent given the truth."""
    total = np.zeros(opinions.said.shape[1:])
    for table, said in zip(tables, opinions.said, strict=True):
        total += table.log_likelihood(said)
    return total


def answer_codes(tables: tuple[AnswerTable, ...], opinions: Opinions) -> Ints:
    """Answers of shape (N, M) as label times bins plus bin; -1 where an agent failed."""
    read = [(table.codes(said), table.n_bins) for table, said in zip(tables, opinions.said, strict=True)]
    return np.stack([np.where(c.label < 0, -1, c.label * bins + c.bin) for c, bins in read], axis=1)


def fit_confusion(opinions: Opinions, truth: Truth, folds: Folds) -> Fitted:
    """Count a table for each agent."""

    def others(known: Opinions, y: Truth, asked: Opinions) -> Floats:
        log_p = np.log(prior_of(y, known.n_labels)) + log_likelihood(_tables(known, y), asked)
        return _unless_silent(log_p, asked)

    calibrator, beliefs = _tempered(cross_fit(others, opinions, truth, folds), truth, folds)
    prior = tuple(prior_of(truth, opinions.n_labels).tolist())
    tables = _tables(opinions, truth)
    return Fitted(Confusion(agents=opinions.columns, prior=prior, tables=tables, calibrator=calibrator), beliefs)


def fit_joint_confusion(opinions: Opinions, truth: Truth, folds: Folds) -> Fitted:
    """Count joint answers, and choose the strength of their pull towards independence by cross-validation."""
    prior = prior_of(truth, opinions.n_labels)
    strengths = STRENGTHS[:1] if folds is None else STRENGTHS

    def others(known: Opinions, y: Truth, asked: Opinions) -> Floats:
        tables = _tables(known, y)
        seen = _seen(tables, _cells(tables, known, y), asked)
        base = prior_of(y, known.n_labels)
        return np.stack([_unless_silent(seen.log_belief(base, s), asked) for s in strengths], axis=-1)

    tried = np.moveaxis(cross_fit(others, opinions, truth, folds), -1, 0)
    chosen = int(np.argmin([nll_of(normalised(log_p), truth, prior) for log_p in tried]))
    calibrator, beliefs = _tempered(tried[chosen], truth, folds)
    tables = _tables(opinions, truth)
    joint = JointConfusion(
        agents=opinions.columns,
        prior=tuple(prior.tolist()),
        tables=tables,
        cells=tuple(map(tuple, _cells(tables, opinions, truth).tolist())),
        strength=strengths[chosen],
        calibrator=calibrator,
    )
    return Fitted(joint, beliefs)


def _tables(opinions: Opinions, truth: Truth) -> tuple[AnswerTable, ...]:
    return tuple(AnswerTable.fit(said, truth) for said in opinions.said)


def _cells(tables: tuple[AnswerTable, ...], opinions: Opinions, truth: Truth) -> Ints:
    """Truth, count and codes of what was said together, of shape (cells, 2 + M)."""
    rows, counts = np.unique(np.column_stack([truth, answer_codes(tables, opinions)]), axis=0, return_counts=True)
    return np.column_stack([rows[:, 0], counts, rows[:, 1:]]).astype(np.intp)


def _seen(tables: tuple[AnswerTable, ...], cells: Ints, opinions: Opinions) -> Seen:
    """Look joint answers up, those of the same agents together."""
    shape = len(opinions), opinions.n_labels
    here, anywhere = np.zeros(shape), np.zeros(shape)
    truth, count, known = cells[:, 0], cells[:, 1], cells[:, 2:]
    asked = answer_codes(tables, opinions)
    panels, of = np.unique(asked >= 0, axis=0, return_inverse=True)
    for number, panel in enumerate(panels):
        rows = np.flatnonzero(of.ravel() == number)
        whole = (known[:, panel] >= 0).all(axis=1)
        both = np.concatenate([known[whole][:, panel], asked[rows][:, panel]])
        cell = np.unique(both, axis=0, return_inverse=True)[1].ravel() if panel.any() else np.zeros(len(both), np.intp)
        counts = np.zeros((cell.max(initial=0) + 1, shape[1]))
        np.add.at(counts, (cell[: whole.sum()], truth[whole]), count[whole])
        here[rows], anywhere[rows] = counts[cell[whole.sum() :]], counts.sum(axis=0)
    return Seen(here, anywhere, log_likelihood(tables, opinions))


def _tempered(log_p: Floats, truth: Truth, folds: Folds) -> tuple[Calibrator, Floats]:
    """Fit a temperature on held-out beliefs; none where it does not lower their NLL, or nothing is held out."""
    beliefs, prior = normalised(log_p), prior_of(truth, log_p.shape[1])
    if folds is None:
        return Calibrator(), beliefs
    calibrator, tempered = fit_temperature(np.log(np.maximum(beliefs, TINY**2)), truth, folds)
    if nll_of(tempered, truth, prior) < nll_of(beliefs, truth, prior):
        return calibrator, tempered
    return Calibrator(), beliefs


def _unless_silent(log_p: Floats, opinions: Opinions) -> Floats:
    """Nan where nobody answered."""
    return np.where(np.asarray(opinions.answered.any(axis=0))[:, None], log_p, np.nan)
