"""Outcomes in words: what agents said of a case, as other agents, or they themselves, are told of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.calibration import log_distribution
from secondlook.agents.case import Case, Statement
from secondlook.agents.prediction import Failure, Outcome, Prediction


def statements(outcomes: Sequence[Outcome], labels: Sequence[str]) -> tuple[Statement, ...]:
    """Say of each outcome what its agent itself said, whether or not it was calibrated since.

    Parameters
    ----------
    outcomes : sequence of Outcome
    labels : sequence of K str
        The task's, in its order.

    Returns
    -------
    tuple of Statement
        As many, in their order: the label that the agent held for likeliest, and its own probability of it, as
        `secondlook.agents.calibration.log_distribution` reads its numbers. Of a failure the reason is its error.

    Raises
    ------
    ValueError
        When an outcome has another number of scores than there are labels.

    Examples
    --------
    >>> said = Prediction(agent="eye", scale="stated", scores=(0.0, 0.95), reason="It barks.")
    >>> statements([said, Failure(agent="ear", error="no answer")], ("cat", "dog"))[0]
    Statement(agent='eye', look=1, label='dog', confidence=0.95, reason='It barks.')
    """
    return tuple(_statement(outcome, labels) for outcome in outcomes)


def hear(case: Case, outcomes: Sequence[Outcome], labels: Sequence[str]) -> Case:
    """Return the case with what was said of it added at the end of what was heard before."""
    return case.model_copy(update={"heard": (*case.heard, *statements(outcomes, labels))})


def _statement(outcome: Outcome, labels: Sequence[str]) -> Statement:
    if isinstance(outcome, Failure):
        return Statement(agent=outcome.agent, look=outcome.look, reason=outcome.error)
    own = _own(outcome)
    if own.shape != (len(labels),):
        raise ValueError(f"{outcome.agent}: expected [K={len(labels)}] scores, got {own.shape}")
    top = int(own.argmax())
    # Twelve digits: the same words whether they were calibrated since or not.
    sure = min(1.0, round(float(own[top]), 12))
    return Statement(agent=outcome.agent, look=outcome.look, label=labels[top], confidence=sure, reason=outcome.reason)


def _own(prediction: Prediction) -> NDArray[np.float64]:
    """Distribution of shape (K,) that the agent itself gave."""
    if prediction.said is not None:
        return np.array(prediction.said)
    own: NDArray[np.float64] = np.exp(log_distribution(np.array([prediction.scores]), prediction.scale)[0])
    return own
