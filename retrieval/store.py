"""Where labelled embeddings are kept and found again."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from secondlook.agents.case import Frozen

Floats = NDArray[np.float32]

CHUNK = 1024
"""Rows of one matrix product; bounds the memory of a query to `CHUNK` x N similarities."""


class Item(Frozen):
    """A labelled image of the index."""

    id: str = Field(min_length=1, max_length=4096)
    label: str = Field(min_length=1, max_length=4096)
    group: str | None = None
    """The leaf, patient or part the image shows; None where nobody said."""
    path: str | None = None
    digest: str
    """SHA-256 of the image's bytes."""


class Hit(NamedTuple):
    """An item found, and how much it resembles what was asked for."""

    item: Item
    similarity: float
    """Cosine of the two embeddings, -1 to 1."""


class Items(NamedTuple):
    """Everything a store holds."""

    items: tuple[Item, ...]
    """In the order of their ids."""
    embeddings: Floats
    """Unit rows, [N, D]."""


class Store(Protocol):
    """Labelled unit vectors, found by cosine."""

    @property
    def dim(self) -> int:
        """D, the length of a vector; 0 while the store is empty."""
        ...

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def add(self, items: Sequence[Item], embeddings: ArrayLike) -> None:
        """Keep items.

        Parameters
        ----------
        items : sequence of Item
            N items; no id may stand twice or be there already.
        embeddings : array-like of shape (N, D)
            Unit rows.
        """
        ...

    def query(self, embeddings: ArrayLike, k: int) -> list[list[Hit]]:
        """Find the k most similar items to each row.

        Parameters
        ----------
        embeddings : array-like of shape (N, D)
            Unit rows.
        k : int
            At least 1; where the store holds fewer, all are returned.

        Returns
        -------
        list of list of Hit
            Most similar first, ties by id.
        """
        ...

    def all(self) -> Items:
        """Return everything, by id."""
        ...

    def close(self) -> None:
        """Let go of files; closing twice does no harm."""
        ...


def check_embeddings(embeddings: ArrayLike, n: int | None = None, dim: int = 0) -> Floats:
    """Check what crosses the border of this room.

    Parameters
    ----------
    embeddings : array-like of shape (N, D)
        Rows of length 1, within a thousandth; scaled to exactly 1, so that a product is a cosine.
    n : int, optional
        The N expected.
    dim : int
        The D expected; 0 where any will do.

    Raises
    ------
    ValueError
        If the shape is another, or a row is not finite or not of unit length.

    Examples
    --------
    >>> check_embeddings([[0.6, 0.8]])
    array([[0.6, 0.8]], dtype=float32)
    >>> check_embeddings([[3.0, 4.0]])
    Traceback (most recent call last):
    ValueError: embeddings: expected rows of unit length, row 0 has length 5
    """
    rows = np.ascontiguousarray(embeddings, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] == 0 or (n is not None and len(rows) != n) or (dim and rows.shape[1] != dim):
        wanted = f"[{'N' if n is None else f'N={n}'}, {f'D={dim}' if dim else 'D'}]"
        raise ValueError(f"embeddings: expected {wanted}, got {rows.shape}")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.abs(lengths[:, 0] - 1) <= 1e-3))
    if wrong.size:
        row = int(wrong[0])
        raise ValueError(f"embeddings: expected rows of unit length, row {row} has length {lengths[row, 0]:.4g}")
    unit: Floats = rows / lengths
    return unit


def check_new(items: Sequence[Item], known: Container[str] = ()) -> None:
    """Check that no id stands twice among items and what is known already.

    Raises
    ------
    ValueError
        Naming the first that does.
    """
    seen: set[str] = set()
    for item in items:
        if item.id in seen or item.id in known:
            raise ValueError(f"items: the id {item.id!r} stands twice")
        seen.add(item.id)


def check_k(k: int) -> None:
    """Check the number of neighbours asked for.

    Raises
    ------
    ValueError
        If it is less than 1.
    """
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")


class MemoryStore:
    """Exact search in numpy: the oracle that every other store is tested against.

    Examples
    --------
    >>> store = MemoryStore()
    >>> items = [Item(id="a", label="scab", digest="1"), Item(id="b", label="rust", digest="2")]
    >>> store.add(items, [[1.0, 0.0], [0.6, 0.8]])
    >>> [[(hit.item.id, round(hit.similarity, 3)) for hit in row] for row in store.query([[0.0, 1.0]], k=2)]
    [[('b', 0.8), ('a', 0.0)]]
    """

    def __init__(self) -> None:
        self._items: tuple[Item, ...] = ()
        self._rows: Floats = np.empty((0, 0), dtype=np.float32)

    @property
    def dim(self) -> int:
        """D, the length of a vector; 0 while the store is empty."""
        return int(self._rows.shape[1])

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._items)

    def add(self, items: Sequence[Item], embeddings: ArrayLike) -> None:
        """Keep items, sorted by id, so that the order of columns breaks ties."""
        if not items:
            return
        rows = check_embeddings(embeddings, len(items), self.dim)
        check_new(items, {item.id for item in self._items})
        merged = (*self._items, *items)
        order = sorted(range(len(merged)), key=lambda i: merged[i].id)
        stacked = np.concatenate([self._rows, rows]) if self._items else rows
        self._items, self._rows = tuple(merged[i] for i in order), stacked[order]

    def query(self, embeddings: ArrayLike, k: int) -> list[list[Hit]]:
        """Find the k most similar items to each row, exactly."""
        check_k(k)
        rows = check_embeddings(embeddings, dim=self.dim)
        if not self._items:
            return [[] for _ in rows]
        found: list[list[Hit]] = []
        for start in range(0, len(rows), CHUNK):
            similarity = np.clip(rows[start : start + CHUNK] @ self._rows.T, -1, 1)
            for line, columns in zip(similarity, _top(similarity, k), strict=True):
                found.append([Hit(self._items[j], float(line[j])) for j in columns])
        return found

    def all(self) -> Items:
        """Return everything, by id."""
        return Items(self._items, self._rows.copy())

    def close(self) -> None:
        """Nothing to let go of."""


def _top(similarity: Floats, k: int) -> NDArray[np.intp]:
    """Return the columns of the k largest of each row, [N, min(k, columns)], largest first, ties by column."""
    n = similarity.shape[1]
    if k >= n:
        return np.argsort(-similarity, axis=1, kind="stable")
    # argpartition leaves it open which of several equals at the border it takes; those rows are sorted in full.
    best = np.sort(np.argpartition(-similarity, k - 1, axis=1)[:, :k], axis=1)
    values = np.take_along_axis(similarity, best, axis=1)
    tied = np.count_nonzero(similarity >= values.min(axis=1, keepdims=True), axis=1) > k
    best = np.take_along_axis(best, np.argsort(-values, axis=1, kind="stable"), axis=1)
    best[tied] = np.argsort(-similarity[tied], axis=1, kind="stable")[:, :k]
    return best
