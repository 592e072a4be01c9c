"""Costs: read and refused, labels that cost least, losses, and the promise of the gate about them simulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom
from strategies import Labelled, labelled

from secondlook.agents.case import Task
from secondlook.agents.errors import ConfigError
from secondlook.eval.task_file import read_task
from secondlook.orchestrator.gate import GRID, Gate, LookData, accept_in_order, choose_threshold, group_losses
from secondlook.orchestrator.judgement import explain, judge
from secondlook.orchestrator.loss import UNKNOWN, Loss
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.pool import Pool
from secondlook.orchestrator.trust_model import Trust, features

Floats = NDArray[np.float64]
MELANOMA = Loss(costs=((0, 10), (1, 0)))
"""Labels melanoma and naevus: to miss a melanoma costs ten times what a false alarm costs."""


def test_the_label_is_the_one_that_costs_least() -> None:
    # To say naevus costs 10 p, to say melanoma 1 - p: melanoma from p = 1/11 on.
    p = np.array([0.5, 0.1, 1 / 11 + 1e-6, 1 / 11 - 1e-6, 0.01])
    belief = np.stack([p, 1 - p], axis=1)
    assert MELANOMA.labels(belief).tolist() == [0, 0, 0, 1, 1]
    assert Loss().labels(belief).tolist() == [0, 1, 1, 1, 1]
    assert MELANOMA.labels(np.full((2, 2), np.nan)).tolist() == [UNKNOWN, UNKNOWN]


def test_a_loss_is_a_share_of_the_largest_cost() -> None:
    truth, labels = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 0, 1, UNKNOWN])
    np.testing.assert_array_equal(MELANOMA.of(labels, truth), [0, 1, 0.1, 0, 1])
    plain = Loss().of(labels, truth)
    assert plain.dtype == np.bool_
    assert plain.tolist() == [False, True, True, False, True]


@given(labelled(), st.floats(0.1, 9))
def test_equal_costs_are_no_costs(data: Labelled, cost: float) -> None:
    k = data.probs.shape[1]
    equal = Loss(costs=tuple(tuple(0.0 if i == j else cost for j in range(k)) for i in range(k)))
    assert not equal.graded
    assert (equal.labels(data.probs) == Loss().labels(data.probs)).all()
    assert equal.of(equal.labels(data.probs), data.truth).dtype == np.bool_


@given(labelled(max_labels=4), st.integers(0, 1000))
def test_no_other_label_has_a_lower_expected_cost(data: Labelled, seed: int) -> None:
    k = data.probs.shape[1]
    costs = np.random.default_rng(seed).uniform(0, 5, (k, k))
    np.fill_diagonal(costs, 0)
    loss = Loss(costs=tuple(map(tuple, costs.tolist())))
    labels = loss.labels(data.probs)
    for row, label in zip(data.probs, labels, strict=True):
        expected = [sum(row[t] * costs[t, j] for t in range(k)) for j in range(k)]
        assert expected[label] == pytest.approx(min(expected))
    assert (loss.of(labels, data.truth) <= 1).all()


def test_trust_is_of_the_label_that_is_given_not_of_the_most_probable() -> None:
    belief = np.array([[0.2, 0.8], [0.9, 0.1]])
    trust = Trust().of(features(belief, belief[None], np.ones(2), MELANOMA.labels(belief)))
    assert trust == pytest.approx([0.2, 0.9])
    assert Trust().of(features(belief, belief[None], np.ones(2))) == pytest.approx([0.8, 0.9])


def test_a_label_chosen_against_the_odds_is_named_and_goes_to_review() -> None:
    belief = np.array([[[0.2, 0.8], [0.97, 0.03]]])
    pool = Pool(agents=("a",), prior=(0.5, 0.5), weights=(1.0,))
    gate = Gate(threshold=0.5, loss="cost")
    found = judge(
        pool, Trust(), gate, Opinions.uncalibrated(("a",), belief), np.ones(2), may_look_again=False, loss=MELANOMA
    )
    assert found.labels.tolist() == [0, 0]
    assert found.decisions == ("review", "accept")
    why = explain("trusted", "accept", gate, 0.5, 0.97, 1.0)
    assert why == "Trust 0.970 reaches the 0.500 that holds the mean cost under 5% of the largest cost."
    assert explain("no_threshold", "review", gate, None, 0.97, 1.0) == (
        "No threshold can promise the mean cost under 5% of the largest cost, so nothing is accepted."
    )


def drawn(n: int, rng: np.random.Generator, most: int) -> tuple[LookData, list[str]]:
    """Cases whose groups share a difficulty; the belief is too sure of itself, the labels are those of least cost."""
    unit = np.repeat(np.arange(n), rng.integers(1, most + 1, n))
    costs = Loss(costs=((0, 1, 2), (2, 0, 1), (4, 3, 0)))
    sharp = rng.gamma(2.0, 4.0, n)[unit]
    odds = rng.normal(size=(len(unit), 3)) + sharp[:, None] * np.eye(3)[rng.integers(0, 3, len(unit))]
    belief = np.exp(odds - odds.max(axis=1, keepdims=True))
    belief /= belief.sum(axis=1, keepdims=True)
    truth = (0.5 * np.log(belief) + rng.gumbel(size=belief.shape)).argmax(axis=1)
    labels = costs.labels(belief)
    return LookData(belief[np.arange(len(labels)), labels], costs.of(labels, truth)), [f"{u:05d}" for u in unit]


@pytest.mark.parametrize(("n", "most", "target"), [(250, 1, 0.05), (150, 4, 0.05)], ids=["single cases", "groups"])
def test_the_promised_cost_is_exceeded_no_more_often_than_delta(n: int, most: int, target: float) -> None:
    rng = np.random.default_rng(11)
    world, groups = drawn(40_000, rng, most)
    unit = np.unique(groups, return_inverse=True)[1]
    risk = {
        t: group_losses(unit, *accept_in_order(Gate(threshold=t), [world], np.ones(len(unit)))).mean() for t in GRID
    }
    assert max(risk.values()) > target, "some threshold must be able to break the promise"
    sets, delta, broken, promised = 200, 0.1, 0, 0
    for _ in range(sets):
        data, names = drawn(n, rng, most)
        gate = choose_threshold(Gate(target_risk=target, delta=delta, loss="cost"), [data], np.ones(len(names)), names)
        promised += gate.threshold is not None
        broken += gate.threshold is not None and risk[gate.threshold] > target
    assert broken <= binom.ppf(0.99, sets, delta)
    assert promised > sets / 4, "a gate that promises nothing keeps every promise"


def test_losses_between_0_and_1_are_never_tested_as_if_they_were_errors() -> None:
    # 100 single cases, ten of which lose half: the binomial test would need whole losses.
    trust, loss = np.full(100, 0.9999), np.repeat([0.5, 0.0], [4, 96])
    names = [f"{i}" for i in range(100)]
    found = choose_threshold(Gate(loss="cost", delta=0.3), [LookData(trust, loss)], np.ones(100), names)
    # As in the gate's own test by hand: Hoeffding with mean .02, target .05: .29692.
    assert found.p_value == pytest.approx(0.29692, abs=2e-5)
    assert found.accepted_error == pytest.approx(0.02)
    # Losses that all happen to be 0 or 1, but need not have been, are not enough for the exact test either.
    whole = np.repeat([1.0, 0.0], [1, 99])
    graded = choose_threshold(Gate(loss="cost"), [LookData(trust, whole)], np.ones(100), names)
    exact = choose_threshold(Gate(), [LookData(trust, whole.astype(np.bool_))], np.ones(100), names)
    assert exact.p_value == pytest.approx(binom.cdf(1, 100, 0.05))
    assert graded.p_value > exact.p_value


K3 = ("a", "b", "c")


def test_costs_are_read_by_name_and_unnamed_errors_cost_one(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text("costs: {a: {b: 10, c: 2.5}, c: {a: 0}}")
    task = read_task(K3, path)
    assert task.costs == ((0, 10, 2.5), (1, 0, 1), (0, 1, 0))
    assert task.phrases_of("b") == ("b",), "with costs, the descriptions may be left out"
    assert Task.model_validate_json(task.model_dump_json()) == task
    path.write_text("labels: {a: [an a], b: [a b], c: [a c]}\ncosts: {a: {b: 3}}")
    assert read_task(K3, path).phrases_of("a") == ("an a",)
    path.write_text("labels: {a: [an a], b: [a b], c: [a c]}")
    assert read_task(K3, path).costs is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("costs: {a: {d: 1}}", "there is no label 'd'"),
        ("costs: {d: {a: 1}}", "there is no label 'd'"),
        ("costs: [[0, 1], [1, 0]]", "not a table"),
        ("costs: {a: 3}", "not a table"),
        ("costs: {a: {b: much}}", "'a' called 'b' cannot cost 'much'"),
        ("costs: {a: {b: true}}", "cannot cost 'True'"),
        ("costs: {a: {b: -1}}", "cannot cost '-1'"),
        ("costs: {a: {b: .nan}}", "cannot cost 'nan'"),
        ("costs: {a: {b: .inf}}", "cannot cost 'inf'"),
        (f"costs: {{a: {{b: {'9' * 400}}}}}", "cannot cost '9999"),
        ("costs: {a: {a: 1}}", "to call 'a' 'a' cannot cost 1"),
        ("costs: {a: {b: 0, c: 0}, b: {a: 0, c: 0}, c: {a: 0, b: 0}}", "no error costs anything"),
    ],
)
def test_costs_that_are_none_are_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="cost") as refused:
        read_task(K3, path)
    assert says in refused.value.what
    assert refused.value.remedy


def test_a_matrix_of_another_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected 3 rows of 3, got rows of"):
        Task(labels=K3, costs=((0, 1), (1, 0)))
    with pytest.raises(ConfigError, match="cannot cost inf"):
        Task(labels=("a", "b"), costs=((0, float("inf")), (1, 0)))
