"""Temperatures: equal to what scipy finds, at any scale, in few passes; vectors as scikit-learn fits them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax
from strategies import Labelled, labelled

import secondlook.agents.temperature as fitting
from secondlook.agents.calibration import fit_calibrator
from secondlook.agents.temperature import LIMIT, PRIOR_SD, fit_temperature

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


def drawn(n: int, k: int, by: float, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """Log-probabilities `by` times too sure, and the truth."""
    honest = rng.normal(0, 1.5, (n, k))
    truth = (softmax(honest, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, k - 1)
    return np.asarray(log_softmax(honest * by, axis=1)), truth


def loss_of(log_q: Floats, truth: Ints, log_t: float) -> float:
    z = log_q * np.exp(-log_t)
    nll = logsumexp(z, axis=1) - z[np.arange(len(truth)), truth]
    return float(nll.sum() + log_t**2 / (2 * PRIOR_SD**2))


def by_scipy(log_q: Floats, truth: Ints) -> float:
    options = {"xatol": 1e-11, "maxiter": 500}
    found = minimize_scalar(
        lambda u: loss_of(log_q, truth, u), bounds=(-LIMIT, LIMIT), method="bounded", options=options
    )
    return float(np.exp(found.x))


@pytest.mark.parametrize(("n", "k", "by"), [(30, 2, 0.3), (300, 4, 2.5), (2500, 7, 1.3), (9000, 3, 5.0)])
def test_it_is_the_optimum_that_scipy_finds(n: int, k: int, by: float, rng: np.random.Generator) -> None:
    # 2,500 and 9,000 cases start from the optimum of a part of them.
    log_q, truth = drawn(n, k, by, rng)
    assert fit_temperature(log_q, truth) == pytest.approx(by_scipy(log_q, truth), rel=1e-6)


def test_a_sorted_file_changes_nothing(rng: np.random.Generator) -> None:
    log_q, truth = drawn(9000, 4, 2.0, rng)
    order = np.argsort(log_q[np.arange(9000), truth])
    assert fit_temperature(log_q[order], truth[order]) == pytest.approx(fit_temperature(log_q, truth), rel=1e-6)


@settings(max_examples=20)
@given(data=labelled(max_size=30), least=st.sampled_from([1e-300, 1e-12, 1e-3]))
def test_no_temperature_of_a_fine_grid_is_better(data: Labelled, least: float) -> None:
    log_q = np.log(np.maximum(data.probs, least))
    found = np.log(fit_temperature(log_q, data.truth))
    grid = [loss_of(log_q, data.truth, u) for u in np.linspace(-LIMIT, LIMIT, 101)]
    assert loss_of(log_q, data.truth, found) <= min(grid) * (1 + 1e-9) + 1e-9


def test_few_passes_over_all_cases_are_needed(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    log_q, truth = drawn(100_000, 4, 3.0, rng)
    passes = 0
    curve = fitting._curve

    def counted(some: Floats, *rest: object) -> object:
        nonlocal passes
        passes += len(some) == 100_000
        return curve(some, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(fitting, "_curve", counted)
    fit_temperature(log_q, truth)
    assert passes <= 5


def test_no_cases_and_impossible_labels_have_a_temperature_too() -> None:
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=np.intp)) == pytest.approx(1, abs=1e-6)
    never = np.array([[0.0, -np.inf], [0.0, -np.inf]])
    assert np.isfinite(fit_temperature(never, np.array([0, 0])))
    assert fit_temperature(never, np.array([0, 1])) == pytest.approx(np.exp(LIMIT))
    assert np.isfinite(fit_temperature(np.zeros((4, 2)), np.array([0, 1, 1, 0])))


def test_of_two_labels_a_vector_is_a_logistic_regression(rng: np.random.Generator) -> None:
    # log odds = s1 l1 - s0 l0 + b1 - b0: what scikit-learn fits freely to (l0, l1). The priors count two cases' worth.
    from sklearn.linear_model import LogisticRegression

    honest = rng.normal(0, 1.5, (20_000, 2))
    truth = (rng.random(20_000) < softmax(honest, axis=1)[:, 1]).astype(np.intp)
    log_q = np.asarray(log_softmax(honest * 2 + np.array([1.0, 0.0]), axis=1))
    calibrator, _ = fit_calibrator(log_q, truth, np.arange(20_000) % 2)
    assert calibrator.kind == "vector"
    theirs = LogisticRegression(C=1e6, tol=1e-10, max_iter=2000).fit(log_q, truth)
    np.testing.assert_allclose(calibrator.apply(log_q), theirs.predict_proba(log_q), atol=3e-3)
