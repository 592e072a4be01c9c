"""A panel: the agents of one look, asked together, and their outcomes as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio
import numpy as np

from secondlook.agents.base import Agent
from secondlook.agents.case import Case
from secondlook.agents.cost import Cost
from secondlook.agents.errors import AgentError
from secondlook.agents.prediction import Failure, Outcome
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.statements import hear
from secondlook.orchestrator.verdict import Opinion

Outcomes = Mapping[str, Sequence[Outcome]]
"""By column, one outcome per case."""


def column(agent: str, look: int) -> str:
    """Name of an agent's answers at a look: `linear-head`, then `linear-head@2`."""
    return agent if look == 1 else f"{agent}@{look}"


def cost_of(agents: Sequence[Agent], look: int) -> Cost:
    """Cost of asking a panel about one case: what its agents declare, and a second look if it is one.

    An agent declares its cost for a case by a mapping named `cost`, of kinds of `Cost` to amounts; one that declares
    none costs nothing, nor does one that pays for each of its calls itself (`accounted`).
    """
    paid = [agent for agent in agents if not getattr(agent, "accounted", False)]
    declared: list[Mapping[str, float]] = [getattr(agent, "cost", {}) for agent in paid]
    return sum((Cost(**each) for each in declared), Cost(looks=float(look > 1)))


async def ask(
    agents: Sequence[Agent], cases: Sequence[Case], judge: Agent | None = None, labels: Sequence[str] = ()
) -> dict[str, list[Outcome]]:
    """Ask every agent of a panel at the same time, then the judge, who hears what they said; outcomes in panel order.

    An agent that raises an `AgentError` has failed for the whole batch; any other error is a bug and propagates.

    Parameters
    ----------
    agents : sequence of Agent
    cases : sequence of Case
        All of one look.
    judge : Agent, optional
        Its outcomes come last.
    labels : sequence of str
        The task's K labels, in which the judge is told what the others said.

    Returns
    -------
    dict of str to list of Outcome
        By column.

    Raises
    ------
    ValueError
        When two agents have one name, or one returns another number of outcomes than there are cases.
    """
    if not cases:
        return {}
    look = cases[0].look
    answers: dict[str, list[Outcome]] = {column(agent.name, look): [] for agent in agents}
    if len(answers) != len(agents):
        raise ValueError(f"agents: expected different names, got {[agent.name for agent in agents]}")

    async def one(agent: Agent) -> None:
        try:
            said = await agent.predict(cases)
        except AgentError as error:
            said = [Failure(agent=agent.name, look=look, error=str(error), reached=False) for _ in cases]
        if len(said) != len(cases):
            raise ValueError(f"{agent.name}: expected {len(cases)} outcomes, got {len(said)}")
        answers[column(agent.name, look)] = said

    try:
        async with anyio.create_task_group() as tasks:
            for agent in agents:
                tasks.start_soon(one, agent)
    except ExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise
    if judge is not None:
        heard = [hear(case, [row[i] for row in answers.values()], labels) for i, case in enumerate(cases)]
        answers |= await ask([judge], heard)
    return answers


def stack(outcomes: Outcomes, columns: Sequence[str], n_labels: int) -> Opinions:
    """Outcomes of the named columns as arrays; what was never calibrated counts as said."""
    n = len(outcomes[columns[0]])
    probs = np.full((len(columns), n, n_labels), np.nan)
    said, consistency = probs.copy(), probs[:, :, 0].copy()
    for m, name in enumerate(columns):
        for i, outcome in enumerate(outcomes[name]):
            if not isinstance(outcome, Failure):
                probs[m, i] = outcome.scores
                said[m, i] = outcome.said or outcome.scores
                consistency[m, i] = np.nan if outcome.consistency is None else outcome.consistency
    return Opinions(tuple(columns), probs, said, consistency)


def opinion(outcome: Outcome, labels: Sequence[str]) -> Opinion:
    """Bring an outcome into the form of a trail."""
    if isinstance(outcome, Failure):
        return Opinion(agent=outcome.agent, look=outcome.look, error=outcome.error)
    top = outcome.top
    return Opinion(
        agent=outcome.agent,
        look=outcome.look,
        label=labels[top],
        confidence=outcome.scores[top],
        probs=outcome.scores,
        reason=outcome.reason,
    )
