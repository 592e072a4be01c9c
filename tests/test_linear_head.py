"""A linear head recovers what can be separated, chooses its strength, and no group stands on both sides of a fold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import softmax
from strategies import groups

from secondlook.agents.folds import grouped_folds
from secondlook.agents.linear_head import STRENGTHS, fit_linear_head

Singles = NDArray[np.float32]
Ints = NDArray[np.intp]


def clouds(n: int, k: int, spread: float, rng: np.random.Generator, dim: int = 8) -> tuple[Singles, Ints, list[str]]:
    """Unit vectors around k axes; three photographs of each leaf."""
    truth = (np.arange(n) // 3) % k
    rows = np.eye(k, dim)[truth] + rng.normal(0, spread, (n, dim))
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit, truth, [f"leaf {i // 3}" for i in range(n)]


@pytest.fixture
def two_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer fits, where their number is not what is tested."""
    monkeypatch.setattr("secondlook.agents.linear_head.STRENGTHS", (1.0, 10.0))


@pytest.mark.usefixtures("two_strengths")
@pytest.mark.parametrize("k", [2, 4])
def test_what_can_be_separated_is(k: int, rng: np.random.Generator) -> None:
    head = fit_linear_head(*clouds(90, k, 0.15, rng), k, rng)
    assert head.weights.shape == (k, 8)
    assert head.bias.shape == (k,)
    fresh, truth, _ = clouds(90, k, 0.15, rng)
    assert (head.logits(fresh).argmax(axis=1) == truth).mean() > 0.98


@pytest.mark.usefixtures("two_strengths")
@pytest.mark.parametrize("k", [2, 3])
def test_the_softmax_of_the_logits_is_scikit_learns(k: int, rng: np.random.Generator) -> None:
    from sklearn.linear_model import LogisticRegression

    rows, truth, leaves = clouds(60, k, 0.5, rng)
    head = fit_linear_head(rows, truth, leaves, k, rng)
    oracle = LogisticRegression(C=head.strength, max_iter=5000, tol=1e-8).fit(rows.astype(np.float64), truth)
    np.testing.assert_allclose(softmax(head.logits(rows), axis=1), oracle.predict_proba(rows), atol=5e-5)


def test_clean_data_asks_for_a_weaker_penalty_than_noise(rng: np.random.Generator) -> None:
    rows, truth, leaves = clouds(120, 3, 0.1, rng)
    clean = fit_linear_head(rows, truth, leaves, 3, rng)
    noise = fit_linear_head(rows[rng.permutation(120)], truth, leaves, 3, rng)
    assert clean.strength == max(STRENGTHS)
    assert noise.strength == min(STRENGTHS)


def test_one_leaf_of_a_label_allows_no_choice(rng: np.random.Generator) -> None:
    rows, truth, _ = clouds(30, 3, 0.2, rng)
    assert fit_linear_head(rows, truth, ["one"] * 30, 3, rng).strength == 1.0


def test_a_label_that_no_fold_can_do_without_allows_no_choice(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, truth, leaves = clouds(30, 3, 0.2, rng)
    monkeypatch.setattr("secondlook.agents.linear_head.grouped_folds", lambda *_: (truth == 0).astype(np.intp))
    assert fit_linear_head(rows, truth, leaves, 3, rng).strength == 1.0


@pytest.mark.usefixtures("two_strengths")
def test_the_same_seed_gives_the_same_head(rng: np.random.Generator) -> None:
    data = clouds(60, 3, 0.4, rng)
    first, second = (fit_linear_head(*data, 3, np.random.default_rng(5)) for _ in range(2))
    assert first.strength == second.strength
    np.testing.assert_array_equal(first.weights, second.weights)


def test_a_label_without_cases_is_refused(rng: np.random.Generator) -> None:
    rows, truth, leaves = clouds(30, 3, 0.2, rng)
    with pytest.raises(ValueError, match=r"expected each of 0\.\.3, found \[0, 1, 2\]"):
        fit_linear_head(rows, truth, leaves, 4, rng)
    with pytest.raises(ValueError, match=r"expected \[N, D\], \[N\] and N"):
        fit_linear_head(rows, truth[:-1], leaves, 3, rng)


@given(
    data=st.integers(4, 40).flatmap(
        lambda n: st.tuples(st.lists(st.integers(0, 2), min_size=n, max_size=n), groups(n, most=8))
    ),
    seed=st.integers(0, 5),
)
def test_no_group_stands_in_two_folds(data: tuple[list[int], list[str]], seed: int) -> None:
    truth, names = np.array(data[0], dtype=np.intp), data[1]
    folds = grouped_folds(truth, names, np.random.default_rng(seed))
    fewest = min(len({name for name, y in zip(names, truth, strict=True) if y == k}) for k in set(truth))
    assert (folds is None) == (fewest < 2)
    if folds is not None:
        assert folds.shape == truth.shape
        for name in set(names):
            assert len({fold for fold, other in zip(folds, names, strict=True) if other == name}) == 1
        assert 2 <= len(set(folds)) <= min(5, fewest)
        np.testing.assert_array_equal(folds, grouped_folds(truth, names, np.random.default_rng(seed)))


def test_labels_are_spread_over_the_folds(rng: np.random.Generator) -> None:
    _, truth, leaves = clouds(180, 3, 0.2, rng)
    folds = grouped_folds(truth, leaves, rng)
    assert folds is not None
    # 20 leaves a label in 5 folds: four leaves, twelve photographs, of each label in each.
    counts = [[((folds == fold) & (truth == k)).sum() for k in range(3)] for fold in range(5)]
    assert counts == [[12] * 3] * 5
