"""What an agent said becomes what it was worth: known temperatures, laws, and the agents nobody can calibrate."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from strategies import labelled

from secondlook.agents.calibration import Calibrated, Calibrator, fit_calibrator, log_distribution
from secondlook.agents.case import Case, Evidence
from secondlook.agents.errors import NotFittedError
from secondlook.agents.fakes import ScriptedAgent
from secondlook.agents.folds import grouped_folds
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Failure, Outcome, Prediction, Scale
from secondlook.agents.temperature import PRIOR_SD
from secondlook.eval.reliability import ece

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
SCALES: tuple[Scale, ...] = ("logit", "probability", "vote", "stated", "sampled")


def draw_truth(probs: Floats, rng: np.random.Generator) -> Ints:
    return (probs.cumsum(axis=1) < rng.random((len(probs), 1))).sum(axis=1).clip(0, probs.shape[1] - 1)


def overconfident(n: int, by: float, rng: np.random.Generator, k: int = 4) -> tuple[Floats, Ints]:
    """Log-probabilities that are `by` times too sure, and the truth."""
    honest = rng.normal(0, 1.5, (n, k))
    return np.asarray(log_softmax(honest * by, axis=1)), draw_truth(softmax(honest, axis=1), rng)


def every(n: int, folds: int = 5) -> Ints:
    return np.arange(n, dtype=np.intp) % folds


def nll(probs: Floats, truth: Ints) -> float:
    return float(-np.log(probs[np.arange(len(truth)), truth]).mean())


def expected_error(probs: Floats, truth: Ints) -> float:
    return ece(probs.max(axis=1), probs.argmax(axis=1) == truth)


def gather(agent: Calibrated, cases: list[Case]) -> list[Outcome]:
    return asyncio.run(agent.predict(cases))


def cases(n: int, again: tuple[int, ...] = ()) -> list[Case]:
    return [Case(id=f"{i}", photo=Photo.of(bytes(8)), evidence=Evidence() if i in again else None) for i in range(n)]


@pytest.mark.parametrize("by", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_recovered(by: float, rng: np.random.Generator) -> None:
    log_q, truth = overconfident(2000, by, rng)
    calibrator, _ = fit_calibrator(log_q, truth, None)
    # Over 20 seeds T / by had a mean of 1.00 and a standard deviation of .024 at n = 2,000.
    assert calibrator.temperature == pytest.approx(by, rel=0.1)
    assert calibrator.kind == "temperature"
    assert calibrator.n == 2000
    assert np.isnan(calibrator.nll), "nothing was held out"


def test_an_agent_that_is_never_wrong_gets_a_finite_temperature() -> None:
    truth = np.arange(60) % 3
    log_q = np.log(np.full((60, 3), 0.05) + 0.85 * np.eye(3)[truth])
    calibrator, probs = fit_calibrator(log_q, truth, every(60))
    # Without the prior T -> 0. With it, T stays within a few of the prior's standard deviations.
    assert np.exp(-5 * PRIOR_SD) < calibrator.temperature <= 1
    assert np.isfinite(probs).all()
    sharper, _ = fit_calibrator(log_q[:6], truth[:6], None)
    assert sharper.temperature > fit_calibrator(log_q, truth, None)[0].temperature, "fewer cases, weaker claims"


def test_an_agent_that_is_always_wrong_becomes_unsure() -> None:
    truth = np.arange(60) % 3
    log_q = np.log(np.full((60, 3), 0.005) + 0.985 * np.eye(3)[(truth + 1) % 3])
    calibrator, _ = fit_calibrator(log_q, truth, None)
    assert calibrator.apply(log_q).max() < 0.5


def test_held_out_calibration_error_falls(rng: np.random.Generator) -> None:
    log_q, truth = overconfident(4000, 3.0, rng)
    calibrator, _ = fit_calibrator(log_q[:2000], truth[:2000], every(2000))
    before, after = np.exp(log_q[2000:]), calibrator.apply(log_q[2000:])
    assert expected_error(before, truth[2000:]) > 0.15
    assert expected_error(after, truth[2000:]) < 0.04
    assert nll(after, truth[2000:]) < nll(before, truth[2000:])


def test_what_is_calibrated_already_is_mostly_left_alone_and_never_harmed() -> None:
    kinds = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        log_q, truth = overconfident(600, 1.0, rng)
        calibrator, _ = fit_calibrator(log_q[:300], truth[:300], every(300))
        kinds.append(calibrator.kind)
        assert nll(calibrator.apply(log_q[300:]), truth[300:]) < nll(np.exp(log_q[300:]), truth[300:]) + 0.02
    assert kinds.count("none") > len(kinds) / 2
    assert "vector" not in kinds


def test_a_vector_wins_where_labels_differ_and_only_there(rng: np.random.Generator) -> None:
    honest = rng.normal(0, 1.5, (1500, 3))
    truth = draw_truth(softmax(honest, axis=1), rng)
    biased = np.asarray(log_softmax(honest + np.array([2.0, 0.0, -2.0]), axis=1))
    calibrator, probs = fit_calibrator(biased, truth, every(1500))
    assert calibrator.kind == "vector"
    # softmax does not see a shift of all: only differences of the bias are determined.
    assert np.subtract(calibrator.bias[0], calibrator.bias[2]) == pytest.approx(-4, abs=0.5)
    assert nll(probs, truth) == pytest.approx(calibrator.nll)
    flat, _ = fit_calibrator(np.asarray(log_softmax(honest * 2, axis=1)), truth, every(1500))
    assert flat.kind == "temperature"


def test_the_vector_is_the_regularised_maximum_that_a_general_optimiser_finds(rng: np.random.Generator) -> None:
    from scipy.optimize import minimize
    from sklearn.metrics import log_loss

    log_q, truth = overconfident(150, 2.0, rng, k=3)
    log_q = log_q + np.array([1.5, 0.0, -1.5])
    log_q = np.asarray(log_softmax(log_q, axis=1))
    calibrator, _ = fit_calibrator(log_q, truth, every(150))
    assert calibrator.kind == "vector"

    def loss(x: Floats) -> float:
        probs = softmax(log_q * x[:3] + x[3:], axis=1)
        prior = ((x[:3] - 1) ** 2).sum() / 2 + (x[3:] ** 2).sum() / 2
        return float(log_loss(truth, probs, normalize=False, labels=range(3)) + prior)

    found = minimize(loss, np.r_[np.ones(3), np.zeros(3)], method="BFGS")
    np.testing.assert_allclose([*calibrator.scale, *calibrator.bias], found.x, atol=2e-3)


def test_the_temperature_is_the_best_of_a_fine_grid(rng: np.random.Generator) -> None:
    log_q, truth = overconfident(80, 2.0, rng)
    calibrator, _ = fit_calibrator(log_q, truth, None)
    grid = np.exp(np.linspace(-2, 3, 4001))
    losses = [nll(softmax(log_q / t, axis=1), truth) * 80 + np.log(t) ** 2 / (2 * PRIOR_SD**2) for t in grid]
    assert calibrator.temperature == pytest.approx(grid[np.argmin(losses)], rel=2e-3)


def test_no_row_is_calibrated_by_something_fitted_on_it(rng: np.random.Generator) -> None:
    log_q, truth = overconfident(100, 2.0, rng)
    folds = every(100)
    _, probs = fit_calibrator(log_q, truth, folds)
    changed = np.where(folds == 0, (truth + 1) % 4, truth)
    _, again = fit_calibrator(log_q, changed, folds)
    np.testing.assert_array_equal(probs[folds == 0], again[folds == 0])
    assert not np.array_equal(probs[folds == 1], again[folds == 1])


@given(
    logits=hnp.arrays(np.float64, (5, 4), elements=st.floats(-50, 50)),
    temperature=st.floats(0.05, 20),
    scale=st.sampled_from(SCALES),
)
def test_a_temperature_keeps_the_top_label(logits: Floats, temperature: float, scale: Scale) -> None:
    scores = logits if scale == "logit" else np.asarray(softmax(logits, axis=1))
    log_q = log_distribution(scores, scale)
    probs = Calibrator(kind="temperature", temperature=temperature).apply(log_q)
    top = scores.argmax(axis=1)
    assert (probs[np.arange(5), top] >= probs.max(axis=1) - 1e-12).all()


@given(
    said=labelled(), scale=st.sampled_from(SCALES[1:]), calibrator=st.sampled_from(["none", "temperature", "vector"])
)
def test_distributions_come_out_as_distributions(said: Any, scale: Scale, calibrator: str) -> None:
    k = said.probs.shape[1]
    fitted = {
        "none": Calibrator(),
        "temperature": Calibrator(kind="temperature", temperature=0.2),
        "vector": Calibrator(kind="vector", scale=tuple(np.linspace(0.1, 3, k)), bias=tuple(np.linspace(-5, 5, k))),
    }[calibrator]
    probs = fitted.apply(log_distribution(said.probs, scale))
    assert probs.shape == said.probs.shape
    assert (probs >= 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1)


@settings(max_examples=30)
@given(said=labelled(max_size=30))
def test_anything_can_be_fitted(said: Any) -> None:
    calibrator, probs = fit_calibrator(
        log_distribution(said.probs, "probability"), said.truth, every(len(said.truth), 3)
    )
    assert np.isfinite(probs).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    assert 0 < calibrator.temperature < np.inf


def test_a_share_of_nought_is_no_proof() -> None:
    # Three of three neighbours: (1 + .01) / (3 x .01 + 1) = .9806, and .01 / 1.03 = .0097 for the others.
    probs = np.exp(log_distribution(np.array([[1.0, 0.0, 0.0]]), "vote"))
    np.testing.assert_allclose(probs, [[1.01 / 1.03, 0.01 / 1.03, 0.01 / 1.03]])
    assert np.exp(log_distribution(np.array([[1.0, 0.0]]), "probability"))[0, 1] == pytest.approx(1e-12)


def test_huge_logits_overflow_nowhere() -> None:
    truth = np.array([0, 1, 0, 1, 0, 1])
    logits = np.where(np.eye(2)[truth] > 0, 1e4, -1e4)
    log_q = log_distribution(logits, "logit")
    for folds in (None, every(6, 3)):
        calibrator, probs = fit_calibrator(log_q, truth, folds)
        assert np.isfinite(probs).all()
        assert (calibrator.apply(log_q).argmax(axis=1) == truth).all()


def test_a_vector_sees_far_probabilities_as_it_was_fitted_on_them() -> None:
    vector = Calibrator(kind="vector", scale=(1.0, 0.1), bias=(0.0, 0.0))
    np.testing.assert_array_equal(vector.apply(np.array([[0.0, -30.0]])), vector.apply(np.array([[0.0, -1e6]])))


def test_a_constant_agent_is_brought_to_the_base_rate(rng: np.random.Generator) -> None:
    truth = np.repeat([0, 1], [160, 40])
    rng.shuffle(truth)
    said = np.tile([[0.95, 0.05]], (200, 1))
    calibrator, _ = fit_calibrator(np.log(said), truth, every(200))
    assert calibrator.apply(np.log(said))[0, 0] == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("k", [2, 5])
def test_one_label_alone_in_the_truth_leaves_everything_finite(k: int, rng: np.random.Generator) -> None:
    log_q = np.asarray(log_softmax(rng.normal(size=(40, k)), axis=1))
    calibrator, probs = fit_calibrator(log_q, np.zeros(40, dtype=np.intp), every(40))
    assert np.isfinite(probs).all()
    assert calibrator.apply(log_q).mean(axis=0)[0] > 1 / k


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected \[N, K\], \[N\]"):
        fit_calibrator(np.zeros((3, 2)), np.zeros(2, dtype=np.intp), None)


@pytest.mark.parametrize("truth", [-1, 2])
def test_a_truth_that_is_no_label_is_refused(truth: int) -> None:
    with pytest.raises(ValueError, match="truth: expected 0 to 1"):
        fit_calibrator(np.log(np.full((3, 2), 0.5)), np.array([0, 1, truth]), None)


def test_a_row_of_nan_is_refused_and_counted() -> None:
    log_q = np.log(np.array([[0.5, 0.5], [np.nan, np.nan]]))
    with pytest.raises(ValueError, match="nan in 1 of 2 rows"):
        fit_calibrator(log_q, np.array([0, 1]), None)


def test_a_calibrator_survives_json(rng: np.random.Generator) -> None:
    log_q, truth = overconfident(60, 2.0, rng)
    for calibrator in (
        fit_calibrator(log_q, truth, every(60))[0],
        fit_calibrator(log_q, truth, None)[0],
        Calibrator(kind="vector", scale=(1.1, 0.9, 1.0, 1.2), bias=(0.1, 0.0, -0.1, 0.2)),
    ):
        text = calibrator.model_dump_json()
        json.loads(text)
        again = Calibrator.model_validate_json(text)
        np.testing.assert_array_equal(again.apply(log_q), calibrator.apply(log_q))
        assert again.model_dump_json() == text


def test_a_look_that_was_never_calibrated_is_said_so() -> None:
    agent = Calibrated(ScriptedAgent("words", (1.0, 0.0)), {1: Calibrator()})
    assert len(gather(agent, cases(2))) == 2
    with pytest.raises(NotFittedError, match=r"'words' has no calibrator for look 2"):
        gather(agent, cases(2, again=(0, 1)))


def test_each_look_has_its_own_calibrator_and_failures_pass_through() -> None:
    raw = ScriptedAgent("words", lambda case: "no answer" if case.id == "1" else (2.0, 0.0), scale="logit")
    agent = Calibrated(raw, {1: Calibrator(), 2: Calibrator(kind="temperature", temperature=2.0)})
    first, failed, second = gather(agent, cases(3, again=(2,)))
    assert isinstance(first, Prediction)
    assert isinstance(second, Prediction)
    assert failed == Failure(agent="words", look=1, error="no answer")
    # softmax(2, 0) = 1 / (1 + e^-2) = .8808; with T = 2, 1 / (1 + e^-1) = .7311
    assert first.scores[0] == pytest.approx(0.8808, abs=1e-4)
    assert second.scores[0] == pytest.approx(0.7311, abs=1e-4)
    assert (first.scale, first.look, second.look) == ("probability", 1, 2)


@given(said=labelled(max_size=12), looks=st.lists(st.booleans(), min_size=12, max_size=12))
def test_a_batch_is_calibrated_as_its_cases_would_be_one_by_one(said: Any, looks: list[bool]) -> None:
    n = len(said.truth)
    asked = cases(n, again=tuple(i for i in range(n) if looks[i]))
    calibrators = {1: Calibrator(), 2: Calibrator(kind="temperature", temperature=1.7)}
    agent = Calibrated(ScriptedAgent("words", lambda case: said.probs[int(case.id)].tolist()), calibrators)
    together = gather(agent, asked)
    assert together == [gather(agent, [case])[0] for case in asked]


def test_grouped_folds_and_calibration_work_together(rng: np.random.Generator) -> None:
    log_q, truth = overconfident(90, 2.0, rng, k=3)
    folds = grouped_folds(truth, [f"leaf {i // 3}" for i in range(90)], rng)
    assert folds is not None
    calibrator, _ = fit_calibrator(log_q, truth, folds)
    assert calibrator.n == 90
