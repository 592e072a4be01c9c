"""Drift alarms: hand-worked detectors, and what is promised of false alarms and delays, by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondlook.orchestrator.drift import (
    ODDS,
    conformal_ranks,
    error_e_values,
    rank_e_values,
    shiryaev_roberts,
    unit_means,
    upper_limit,
    watch,
    watch_errors,
    watch_ranks,
)


def run_lengths(e: np.ndarray, threshold: float) -> np.ndarray:
    """Units until the alarm of each stream; the length of the stream where there was none. e: [T, B, R]."""
    crossed = shiryaev_roberts(e).mean(axis=1) >= threshold
    return np.where(crossed.any(axis=0), crossed.argmax(axis=0) + 1, len(e))


def test_an_e_value_of_an_error_is_the_likelihood_ratio() -> None:
    # Limit .2, odds 1/4. The first bet has odds 1.5/4, so q = 1.5/5.5 = 3/11.
    # Wrong: (3/11) / (1/5) = 15/11. Right: (8/11) / (4/5) = 10/11. Half wrong: the mean of both.
    e = error_e_values(np.array([1.0, 0.0, 0.5]), 0.2)
    assert e.shape == (3, len(ODDS))
    np.testing.assert_allclose(e[:, 0], [15 / 11, 10 / 11, 12.5 / 11])


def test_the_recursion_sums_the_products_of_every_start() -> None:
    # M_3 = e1 e2 e3 + e2 e3 + e3 = 2*.5*3 + .5*3 + 3 = 7.5
    assert shiryaev_roberts(np.array([2.0, 0.5, 3.0])).tolist() == [2.0, 1.5, 7.5]


@given(limit=st.floats(0.001, 0.999), weight=st.floats(1, 20))
def test_no_bet_gains_while_the_mean_loss_is_at_the_limit(limit: float, weight: float) -> None:
    # A loss of `weight` with probability limit / weight has the mean `limit`.
    e = error_e_values(np.array([weight, 0.0]), limit)
    assert (e >= 0).all()
    mean = limit / weight * e[0] + (1 - limit / weight) * e[1]
    np.testing.assert_allclose(mean, 1, rtol=1e-9)


def test_bets_on_ranks_have_a_mean_of_one() -> None:
    # The integral of a p^(a-1) over (0, 1) is 1, for p and for 1 - p; midpoints of a fine grid, finer at the ends.
    edges = np.concatenate([[0], np.geomspace(1e-12, 0.5, 20_000)])
    edges = np.concatenate([edges, 1 - edges[-2::-1]])
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    np.testing.assert_allclose((rank_e_values(middle) * width[:, None]).sum(axis=0), 1, atol=0.02)


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2])
def test_false_alarms_are_as_rare_as_stated_at_the_limit(rate: float) -> None:
    # 1/alpha = 300: the mean run length must be 300 or more. Streams are cut at 2,000, which only lowers the mean.
    rng = np.random.default_rng(1)
    lengths = run_lengths(error_e_values((rng.random((2000, 1000)) < rate).astype(float), rate), 300)
    assert lengths.mean() - 3 * lengths.std() / np.sqrt(1000) >= 300


def test_below_the_limit_false_alarms_are_rarer_still() -> None:
    rng = np.random.default_rng(2)
    losses = (rng.random((3000, 400)) < 0.05).astype(float)
    assert run_lengths(error_e_values(losses, 0.1), 300).mean() > 1500


@pytest.mark.parametrize(("rate", "soon"), [(0.05, 420), (0.1, 220), (0.2, 110)])
def test_a_doubled_error_rate_is_found_soon(rate: float, soon: int) -> None:
    # At the threshold of a model with five watched figures at the stated default: 5 / 1e-4. After 200 quiet units.
    rng = np.random.default_rng(3)
    drawn = rng.random((1500, 300))
    losses = (drawn < np.where(np.arange(1500) < 200, rate, 2 * rate)[:, None]).astype(float)
    delays = run_lengths(error_e_values(losses, rate), 5e4) - 200
    assert (delays > 0).mean() > 0.99
    assert np.median(delays) <= soon


def test_ranks_are_uniform_and_independent_while_nothing_changes() -> None:
    rng = np.random.default_rng(4)
    ranks = np.stack(
        [conformal_ranks(row[20:], row[:20].tolist(), rng) for row in np.round(rng.beta(9, 1, (2000, 25)), 1)]
    )
    # Rounded to tenths, so most values are tied; uniform all the same. Standard error of a mean is .0065.
    assert np.abs(ranks.mean(axis=0) - 0.5).max() < 0.03
    assert np.abs(ranks.var(axis=0) - 1 / 12).max() < 0.01
    assert np.abs(np.corrcoef(ranks.T)[np.triu_indices(5, 1)]).max() < 0.08


def test_a_rank_counts_those_below_and_a_random_share_of_ties() -> None:
    # .5 among (.1, .5, .9): one below, ties are itself and one other: (1 + U * 2) / 4.
    tie = np.random.default_rng(0).random(1)[0]
    [rank] = conformal_ranks(np.array([0.5]), (0.1, 0.5, 0.9), np.random.default_rng(0))
    assert rank == pytest.approx((1 + 2 * tie) / 4)


def test_exchangeable_values_alarm_as_rarely_as_stated() -> None:
    # 1/alpha = 100, streams cut at 400, which only lowers the mean.
    lengths = []
    for seed in range(300):
        values = np.random.default_rng(seed).beta(9, 1, 440)
        seen = watch_ranks(values[40:], values[:40].tolist(), 100, np.random.default_rng(seed))
        lengths.append(400 if seen.at is None else seen.at + 1)
    assert np.mean(lengths) - 3 * np.std(lengths) / np.sqrt(300) >= 100


@pytest.mark.parametrize("quiet", [0, 300])
def test_a_fall_of_confidence_is_found_soon(quiet: int) -> None:
    # From a mean of .90 to one of .79, at the threshold of five watched figures.
    delays = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        values = np.concatenate([rng.beta(9, 1, quiet), rng.beta(6, 1.6, 400)])
        seen = watch_ranks(values, rng.beta(9, 1, 200).tolist(), 5e4, rng)
        delays.append(400 if seen.at is None else seen.at + 1 - quiet)
    assert np.median(delays) <= 80


def test_the_begin_of_a_change_is_placed_near_it() -> None:
    losses = np.concatenate([np.zeros(200), np.ones(20)])
    seen = watch_errors(losses, 0.1, 1e4)
    assert seen.at is not None
    assert 200 <= seen.at < 210
    assert seen.since == 200


def test_nothing_seen_raises_nothing() -> None:
    assert watch(np.empty((0, 3)), 10.0).at is None
    assert watch_errors(np.zeros(5000), 0.05, 1e4).at is None


def test_the_upper_limit_is_the_one_of_clopper_and_pearson() -> None:
    from scipy.stats import binomtest

    for k, n in ((0, 10), (3, 40), (10, 10)):
        oracle = binomtest(k, n, alternative="less").proportion_ci(0.95, method="exact").high
        assert upper_limit(k, n) == pytest.approx(oracle)
    assert np.isnan(upper_limit(0, 0))


def test_cases_of_one_group_in_a_row_are_one_unit() -> None:
    values = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    # a, a -> 1/2; b -> 1; two without a group are two units.
    assert unit_means(values, np.ones(5), ["a", "a", "b", None, None]).tolist() == [0.5, 1.0, 1.0, 0.0]
    # Weighted: (2*1 + 2*0) / 2 = 1.
    assert unit_means(values[:2], np.full(2, 2.0), ["a", "a"]).tolist() == [1.0]
