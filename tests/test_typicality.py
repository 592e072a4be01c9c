"""Typicality is a share of own images, whatever the scores are that it is made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from secondlook.agents.typicality import Typicality

Floats = NDArray[np.float64]


@pytest.mark.parametrize("n_scores", [1, 2])
@pytest.mark.parametrize("n_reference", [40, 300])
def test_typicality_is_uniform_on_own_held_out_cases(n_reference: int, n_scores: int) -> None:
    from scipy.stats import kstest

    rng = np.random.default_rng(7)
    # One new case for each reference: cases that share a reference are not independent of each other.
    shape = rng.normal(size=(n_scores, n_scores))
    found = np.array(
        [
            Typicality.fit(rng.normal(size=(n_reference, n_scores)) @ shape).of(rng.normal(size=(1, n_scores)) @ shape)[
                0
            ]
            for _ in range(1500)
        ]
    )
    # Typicality has R + 1 values; a draw between two of them makes it continuous.
    smooth = found - rng.random(1500) / (n_reference + 1)
    # One score: exactly uniform, and 1.36 / sqrt(1,500) = .035 is the test's limit at 5 %. Two: a little low.
    slack = 2 * (n_scores - 1) / n_reference
    assert kstest(smooth, "uniform").statistic < 0.035 + slack
    # The binomial error of 1,500 cases at .05 is .0056.
    assert -0.017 < (found <= 0.05).mean() - 0.05 < 0.017 + slack


@given(
    reference=hnp.arrays(np.float64, st.tuples(st.integers(1, 20), st.just(2)), elements=st.floats(-5, 5)),
    new=hnp.arrays(np.float64, (6, 2), elements=st.floats(-9, 9)),
)
def test_typicality_is_a_share_above_nought_and_falls_with_every_score(reference: Floats, new: Floats) -> None:
    typicality = Typicality.fit(reference)
    found = typicality.of(new)
    n = len(reference)
    assert (found >= 1 / (n + 1)).all()
    assert (found <= 1).all()
    assert (typicality.of(new + np.array([1.0, 0.0])) <= found).all()
    np.testing.assert_allclose(found * (n + 1), np.rint(found * (n + 1)))


def test_typicality_by_hand() -> None:
    # One score, reference 1 2 3 4: at least as high are 4 3 2 1 of them; as (1 + n) / 5 that is 1 .8 .6 .4.
    typicality = Typicality.fit(np.array([[3.0], [1.0], [4.0], [2.0]]))
    np.testing.assert_allclose(typicality.combined, np.log([0.4, 0.6, 0.8, 1.0]))
    # 9: none is as high, share 1 / 5, no reference share is as small: (1 + 0) / 5.
    # 2.5: two are, 3 / 5, as small are .4 and .6: 3 / 5. 0: all are, 5 / 5: (1 + 4) / 5.
    np.testing.assert_allclose(typicality.of(np.array([[9.0], [2.5], [0.0]])), [0.2, 0.6, 1.0])


def test_typicality_of_two_scores_by_hand() -> None:
    # Ranked alike, reference (1, 1) (2, 2) (3, 3): shares 1, 3/4, 2/4 each, products 1, 9/16, 1/4.
    typicality = Typicality.fit(np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    np.testing.assert_allclose(np.exp(typicality.combined), [1 / 4, 9 / 16, 1.0])
    # (9, 0): shares 1/4 and 1, product 1/4: as small is one, (1 + 1) / 4. (9, 9): 1/16, none: 1/4.
    np.testing.assert_allclose(typicality.of(np.array([[9.0, 0.0], [9.0, 9.0]])), [0.5, 0.25])
