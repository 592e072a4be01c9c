"""The agents of every look, before any of them is calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secondlook.agents.base import Agent
from secondlook.agents.case import Task
from secondlook.agents.clip_head import ClipHead
from secondlook.agents.clip_zero_shot import ClipZeroShot, TextClassifier
from secondlook.agents.com_clip import ComClip
from secondlook.agents.embedder import Embedder
from secondlook.agents.head import Head
from secondlook.orchestrator.language import Member
from secondlook.retrieval.neighbour_vote import NeighbourVote


def raw_panels(
    embedder: Embedder,
    classifier: TextClassifier,
    heads: Mapping[str, Head],
    task: Task,
    others: Sequence[Member] = (),
    box_prompts: Sequence[str] = (),
) -> dict[int, tuple[Agent, ...]]:
    """Panels by look: words and heads, then all again with the neighbours' vote, each with the language models it has.

    Parameters
    ----------
    embedder, classifier, heads, task
        Of the agents that every panel has; the heads by name.
    others : sequence of Member
        See `secondlook.orchestrator.language.members`.
    box_prompts : sequence of str
        Prompts that the words of boxes are put into; with any, ComCLIP looks at the boxes of the cases too.
    """
    learned = (ClipHead(embedder, head, name) for name, head in heads.items())
    frozen: tuple[Agent, ...] = (ClipZeroShot(embedder, classifier), *learned)
    if box_prompts:
        frozen = (*frozen, ComClip(embedder, classifier, box_prompts))
    own: dict[int, tuple[Agent, ...]] = {1: frozen, 2: (*frozen, NeighbourVote(task))}
    return {look: (*agents, *(m.agent for m in others if look in m.looks)) for look, agents in own.items()}
