"""What the agents say of held-out cases at each look, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from anyio.from_thread import start_blocking_portal
from numpy.typing import NDArray

from secondlook.agents.base import Agent
from secondlook.agents.calibration import Calibrator, fit_calibrator, log_distributions
from secondlook.agents.case import Case
from secondlook.agents.prediction import Failure, Outcome
from secondlook.orchestrator.evidence import with_evidence
from secondlook.orchestrator.nodes import Nodes
from secondlook.orchestrator.panel import ask, column
from secondlook.orchestrator.statements import hear

Floats = NDArray[np.float64]
PART = 256
"""Cases asked about at once."""


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
    stated : ndarray of shape (N,), optional
        The confidences in the agent's own words, nan where there is none; None where it never stated one.
    consistency : ndarray of shape (N,), optional
        How far its views agreed, nan where there was one; None where it never saw several.
    """

    agent: str
    look: int
    raw: Floats
    probs: Floats
    calibrator: Calibrator
    stated: Floats | None = None
    consistency: Floats | None = None

    @property
    def column(self) -> str:
        """Its name in a pool."""
        return column(self.agent, self.look)


def poll(nodes: Nodes, cases: Sequence[Case]) -> dict[str, list[Outcome]]:
    """Ask every agent at every look about all cases, whatever the gate would say; for comparison only.

    Returns
    -------
    dict of str to list of Outcome
        Calibrated, by column, in the order of the cases.
    """
    labels = nodes.model.task.labels
    first = ask_blocking(nodes.panels[1], cases, judge=nodes.judge_agent, labels=labels)
    again = with_evidence(
        hear_all(cases, first, labels), nodes.embedder, nodes.open_searcher(), nodes.model.config.views
    )
    return first | ask_blocking(nodes.panels[2], again, judge=nodes.judge_agent, labels=labels)


def hear_all(cases: Sequence[Case], outcomes: dict[str, list[Outcome]], labels: Sequence[str]) -> list[Case]:
    """Tell each case what was said of it; see `secondlook.orchestrator.statements.hear`."""
    return [hear(case, [row[i] for row in outcomes.values()], labels) for i, case in enumerate(cases)]


def ask_blocking(
    agents: Sequence[Agent],
    cases: Sequence[Case],
    enrich: Callable[[Sequence[Case]], Sequence[Case]] = lambda part: part,
    judge: Agent | None = None,
    labels: Sequence[str] = (),
) -> dict[str, list[Outcome]]:
    """Ask a panel from synchronous code, within a running event loop too.

    Parameters
    ----------
    agents : sequence of Agent
    cases : sequence of Case
        Asked about `PART` at a time; their pixels are let go of afterwards, so that any number fits into memory.
    enrich : callable
        Gives the cases of a part the evidence of a second look.
    judge, labels
        See `secondlook.orchestrator.panel.ask`.

    Returns
    -------
    dict of str to list of Outcome
        By column, in the order of the cases.
    """
    answers: dict[str, list[Outcome]] = {}
    with start_blocking_portal() as portal:
        for start in range(0, len(cases), PART):
            part = cases[start : start + PART]
            for name, found in portal.call(ask, agents, enrich(part), judge, labels).items():
                answers.setdefault(name, []).extend(found)
            for case in part:
                case.photo.release()
    return answers


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
            log_q, scale = log_distributions(said)
            calibrator, probs[ok] = fit_calibrator(log_q, truth[ok], None if folds is None else folds[ok], scale)
            raw[ok] = np.exp(log_q)
        found.append(Answers(row[0].agent, row[0].look, raw, probs, calibrator, _stated(row), _consistency(row)))
    return found


def _stated(row: Sequence[Outcome]) -> Floats | None:
    words = [max(o.scores) if not isinstance(o, Failure) and o.scale == "stated" else np.nan for o in row]
    return None if np.isnan(words).all() else np.array(words)


def _consistency(row: Sequence[Outcome]) -> Floats | None:
    known = [None if isinstance(outcome, Failure) else outcome.consistency for outcome in row]
    found = np.array(known, dtype=np.float64)  # None becomes nan
    return None if np.isnan(found).all() else found
