"""What the agents say of held-out cases at each look, as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from anyio import run as run_async
from numpy.typing import NDArray

from secondlook.agents.base import Agent
from secondlook.agents.calibration import Calibrator, fit_calibrator, log_distribution
from secondlook.agents.case import Case, Evidence
from secondlook.agents.embedder import Embedder
from secondlook.agents.prediction import Failure, Outcome
from secondlook.orchestrator.nodes import Nodes
from secondlook.orchestrator.panel import ask, column
from secondlook.retrieval.search import Searcher

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """One agent's answers at one look, calibrated on the same cases by cross-fitting.

    Attributes
    ----------
    agent, look
        Whose.
    raw : ndarray of shape (N, K)
        As said, brought to distributions; rows of nan for failures.
    probs : ndarray of shape (N, K)
        Calibrated, cross-fitted.
    calibrator : Calibrator
        Fitted on all N.
    """

    agent: str
    look: int
    raw: Floats
    probs: Floats
    calibrator: Calibrator

    @property
    def column(self) -> str:
        """Its name in a pool."""
        return column(self.agent, self.look)


def second_look_cases(
    cases: Sequence[Case], embedder: Embedder, searcher: Searcher, views: tuple[str, ...]
) -> list[Case]:
    """Give every case the evidence a second look would have."""
    found = searcher.search(embedder.embed([case.photo for case in cases]).vectors, cases)
    return [
        case.model_copy(update={"evidence": Evidence(neighbours=neighbours, views=views)})
        for case, neighbours in zip(cases, found, strict=True)
    ]


def poll(nodes: Nodes, cases: Sequence[Case]) -> dict[str, list[Outcome]]:
    """Ask every agent at every look about all cases, whatever the gate would say; for comparison only.

    Returns
    -------
    dict of str to list of Outcome
        Calibrated, by column, in the order of the cases.
    """
    errors = nodes.embedder.embed([case.photo for case in cases]).errors
    readable = [case for case, error in zip(cases, errors, strict=True) if error is None]
    again = second_look_cases(readable, nodes.embedder, nodes.open_searcher(), nodes.model.config.views)
    found = ask_blocking(nodes.panels[1], readable) | ask_blocking(nodes.panels[2], again)
    return {name: list(_with_failures(name, answers, errors)) for name, answers in found.items()}


def _with_failures(name: str, answers: list[Outcome], errors: Sequence[str | None]) -> Iterator[Outcome]:
    rest = iter(answers)
    for error in errors:
        yield next(rest) if error is None else Failure(agent=name, error=error)


def ask_blocking(agents: Sequence[Agent], cases: Sequence[Case]) -> dict[str, list[Outcome]]:
    """Ask a panel from synchronous code; by column."""
    return run_async(ask, agents, cases)


def calibrate_all(
    outcomes: dict[str, list[Outcome]], truth: NDArray[np.intp], folds: NDArray[np.intp] | None, n_labels: int
) -> list[Answers]:
    """Fit a calibrator per column; see `secondlook.agents.calibration.fit_calibrator`."""
    found = []
    for row in outcomes.values():
        n = len(row)
        raw, probs = np.full((n, n_labels), np.nan), np.full((n, n_labels), np.nan)
        said = [outcome for outcome in row if not isinstance(outcome, Failure)]
        ok = np.array([not isinstance(outcome, Failure) for outcome in row], dtype=np.bool_)
        calibrator = Calibrator()
        if said:
            log_q = log_distribution(np.array([outcome.scores for outcome in said]), said[0].scale)
            calibrator, probs[ok] = fit_calibrator(log_q, truth[ok], None if folds is None else folds[ok])
            raw[ok] = np.exp(log_q)
        found.append(Answers(row[0].agent, row[0].look, raw, probs, calibrator))
    return found
