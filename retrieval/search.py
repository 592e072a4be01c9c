"""From a case to its neighbours, without a leak."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import ArrayLike

from secondlook.agents.case import Case, Neighbour
from secondlook.retrieval.index import Index
from secondlook.retrieval.store import Hit, check_embeddings, check_k


class Searcher:
    """Finds the k nearest labelled images that are evidence about a case and not the case itself.

    The leak guard drops the case's own image (same digest), its own group, and near-duplicates: items more similar than
    the manifest's measured limit. A case found among its own photographs would be answered from memory, and every
    figure measured on such answers would be too good.

    Parameters
    ----------
    index : Index
        Open, and made with the encoder whose embeddings will be asked for.
    k : int
        Neighbours per case, at least 1.
    """

    def __init__(self, index: Index, k: int = 10) -> None:
        check_k(k)
        self.index = index
        self.k = k

    def search(self, embeddings: ArrayLike, cases: Sequence[Case]) -> list[tuple[Neighbour, ...]]:
        """Find the neighbours of a batch of cases.

        Parameters
        ----------
        embeddings : array-like of shape (N, D)
            Unit rows, one a case.
        cases : sequence of Case
            N cases; only their digests and groups are read.

        Returns
        -------
        list of tuple of Neighbour
            Most similar first; fewer than k only where the whole index holds no more that pass the guard.

        Raises
        ------
        RetrievalError
            If the store cannot answer.
        """
        store = self.index.store
        rows = check_embeddings(embeddings, len(cases), store.dim)
        found: list[tuple[Neighbour, ...]] = [()] * len(cases)
        short = list(range(len(cases)))
        fetch = 2 * self.k
        while short:
            for i, hits in zip(short, store.query(rows[short], fetch), strict=True):
                found[i] = self._admitted(cases[i], hits)
            short = [i for i in short if len(found[i]) < self.k and fetch < len(store)]
            fetch *= 2
        return found

    def _admitted(self, case: Case, hits: Sequence[Hit]) -> tuple[Neighbour, ...]:
        """Return the first k hits that pass the leak guard."""
        digest, limit = case.photo.digest, self.index.manifest.near_duplicate
        kept = [
            hit
            for hit in hits
            if hit.item.digest != digest
            and (case.group is None or hit.item.group != case.group)
            and hit.similarity <= limit
        ]
        return tuple(
            Neighbour(id=item.id, label=item.label, similarity=similarity, group=item.group, path=item.path)
            for item, similarity in kept[: self.k]
        )
