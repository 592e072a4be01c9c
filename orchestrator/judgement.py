"""The judgement of a batch at one look: belief, trust and what the gate decides, as one pure function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from secondlook.orchestrator.fusion import Fusion
from secondlook.orchestrator.gate import Gate
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.trust_model import Trust, features
from secondlook.orchestrator.verdict import Reason

Floats = NDArray[np.float64]
Decision = Literal["accept", "look_again", "review"]


@dataclass(frozen=True)
class Judgement:
    """What was concluded for N cases.

    Attributes
    ----------
    belief : ndarray of shape (N, K)
    trust : ndarray of shape (N,)
    decisions : tuple of N decisions
    reasons : tuple of N reasons
        Of a decision to look again, the reason it was not accepted.
    """

    belief: Floats
    trust: Floats
    decisions: tuple[Decision, ...]
    reasons: tuple[Reason, ...]


def judge(
    fusion: Fusion, trust: Trust, gate: Gate, opinions: Opinions, typicality: Floats, *, may_look_again: bool
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
    """
    belief = fusion.fuse(opinions)
    # A stranger cannot be told without an embedding, so nothing is believed of such a case.
    belief[np.isnan(typicality)] = np.nan
    typical = np.nan_to_num(typicality, nan=1.0)
    scores = trust.of(features(belief, opinions.probs, typical))
    unknown = np.asarray(np.isnan(belief).any(axis=1))
    strangers = gate.strangers(typical)
    accepted = gate.accepts(scores, typical, last=not may_look_again) & ~unknown
    decisions: list[Decision] = []
    reasons: list[Reason] = []
    for i in range(len(belief)):
        reason = _reason(bool(unknown[i]), bool(strangers[i]), bool(accepted[i]), gate)
        reasons.append(reason)
        if reason == "trusted":
            decisions.append("accept")
        elif may_look_again and reason != "no_outcome":
            # Also a stranger, which will go to review whatever is said: a human is helped by neighbours and a label.
            decisions.append("look_again")
        else:
            decisions.append("review")
    return Judgement(belief, scores, tuple(decisions), tuple(reasons))


def _reason(unknown: bool, stranger: bool, accepted: bool, gate: Gate) -> Reason:
    if unknown:
        return "no_outcome"
    if stranger:
        return "stranger"
    if accepted:
        return "trusted"
    return "no_threshold" if gate.threshold is None else "low_trust"


def explain(
    reason: Reason, decision: Decision, gate: Gate, least: float | None, trust: float, typicality: float, errors: str
) -> str:
    """Say in a sentence, with its numbers, why the gate decided so.

    Parameters
    ----------
    reason, decision, gate
        What was decided, and by which gate.
    least : float or None
        The least trust that this look needed; see `Gate.least_trust`.
    trust, typicality : float
        The case's.
    errors : str
        What the agents that failed said.
    """
    # Five digits where three would show both numbers as one, or as certainty.
    digits = 5 if trust >= 0.9995 or abs(trust - (least or 0.0)) < 0.001 else 3
    target = f"{100 * gate.target_risk:.3g}%"
    after = ", so it is looked at again" if decision == "look_again" else ""
    match reason:
        case "trusted":
            return f"Trust {trust:.{digits}f} reaches the {least:.{digits}f} that holds errors under {target}."
        case "low_trust":
            return f"Trust {trust:.{digits}f} is below the {least:.{digits}f} that is needed{after}."
        case "no_threshold":
            so = after or ", so nothing is accepted"
            return f"No threshold can promise an error under {target}{so}."
        case "stranger":
            return (
                f"Unlike what the model was fitted on: only {typicality:.1%} of its own held-out images are as unusual "
                f"(limit {gate.stranger_limit:.1%}){after}."
            )
        case "no_outcome":
            return f"No agent could answer: {errors or 'the image has no embedding.'}"
        case _:
            assert_never(reason)
