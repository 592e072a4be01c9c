"""Answer tables: counted by hand, against scikit-learn, and the laws: what is constant says nothing, sums are one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydantic import ValidationError
from strategies import UNIT, labelled

from secondlook.agents.answer_table import MOST_BINS, AnswerTable, confidence_edges

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


def answers(labels: Ints, confidences: Floats, k: int) -> Floats:
    """Labels and confidences as scores of shape (N, K)."""
    return np.asarray(np.eye(k)[labels] * confidences[:, None])


def every_answer(table: AnswerTable) -> Floats:
    """One answer for each label and bin of a table."""
    ends = np.array([0.0, *table.edges, 2.0])
    middles = (ends[1:] + ends[:-1]) / 2
    k = table.n_labels
    return answers(np.repeat(np.arange(k), len(middles)), np.tile(np.maximum(middles, 1e-9), k), k)


def test_a_table_is_counted_by_hand() -> None:
    # Truth 0: says 0 at .9, 0 at .9, 0 at .6, 1 at .6. Truth 1: says 1 at .9, 0 at .6.
    labels, sure = np.array([0, 0, 0, 1, 1, 0]), np.array([0.9, 0.9, 0.6, 0.6, 0.9, 0.6])
    truth = np.array([0, 0, 0, 0, 1, 1])
    table = AnswerTable.fit(answers(labels, sure, 2), truth, smoothing=0.5, shrinkage=5)
    assert table.edges == (0.75,)
    assert table.cells == ((0, 0, 0, 1), (0, 0, 1, 2), (0, 1, 0, 1), (1, 0, 0, 1), (1, 1, 1, 1))
    # Accuracy (4 + 1) / (6 + 2) = 5/8, so P0(0|0) = 1/4 + 5/16 = 9/16 and P0(0|1) = 1/4 + 3/16 = 7/16.
    # P(0|0) = (3 + 9/16) / (4 + 1) = .7125 and P(0|1) = (1 + 7/16) / (2 + 1) = .479167.
    # P(.9) = (3 + 1) / (6 + 2) = .5; P(.9|says 0) = (2 + 5 * .5) / (4 + 5) = .5.
    # P(.9|right) = (3 + 5 * .5) / (4 + 5) = .611111 and P(.9|wrong) = (0 + 5 * .5) / (2 + 5) = .357143, which times
    # .5 / .5 are also what P(.9|says 0, 0) and P(.9|says 0, 1) are pulled to:
    # (2 + 5 * .611111) / (3 + 5) = .631944 and (0 + 5 * .357143) / (1 + 5) = .297619.
    expected = np.log([0.7125 * 0.6319444, 0.4791667 * 0.2976190])
    np.testing.assert_allclose(table.log_likelihood(np.array([[0.9, 0.0]]))[0], expected, rtol=1e-6)
    # The prior is (4 + 1) / 8 and (2 + 1) / 8.
    p = np.array([5 / 8, 3 / 8]) * np.exp(expected)
    np.testing.assert_allclose(table.posterior(np.array([[0.9, 0.0]]))[0], p / p.sum(), rtol=1e-6)


def test_with_next_to_no_smoothing_it_is_the_naive_bayes_of_scikit_learn(rng: np.random.Generator) -> None:
    from sklearn.naive_bayes import CategoricalNB

    k, n = 3, 4000
    truth = rng.integers(0, k, n)
    labels = np.where(rng.random(n) < 0.6, truth, rng.integers(0, k, n))
    sure = rng.choice([0.8, 0.9, 0.95], n)
    said = answers(labels, sure, k)
    table = AnswerTable.fit(said, truth, smoothing=1e-9, shrinkage=1e-9)
    codes = table.codes(said)
    cell = (codes.label * table.n_bins + codes.bin)[:, None]
    oracle = CategoricalNB(alpha=1e-9, class_prior=table.prior).fit(cell, truth)
    np.testing.assert_allclose(table.posterior(said), oracle.predict_proba(cell), atol=1e-9)


@given(data=labelled(max_size=30), sure=st.sampled_from([1e-9, 0.3, 0.95, 1.0]), other=st.floats(0.01, 1))
def test_a_constant_confidence_carries_exactly_what_its_label_carries(data: Any, sure: float, other: float) -> None:
    k, labels, n = data.probs.shape[1], data.probs.argmax(axis=1), len(data.truth)
    one, two = (answers(labels, np.full(n, c), k) for c in (sure, other))
    table = AnswerTable.fit(one, data.truth)
    assert table.n_bins == 1
    np.testing.assert_array_equal(table.log_likelihood(one), AnswerTable.fit(two, data.truth).log_likelihood(two))
    # By the label alone: (n(k, j) + a K P0) / (n(k) + a K).
    counts = np.zeros((k, k))
    np.add.at(counts, (data.truth, labels), 1)
    r = (np.trace(counts) + 1) / (n + k)
    start = 1 / (2 * k) + np.where(np.eye(k) > 0, r, (1 - r) / (k - 1)) / 2
    by_label = (counts + 0.5 * k * start) / (counts.sum(axis=1, keepdims=True) + 0.5 * k)
    np.testing.assert_allclose(np.exp(table.log_likelihood(one)), by_label[:, labels].T, rtol=1e-12)


@given(data=labelled(max_size=40))
def test_the_likelihoods_of_all_answers_add_up_to_one_for_each_truth(data: Any) -> None:
    table = AnswerTable.fit(data.probs, data.truth)
    likelihood = np.exp(table.log_likelihood(every_answer(table)))
    np.testing.assert_allclose(likelihood.sum(axis=0), 1)
    assert (likelihood > 0).all()
    posterior = table.posterior(every_answer(table))
    np.testing.assert_allclose(posterior.sum(axis=1), 1)


@given(data=labelled(max_size=40), seed=st.integers(0, 9))
def test_the_order_of_the_cases_does_not_matter(data: Any, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(data.truth))
    assert AnswerTable.fit(data.probs[order], data.truth[order]) == AnswerTable.fit(data.probs, data.truth)


@given(confidences=hnp.arrays(np.float64, st.integers(1, 60), elements=UNIT))
def test_edges_part_no_equal_values_and_all_values_where_these_are_few(confidences: Floats) -> None:
    edges = confidence_edges(confidences)
    values = np.unique(np.round(confidences, 6))
    assert len(edges) == len(values) - 1 if len(values) <= MOST_BINS else len(edges) < MOST_BINS
    assert (np.diff(edges) > 0).all()
    assert not np.isin(values, edges).any()
    assert len(np.unique(np.searchsorted(edges, values))) == len(edges) + 1, "no bin is empty"


def test_many_confidences_are_binned_by_mass(rng: np.random.Generator) -> None:
    even = confidence_edges(rng.random(6000))
    np.testing.assert_allclose(even, np.arange(1, 6) / 6, atol=0.02)
    # Three quarters say .9: that value is a bin of its own, as no edge can go through it.
    lumped = np.concatenate([np.full(750, 0.9), rng.uniform(0.3, 0.89, 250)])
    edges = confidence_edges(lumped)
    assert len(edges) == 2
    assert 0.88 < edges[1] < 0.9


def test_rounding_of_a_distribution_makes_no_new_confidence() -> None:
    said = np.array([[0.95, 0.05 / 3, 0.05 / 3, 0.05 / 3], [0.05 / 3, 0.95 + 2e-16, 0.05 / 3, 0.05 / 3]])
    assert AnswerTable.fit(said, np.array([0, 1])).edges == ()


def test_an_agent_that_failed_is_not_counted_and_speaks_for_no_label() -> None:
    said = np.array([[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8]])
    table = AnswerTable.fit(said, np.array([0, 0, 1]))
    assert table == AnswerTable.fit(said[[0, 2]], np.array([0, 1]))
    assert table.n == 2
    assert table.codes(said).label.tolist() == [0, -1, 1]
    np.testing.assert_array_equal(table.log_likelihood(said)[1], [0, 0])
    np.testing.assert_allclose(table.posterior(said)[1], table.prior)


def test_nothing_counted_says_nothing() -> None:
    table = AnswerTable.fit(np.full((3, 4), np.nan), np.arange(3))
    np.testing.assert_allclose(table.posterior(np.eye(4)), 0.25)


def test_a_label_never_said_yet_counts_by_the_accuracy_at_the_others() -> None:
    # Ten labels, two cases of each, and label 9 came neither up nor was it said: n(9) = 0.
    truth = np.repeat(np.arange(9), 2)
    good = AnswerTable.fit(np.eye(10)[truth], truth)
    assert good.posterior(np.eye(10)[[9]]).argmax() == 9
    bad = AnswerTable.fit(np.eye(10)[(truth + 1) % 9], truth)
    assert bad.posterior(np.eye(10)[[9]])[0, 9] < good.posterior(np.eye(10)[[9]])[0, 9] / 2


def test_one_class_only_leaves_everything_finite() -> None:
    said = np.array([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.0, 0.9, 0.1]] * 20)
    table = AnswerTable.fit(said, np.zeros(60, dtype=np.intp))
    assert (table.posterior(said).argmax(axis=1) == 0).all()
    assert np.isfinite(table.posterior(np.eye(3))).all(), "label 2, which was never said, too"


def test_with_many_cases_the_posterior_is_the_frequency(rng: np.random.Generator) -> None:
    # Says the truth in 9 of 10 cases at .95 and in 6 of 10 at .8: two grades, told apart by what happened.
    n, k = 30_000, 4
    truth, sure = rng.integers(0, k, n), rng.choice([0.8, 0.95], n)
    right = rng.random(n) < np.where(sure > 0.9, 0.9, 0.6)
    labels = np.where(right, truth, (truth + rng.integers(1, k, n)) % k)
    posterior = AnswerTable.fit(answers(labels, sure, k), truth).posterior(
        answers(np.zeros(2, int), np.array([0.8, 0.95]), k)
    )
    np.testing.assert_allclose(posterior[:, 0], [0.6, 0.9], atol=0.015)


@given(data=labelled(max_size=30), smoothing=st.floats(1e-3, 10), shrinkage=st.floats(1e-3, 100))
def test_json_gives_back_the_same_table(data: Any, smoothing: float, shrinkage: float) -> None:
    table = AnswerTable.fit(data.probs, data.truth, smoothing=smoothing, shrinkage=shrinkage)
    text = table.model_dump_json()
    again = AnswerTable.model_validate_json(text)
    assert again == table
    assert again.model_dump_json() == text
    np.testing.assert_array_equal(again.posterior(data.probs), table.posterior(data.probs))


@pytest.mark.parametrize(
    "wrong",
    [
        {"cells": [[0, 2, 0, 1]]},
        {"cells": [[0, 1, 1, 1]]},
        {"cells": [[0, 1, 0, 0]]},
        {"cells": [[-1, 1, 0, 1]]},
        {"edges": [0.9, 0.8]},
        {"edges": [float("nan")]},
        {"edges": [0.9, None]},
        {"n_labels": 1},
        {"smoothing": 0.0},
    ],
    ids=str,
)
def test_a_table_that_was_tampered_with_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AnswerTable.model_validate_json(json.dumps({"n_labels": 2} | wrong))


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"said, truth: expected \[N, K\] and \[N\]"):
        AnswerTable.fit(np.zeros((3, 2)), np.zeros(2, dtype=np.intp))
