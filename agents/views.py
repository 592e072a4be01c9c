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


def views_of(case: Case) -> tuple[str, ...]:
    """Name what is looked at: the whole image, and the views of the evidence where there is any."""
    return ("whole", *(view for view in case.evidence.views if view != "whole")) if case.evidence else ("whole",)


def see(cases: Sequence[Case], embedder: Embedder, views: Sequence[Sequence[str]]) -> list[NDArray[np.float32] | str]:
    """Embed the views of a batch, each view of all cases that have it in one pass.

    Parameters
    ----------
    cases : sequence of Case
    embedder : Embedder
    views : sequence of sequence of str
        Of each case, the names of V >= 1 views.

    Returns
    -------
    list of ndarray of shape (V, D), or str
        Of each case, the unit vectors in the order of its views; what went wrong where the image cannot be read.
    """
    vectors: list[dict[str, NDArray[np.float32]]] = [{} for _ in cases]
    errors: dict[int, str] = {}
    for view in sorted({view for own in views for view in own}):
        rows = [i for i, own in enumerate(views) if view in own]
        found = embedder.embed([cases[i].photo for i in rows], view)
        for i, vector, error in zip(rows, found.vectors, found.errors, strict=True):
            if error is None:
                vectors[i][view] = vector
            else:
                errors[i] = error
    return [errors[i] if i in errors else np.stack([vectors[i][view] for view in own]) for i, own in enumerate(views)]


def answer(agent: str, case: Case, logits: NDArray[np.float64]) -> Prediction:
    """Average the logits of V views, of shape (V, K), to a prediction that states how far they agree."""
    scores = tuple(logits.mean(axis=0).tolist())
    return Prediction(agent=agent, look=case.look, scale="logit", scores=scores, consistency=consistency_of(logits))


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
    seen = see(cases, embedder, [views_of(case) for case in cases])
    known = [vectors for vectors in seen if not isinstance(vectors, str)]
    ends = np.cumsum([len(vectors) for vectors in known])[:-1]
    rows = iter(np.split(logits(np.concatenate(known)), ends) if known else ())
    return [
        Failure(agent=agent, look=case.look, error=vectors)
        if isinstance(vectors, str)
        else answer(agent, case, next(rows))
        for case, vectors in zip(cases, seen, strict=True)
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
