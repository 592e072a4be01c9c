"""The judgement of a batch at one look: belief, trust and what the gate decides, as one pure function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, assert_never

import numpy as np
from numpy.typing import NDArray

from secondlook.orchestrator.fusion import Fusion
from secondlook.orchestrator.gate import Gate
from secondlook.orchestrator.loss import UNKNOWN, Loss
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.trust_model import Trust, features
from secondlook.orchestrator.verdict import Reason

Floats = NDArray[np.float64]
Decision = Literal["accept", "look_again", "review"]


class Hold(NamedTuple):
    """Why nothing is accepted for the time being, whatever its trust."""

    reason: Literal["unproven", "drift"]
    why: str
    """In a sentence."""


@dataclass(frozen=True)
class Judgement:
    """What was concluded for N cases.

    Attributes
    ----------
    belief : ndarray of shape (N, K)
    labels : ndarray of shape (N,)
        Of least expected cost; `UNKNOWN` where nothing is believed.
    trust : ndarray of shape (N,)
        Probability that the label is right.
    decisions : tuple of N decisions
    reasons : tuple of N reasons
        Of a decision to look again, the reason it was not accepted.
    """

    belief: Floats
    labels: NDArray[np.intp]
    trust: Floats
    decisions: tuple[Decision, ...]
    reasons: tuple[Reason, ...]


def judge(
    fusion: Fusion,
    trust: Trust,
    gate: Gate,
    opinions: Opinions,
    typicality: Floats,
    *,
    may_look_again: bool,
    loss: Loss | None = None,
    hold: Hold | None = None,
    again: NDArray[np.bool_] | None = None,
    incomplete: NDArray[np.bool_] | None = None,
) -> Judgement:
    """Fuse, trust, decide.

    Parameters
    ----------
    fusion, trust, gate
        What was fitted for this look.
    opinions : Opinions
        Of the fusion's agents, in their order.
    typicality : ndarray of shape (N,)
        nan where the image has no embedding; such a case is not decided on, whoever answered.
    may_look_again : bool
        Whether a further look is left.
    loss : Loss, optional
        The task's costs, which choose the label; by default the most probable one is taken.
    hold : Hold, optional
        Sends to review, for its reason, whatever would be accepted.
    again : ndarray of bool of shape (N,), optional
        Cases that the judge asks to be looked at again; they are, whatever their trust, while a look is left.
    incomplete : ndarray of bool of shape (N,), optional
        Cases of which an agent could not be reached. The threshold was tested on complete panels, so they are not
        accepted: they are looked at again, or reviewed.
    """
    belief = fusion.fuse(opinions)
    # A stranger cannot be told without an embedding, so nothing is believed of such a case.
    belief[np.isnan(typicality)] = np.nan
    typical = np.nan_to_num(typicality, nan=1.0)
    labels = (loss or Loss()).labels(belief)
    scores = trust.of(features(belief, opinions.probs, typical, labels, opinions.consistency))
    unknown = labels == UNKNOWN
    strangers = gate.strangers(typical)
    accepted = gate.accepts(scores, typical, last=not may_look_again) & ~unknown
    if again is not None and may_look_again:
        accepted &= ~again
    decisions: list[Decision] = []
    reasons: list[Reason] = []
    for i in range(len(belief)):
        reason = _reason(bool(unknown[i]), bool(strangers[i]), bool(accepted[i]), gate)
        if reason == "trusted" and incomplete is not None and incomplete[i]:
            reason = "incomplete"
        if reason == "trusted" and hold is not None:
            reasons.append(hold.reason)
            decisions.append("review")
            continue
        reasons.append(reason)
        if reason == "trusted":
            decisions.append("accept")
        elif may_look_again and reason != "no_outcome":
            # Also a stranger, which will go to review whatever is said: a human is helped by neighbours and a label.
            decisions.append("look_again")
        else:
            decisions.append("review")
    return Judgement(belief, labels, scores, tuple(decisions), tuple(reasons))


def _reason(unknown: bool, stranger: bool, accepted: bool, gate: Gate) -> Reason:
    if unknown:
        return "no_outcome"
    if stranger:
        return "stranger"
    if accepted:
        return "trusted"
    return "no_threshold" if gate.threshold is None else "low_trust"


def explain(
    reason: Reason,
    decision: Decision,
    gate: Gate,
    least: float | None,
    trust: float,
    typicality: float,
    because: str = "",
    refused: str = "",
) -> str:
    """Say in a sentence, with its numbers, why the gate decided so.

    Parameters
    ----------
    reason, decision, gate
        What was decided, and by which gate.
    least : float or None
        The least trust that this look needed; see `Gate.least_trust`.
    trust, typicality : float
        The case's; trust is nan where it was not looked at.
    because : str
        What the agents that failed said, or why nothing is accepted for the time being.
    refused : str
        Which limits of the budget the next look would exceed, with the numbers.
    """
    # Five digits where three would show both numbers as one, or as certainty.
    digits = 5 if max(trust, least or 0.0) >= 0.9995 or abs(trust - (least or 0.0)) < 0.001 else 3
    after = ", so it is looked at again" if decision == "look_again" else ""
    if refused:
        after = f"; another look is beyond the budget ({refused})"
    match reason:
        case "trusted":
            return f"Trust {trust:.{digits}f} reaches the {least:.{digits}f} that holds {gate.promise}."
        case "budget" if math.isnan(trust):
            return f"To look at it at all is beyond the budget ({refused})."
        case "low_trust" | "budget" if least is not None and trust >= least:
            return f"The judge asks for another look, at trust {trust:.{digits}f}{after}."
        case "low_trust" | "budget":
            return f"Trust {trust:.{digits}f} is below the {least:.{digits}f} that is needed{after}."
        case "no_threshold":
            so = after if decision == "look_again" else f", so nothing is accepted{after}"
            return f"No threshold can promise {gate.promise}{so}."
        case "stranger":
            return (
                f"Unlike what the model was fitted on: only {typicality:.1%} of its own held-out images are as unusual "
                f"(limit {gate.stranger_limit:.1%}){after}."
            )
        case "incomplete":
            return f"Trust {trust:.{digits}f} would be accepted, were the panel complete{after}."
        case "no_outcome":
            return f"No agent could answer: {because or 'the image has no embedding.'}"
        case "unproven" | "drift":
            return f"Trust {trust:.{digits}f} would be accepted, but {because}"
        case _:
            assert_never(reason)
