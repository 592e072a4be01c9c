"""How agents on frozen features look: at the whole image, or again at the views that the evidence names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Case
from secondlook.agents.embedder import Embedder
from secondlook.agents.prediction import Failure, Outcome, Prediction

Logits = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""Embeddings of shape (N, D) to logits of shape (N, K)."""


def look_at(cases: Sequence[Case], embedder: Embedder, logits: Logits, agent: str) -> list[Outcome]:
    """Judge a batch by a function of embeddings, averaged over views.

    Parameters
    ----------
    cases : sequence of Case
        Without evidence the whole image is looked at; with it, the whole image and `evidence.views`.
    embedder : Embedder
        Shared by all agents, so that each view is encoded once.
    logits : callable
        Embeddings of shape (N, D) to logits of shape (N, K).
    agent : str
        Name put on the outcomes.

    Returns
    -------
    list of Outcome
        `Prediction` of scale ``logit``, with its consistency where there were several views; or `Failure` where the
        image cannot be read.
    """
    photos = [case.photo for case in cases]
    seen: dict[int, list[NDArray[np.float64]]] = {i: [] for i in range(len(cases))}
    errors: dict[int, str] = {}
    views = {view for case in cases if case.evidence for view in case.evidence.views} - {"whole"}
    for view in ["whole", *sorted(views)]:
        rows = [i for i, case in enumerate(cases) if view == "whole" or (case.evidence and view in case.evidence.views)]
        found = embedder.embed([photos[i] for i in rows], view)
        errors |= {rows[j]: error for j, error in enumerate(found.errors) if error is not None}
        if found.ok.size:
            for j, row in zip(found.ok, logits(found.vectors[found.ok]), strict=True):
                seen[rows[j]].append(row)
    return [
        Failure(agent=agent, look=case.look, error=errors[i])
        if i in errors
        else Prediction(
            agent=agent,
            look=case.look,
            scale="logit",
            scores=tuple(np.mean(seen[i], axis=0).tolist()),
            consistency=consistency_of(np.stack(seen[i])),
        )
        for i, case in enumerate(cases)
    ]


def consistency_of(logits: NDArray[np.float64]) -> float | None:
    """Mean, over views, of the probability that each alone gives the label that all together put first.

    Views that contradict each other average to a confident answer as easily as to a cautious one; this tells them from
    views that agree.

    Parameters
    ----------
    logits : ndarray of shape (V, K)
        Of each of V views.

    Returns
    -------
    float or None
        None of one view.

    Examples
    --------
    >>> consistency_of(np.log([[0.8, 0.2], [0.6, 0.4]])).__round__(3), consistency_of(np.zeros((1, 2)))
    (0.7, None)
    """
    if len(logits) < 2:
        return None
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    given = p[:, logits.mean(axis=0).argmax()] / p.sum(axis=1)
    return min(float(given.mean()), 1.0)
