"""The neighbours' vote: an agent like any other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from secondlook.agents.case import Case, Task
from secondlook.agents.prediction import Failure, Outcome, Prediction

Weighting = Literal["similarity", "uniform"]
"""What a neighbour's voice counts.

- ``similarity``: its cosine to the case; nothing where that is negative
- ``uniform``: one
"""


class NeighbourVote:
    """Predicts the shares of the labels among a case's neighbours.

    score_c = sum of the weights of the neighbours labelled c / sum of all weights. With k = 10 and similarities as
    weights this is the retrieval vote of [1]_.

    CLIP's image embeddings lie in a narrow cone: among 512 ViT-B/32 features of leaves 99.6 % of the pairs with
    *different* labels have a cosine above .8, and the first and tenth neighbour of an image differ by .012 (medians).
    So a cosine is no confidence, similarity weights hardly differ, and the vote is nearly a count of ten. The scores
    therefore say that they are a ``vote``; what a vote is worth is measured on held-out cases, by the calibrator.

    Parameters
    ----------
    task : Task
        Its labels give the order of the scores.
    name : str
        The agent's name.
    weighting : {"similarity", "uniform"}
        What a neighbour's voice counts.

    References
    ----------
    .. [1] Roumeliotis et al. (2025), "Orchestrator-Agent Trust: A Modular Agentic AI Visual Classification System with
       Trust-Aware Orchestration and RAG-Based Reasoning", https://arxiv.org/abs/2507.10571

    Examples
    --------
    >>> vote = NeighbourVote(Task(labels=("rust", "scab")))
    >>> vote.shares([("scab", 0.9), ("rust", 0.6), ("scab", 0.9)])
    (0.25, 0.75)
    """

    def __init__(self, task: Task, name: str = "neighbour-vote", weighting: Weighting = "similarity") -> None:
        self.task = task
        self.weighting = weighting
        self._name = name

    @property
    def name(self) -> str:
        """The agent's name in track records, verdicts and reports."""
        return self._name

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Count the voices of each case's neighbours.

        Parameters
        ----------
        cases : sequence of Case
            With evidence; without any, a case yields a `Failure`.

        Returns
        -------
        list of Outcome
            As many as cases, in their order.
        """
        return [self._judge(case) for case in cases]

    def shares(self, voices: Sequence[tuple[str, float]]) -> tuple[float, ...] | None:
        """Return each label's share of the weights; None where all weights are nothing.

        Parameters
        ----------
        voices : sequence of (label, similarity)
            The neighbours, in any order.

        Raises
        ------
        ValueError
            If a label is not one of the task's: the index belongs to another task.
        """
        weights: dict[str, list[float]] = {label: [] for label in self.task.labels}
        for label, similarity in voices:
            if label not in weights:
                raise ValueError(f"neighbours: expected labels of {list(weights)}, got {label!r}")
            weights[label].append(1.0 if self.weighting == "uniform" else max(similarity, 0.0))
        # fsum rounds once, so the order of the neighbours cannot show in the last digit.
        total = math.fsum(w for each in weights.values() for w in each)
        return tuple(math.fsum(each) / total for each in weights.values()) if total > 0 else None

    def _judge(self, case: Case) -> Outcome:
        if case.evidence is None:
            return Failure(agent=self.name, look=case.look, error="no evidence was retrieved for this look")
        if not case.evidence.neighbours:
            return Failure(agent=self.name, look=case.look, error="no neighbour left after the leak guard")
        shares = self.shares([(n.label, n.similarity) for n in case.evidence.neighbours])
        if shares is None:
            return Failure(agent=self.name, look=case.look, error="no neighbour has a positive similarity")
        return Prediction(agent=self.name, look=case.look, scale="vote", scores=shares)
