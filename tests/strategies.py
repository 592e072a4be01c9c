"""Hypothesis strategies: what the laws are tried on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Few distinct values on purpose: ties, zeros and ones are where metrics go wrong.
UNIT = st.one_of(st.sampled_from([0.0, 0.2, 0.5, 0.8, 0.95, 1.0]), st.floats(0, 1, allow_subnormal=False))


class Judged(NamedTuple):
    """N answers: how sure, and whether right."""

    confidence: Floats
    correct: Bools


class Labelled(NamedTuple):
    """N distributions over K labels, with the truth."""

    probs: Floats
    truth: Ints


class Panel(NamedTuple):
    """M agents' distributions, nan where one failed, with the truth."""

    probs: Floats
    truth: Ints


@st.composite
def judged(draw: st.DrawFn, min_size: int = 1, max_size: int = 40) -> Judged:
    """Confidences in [0, 1] and correctness."""
    n = draw(st.integers(min_size, max_size))
    return Judged(draw(hnp.arrays(np.float64, n, elements=UNIT)), draw(hnp.arrays(np.bool_, n)))


@st.composite
def simplexes(draw: st.DrawFn, n: int, k: int) -> Floats:
    """Distributions, shape (n, k): one-hot, uniform and all between."""
    weights = draw(hnp.arrays(np.float64, (n, k), elements=st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1))))
    weights[weights.sum(axis=1) < 1e-3] = 1.0
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


@st.composite
def labelled(draw: st.DrawFn, max_size: int = 20, max_labels: int = 5) -> Labelled:
    """Distributions with the true label's index."""
    n, k = draw(st.integers(1, max_size)), draw(st.integers(2, max_labels))
    return Labelled(draw(simplexes(n, k)), draw(hnp.arrays(np.int64, n, elements=st.integers(0, k - 1))))


@st.composite
def panels(draw: st.DrawFn, max_agents: int = 4, max_size: int = 10, max_labels: int = 4) -> Panel:
    """A panel some of whose members fail on some cases, perhaps all on one."""
    m, n = draw(st.integers(1, max_agents)), draw(st.integers(1, max_size))
    k = draw(st.integers(2, max_labels))
    probs = draw(simplexes(m * n, k)).reshape(m, n, k)
    probs[draw(hnp.arrays(np.bool_, (m, n)))] = np.nan
    return Panel(probs, draw(hnp.arrays(np.int64, n, elements=st.integers(0, k - 1))))


def groups(n: int, most: int = 6) -> st.SearchStrategy[list[str]]:
    """Group names of n cases."""
    return st.lists(st.sampled_from([f"leaf-{i}" for i in range(most)]), min_size=n, max_size=n)


def permutations(n: int) -> st.SearchStrategy[Ints]:
    """Orders of n cases."""
    return st.permutations(range(n)).map(lambda order: np.array(order, dtype=np.int64))
