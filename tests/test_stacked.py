"""Stacking against scikit-learn, and what agents that failed are worth to it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.policies import fit_fusion
from secondlook.orchestrator.stacked import Stacked, fit_logistic, stacked_features

Floats = NDArray[np.float64]


def panel(n: int, m: int, k: int, seed: int = 0) -> tuple[Opinions, NDArray[np.intp]]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n).astype(np.intp)
    logits = rng.normal(size=(m, n, k)) + np.eye(k)[truth]
    probs = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return Opinions.uncalibrated(tuple(f"a{i}" for i in range(m)), probs), truth


def softmax(z: Floats) -> Floats:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("penalty", [0.03, 0.3, 3.0])
def test_the_regression_is_that_of_scikit_learn(k: int, penalty: float) -> None:
    opinions, truth = panel(200, 3, k)
    x = stacked_features(opinions)
    weights, bias = fit_logistic(x, truth, penalty, np.zeros((k, x.shape[1])), np.zeros(k), slack=1e-8)
    theirs = LogisticRegression(C=penalty, tol=1e-8, max_iter=5000).fit(x, truth)
    np.testing.assert_allclose(softmax(x @ weights.T + bias), theirs.predict_proba(x), atol=1e-3)


def test_the_features_are_by_hand() -> None:
    # ln .8 and ln .2 less their mean are +-.6931 (half the log-odds of 4), then .8 at the label said; then a failure.
    probs = np.array([[[0.8, 0.2]], [[np.nan, np.nan]]])
    x = stacked_features(Opinions.uncalibrated(("a", "b"), probs))
    np.testing.assert_allclose(x, [[np.log(2), -np.log(2), 0.8, 0, 0, 0, 0, 0]], atol=1e-12)


def test_the_fitted_value_is_the_regression_on_all_cases() -> None:
    opinions, truth = panel(150, 2, 3)
    fusion, _ = fit_fusion("stacked", opinions, truth, np.arange(150) % 5)
    assert isinstance(fusion, Stacked)
    theirs = LogisticRegression(C=fusion.penalty, tol=1e-8, max_iter=5000).fit(stacked_features(opinions), truth)
    # It is not fitted to the last digit.
    np.testing.assert_allclose(fusion.fuse(opinions), theirs.predict_proba(stacked_features(opinions)), atol=0.03)


def test_an_agent_that_says_the_wrong_label_by_rule_is_read_the_right_way_round() -> None:
    truth = np.arange(90, dtype=np.intp) % 3
    wrong = np.eye(3)[(truth + 1) % 3] * 0.8 + 0.2 / 3
    fusion, beliefs = fit_fusion("stacked", Opinions.uncalibrated(("a",), wrong[None]), truth, np.arange(90) // 3 % 5)
    assert (beliefs.argmax(axis=1) == truth).all()
    assert fusion.nll < 0.2 < fusion.agent_nll["a"]
