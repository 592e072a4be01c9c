"""Cumulative logits: right by hand, by logistic regression and by their slopes; better only where the order is real."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import approx_fprime, minimize
from scipy.special import expit, logsumexp, softmax

from secondlook.agents.case import Task
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.errors import ConfigError
from secondlook.agents.head import HeadSpec
from secondlook.agents.lessons import Lessons
from secondlook.agents.linear_head import LinearSpec
from secondlook.agents.ordinal_head import OrdinalSpec, _loss_and_slope, fit_proportional_odds, rank_log_probs

Ints = NDArray[np.intp]
Floats = NDArray[np.float64]
GRADES = ("none", "mild", "moderate", "severe", "dead")


def lessons_of(rows: Floats, truth: Ints, labels: tuple[str, ...] = GRADES) -> Lessons:
    """Lessons without words; every case its own group."""
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    nothing = np.zeros((len(labels), rows.shape[1]), dtype=np.float32)
    words = TextClassifier(nothing, nothing[:0], 1.0)
    return Lessons(unit, truth, tuple(map(str, range(len(rows)))), Task(labels=labels), words)


def graded(n: int, rng: np.random.Generator, dim: int = 16) -> tuple[Floats, Ints]:
    """Draw n cases whose severity runs along one direction of many, seen through logistic noise."""
    rows = rng.normal(size=(n, dim)) / np.sqrt(dim) + np.eye(dim)[0] * 2
    severity = 12 * rows[:, 1] + rng.logistic(0, 0.7, n)
    return rows, np.digitize(severity, [-3, -1, 1, 3]).astype(np.intp)


def nominal(n: int, rng: np.random.Generator, dim: int = 16) -> tuple[Floats, Ints]:
    """Draw n cases of five labels that lie apart in directions of their own, in no order."""
    truth = np.arange(n) % 5
    rows: Floats = np.eye(dim)[truth] + rng.normal(0, 0.25, (n, dim))
    return rows, truth


def quadratic_kappa(truth: Ints, predicted: Ints) -> float:
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(truth, predicted, weights="quadratic"))


def both(draw: object, seed: int) -> tuple[float, float]:
    """Quadratic kappa of the ordinal and of the linear head on 1,000 fresh cases, from 100 to learn from."""
    assert callable(draw)
    rng = np.random.default_rng(seed)
    rows, truth = draw(1100, rng)
    lessons = lessons_of(rows, truth)
    specs: tuple[HeadSpec, ...] = (OrdinalSpec(), LinearSpec())
    heads = [spec.fit(lessons.part(np.arange(100))) for spec in specs]
    first, second = (
        quadratic_kappa(truth[100:], head.logits(lessons.vectors[100:]).argmax(axis=1).astype(np.intp))
        for head in heads
    )
    return first, second


def test_log_probabilities_are_those_worked_by_hand() -> None:
    # sigmoid(log 1/3) = 1/4 and sigmoid(log 3) = 3/4 at height 0; at height log 3 they are 1/10 and 1/2.
    found = np.exp(rank_log_probs(np.array([0.0, np.log(3)]), np.log([1 / 3, 3])))
    np.testing.assert_allclose(found, [[1 / 4, 1 / 2, 1 / 4], [1 / 10, 4 / 10, 1 / 2]], atol=1e-12)


@given(
    height=st.floats(-1e4, 1e4),
    thresholds=st.lists(st.floats(-50, 50), min_size=1, max_size=6, unique=True).map(sorted),
)
def test_probabilities_sum_to_one_and_are_finite_however_far_a_case_lies(
    height: float, thresholds: list[float]
) -> None:
    if len(thresholds) > 1 and np.diff(thresholds).min() < 1e-6:
        return
    logs = rank_log_probs(np.array([height]), np.array(thresholds))
    assert np.isfinite(logs).all()
    assert logsumexp(logs) == pytest.approx(0, abs=1e-9)


def test_the_slope_is_that_of_finite_differences(rng: np.random.Generator) -> None:
    rows, ranks = rng.normal(size=(40, 3)), np.arange(40) % 4
    x = np.array([0.3, -0.2, 0.5, -1.0, 0.1, -0.4])
    loss = lambda at: _loss_and_slope(at, rows, ranks, 2.0)[0]  # noqa: E731
    np.testing.assert_allclose(_loss_and_slope(x, rows, ranks, 2.0)[1], approx_fprime(x, loss, 1e-7), atol=1e-5)


def test_a_general_minimiser_finds_the_same(rng: np.random.Generator) -> None:
    rows, ranks = rng.normal(size=(60, 2)), rng.integers(3, size=60).astype(np.intp)
    ranks[:3] = range(3)

    def loss(x: Floats) -> float:
        """Penalised NLL in plain differences of sigmoids."""
        if x[3] <= x[2]:
            return float("inf")
        below = expit(x[2:] - (rows @ x[:2])[:, None])
        probs = np.diff(np.column_stack([np.zeros(60), below, np.ones(60)]), axis=1)
        return float(x[:2] @ x[:2] / 2 - 5 * np.log(probs[np.arange(60), ranks]).sum())

    oracle = minimize(loss, [0, 0, -1, 1], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x
    direction, thresholds = fit_proportional_odds(rows, ranks, 3, 5.0)
    np.testing.assert_allclose(np.concatenate([direction, thresholds]), oracle, atol=1e-3)


def test_two_ranks_are_logistic_regression(rng: np.random.Generator) -> None:
    from sklearn.linear_model import LogisticRegression

    rows, truth = nominal(80, rng, 8)
    lessons = lessons_of(rows, (truth > 2).astype(np.intp), ("low", "high"))
    head = OrdinalSpec().fit(lessons)
    x = lessons.vectors.astype(np.float64)
    oracle = LogisticRegression(C=head.strength, max_iter=5000, tol=1e-8).fit(x, lessons.truth)
    np.testing.assert_allclose(softmax(head.logits(lessons.vectors), axis=1), oracle.predict_proba(x), atol=1e-3)


def test_where_the_order_is_real_kappa_is_higher_than_that_of_a_linear_head() -> None:
    kappas = np.array([both(graded, seed) for seed in range(3)])
    assert (kappas[:, 0] > kappas[:, 1]).all()
    assert kappas.mean(axis=0)[0] > kappas.mean(axis=0)[1] + 0.02


def test_where_labels_have_no_order_the_linear_head_is_far_better() -> None:
    # One direction cannot hold five clouds that lie apart in five.
    ordinal, linear = both(nominal, 0)
    assert linear > ordinal + 0.1


def test_the_order_may_be_another_than_the_tasks(rng: np.random.Generator) -> None:
    rows, ranks = graded(120, rng)
    shuffled = ("severe", "none", "dead", "mild", "moderate")
    index = np.array([shuffled.index(name) for name in GRADES])
    plain = OrdinalSpec().fit(lessons_of(rows, ranks))
    named = OrdinalSpec(order=GRADES).fit(lessons_of(rows, index[ranks], shuffled))
    vectors = lessons_of(rows, ranks).vectors
    np.testing.assert_allclose(named.logits(vectors)[:, index], plain.logits(vectors), rtol=0.02, atol=0.05)


def test_an_order_that_is_not_of_the_labels_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ConfigError, match="order lists"):
        OrdinalSpec(order=(*GRADES[:4], "rotten")).fit(lessons_of(*graded(60, rng)))


def test_arrays_that_fit_no_head_are_refused(rng: np.random.Generator) -> None:
    tensors = OrdinalSpec().fit(lessons_of(*graded(60, rng))).tensors
    for name, wrong in (("thresholds", tensors["thresholds"][::-1]), ("order", np.zeros(5, dtype=np.intp))):
        with pytest.raises(ValueError, match=name):
            OrdinalSpec().load({**tensors, name: wrong})
