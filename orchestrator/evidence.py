"""What a second look is given that the first had not."""

from __future__ import annotations

from collections.abc import Sequence

from secondlook.agents.case import Case, Evidence, Neighbour
from secondlook.agents.embedder import Embedder
from secondlook.retrieval.search import Searcher


def with_evidence(cases: Sequence[Case], embedder: Embedder, searcher: Searcher, views: tuple[str, ...]) -> list[Case]:
    """Retrieve labelled neighbours for a batch and put them, and the views to look at, into the cases.

    Parameters
    ----------
    cases : sequence of Case
        N cases; one whose image cannot be read gets no neighbours.
    embedder : Embedder
    searcher : Searcher
    views : tuple of str
        Names in `secondlook.agents.crop`.

    Returns
    -------
    list of Case
        In their order.

    Raises
    ------
    RetrievalError
        When the store cannot answer.
    """
    embedded = embedder.embed([case.photo for case in cases])
    neighbours: list[tuple[Neighbour, ...]] = [()] * len(cases)
    if embedded.ok.size:
        found = searcher.search(embedded.vectors[embedded.ok], [cases[i] for i in embedded.ok])
        for i, row in zip(embedded.ok, found, strict=True):
            neighbours[i] = row
    return [
        case.model_copy(update={"evidence": Evidence(neighbours=row, views=views)})
        for case, row in zip(cases, neighbours, strict=True)
    ]
