"""The agents of every look, before any of them is calibrated."""

from __future__ import annotations

from collections.abc import Sequence

from secondlook.agents.base import Agent
from secondlook.agents.case import Task
from secondlook.agents.clip_head import ClipHead, LinearHead
from secondlook.agents.clip_zero_shot import ClipZeroShot, TextClassifier
from secondlook.agents.embedder import Embedder
from secondlook.orchestrator.language import Member
from secondlook.retrieval.neighbour_vote import NeighbourVote


def raw_panels(
    embedder: Embedder, classifier: TextClassifier, head: LinearHead, task: Task, others: Sequence[Member] = ()
) -> dict[int, tuple[Agent, ...]]:
    """Panels by look: words and head, then both again with the neighbours' vote, each with the language models it has.

    Parameters
    ----------
    embedder, classifier, head, task
        Of the agents that every panel has.
    others : sequence of Member
        See `secondlook.orchestrator.language.members`.
    """
    zero_shot, linear = ClipZeroShot(embedder, classifier), ClipHead(embedder, head)
    own: dict[int, tuple[Agent, ...]] = {1: (zero_shot, linear), 2: (zero_shot, linear, NeighbourVote(task))}
    return {look: (*agents, *(m.agent for m in others if look in m.looks)) for look, agents in own.items()}
