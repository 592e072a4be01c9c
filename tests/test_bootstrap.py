"""Intervals, paired tests and the number of images needed: hand arithmetic, scipy, and what must always hold."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binom, binomtest
from strategies import Judged, groups, judged

from secondlook.eval.arrays import group_codes
from secondlook.eval.bootstrap import Interval, clustered_bootstrap, mean_interval, ratio_interval, wilson
from secondlook.eval.paired import holm, images_needed, mcnemar_exact, sign_flip


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def mean_of(values: np.ndarray) -> float:
    return float(np.mean(values))


def test_a_case_without_a_group_stands_alone() -> None:
    # Named groups are numbered first, in the order they are met; then those who stand alone.
    assert group_codes([None, "a", None, "a", 3], 5).tolist() == [2, 0, 3, 0, 1]
    assert group_codes(None, 3).tolist() == [0, 1, 2]
    # arrays are numbered alike
    assert group_codes(np.array(["b", "a", "b", "c"]), 4).tolist() == group_codes([7, 3, 7, 9], 4).tolist()
    assert group_codes(np.array([7, 3, 7, 9]), 4).tolist() == [0, 1, 0, 2]
    with pytest.raises(ValueError, match=r"groups: expected \[N=2\], got \(1,\)"):
        group_codes(["a"], 2)


def test_two_groups_give_the_three_means_that_two_draws_can_make() -> None:
    # Groups of means 0 and 1 and equal size: resampled means are 0 (1/4), 1/2 (1/2), 1 (1/4).
    values, leaf = [0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"]
    assert mean_interval(values, leaf, rng=rng()) == Interval(0.5, 0.0, 1.0, 4, 2)
    assert mean_interval(values, leaf, level=0.4, rng=rng()) == Interval(0.5, 0.5, 0.5, 4, 2)
    assert clustered_bootstrap(mean_of, values, groups=leaf, rng=rng()) == Interval(0.5, 0.0, 1.0, 4, 2)


def test_both_roads_agree_with_the_binomial_that_they_sample() -> None:
    # 200 independent cases, 160 right: a resampled number of right ones is binomial(200, .8).
    right = np.arange(200) < 160
    expected = binom.ppf([0.025, 0.975], 200, 0.8) / 200
    fast = mean_interval(right, draws=20_000, rng=rng())
    slow = clustered_bootstrap(mean_of, right, draws=4000, rng=rng())
    assert [fast.lo, fast.hi] == pytest.approx(expected, abs=0.0051)
    assert [slow.lo, slow.hi] == pytest.approx(expected, abs=0.0051)


def test_ratio_of_many_kinds_of_groups_agrees_with_the_generic_road() -> None:
    # Continuous values: the road that draws groups one by one.
    source = rng()
    top, bottom = source.random(120), source.random(120) + 0.5
    leaf = source.integers(40, size=120)
    fast = ratio_interval(top, bottom, leaf, draws=4000, rng=rng())
    slow = clustered_bootstrap(lambda a, b: a.sum() / b.sum(), top, bottom, groups=leaf, draws=4000, rng=rng())
    assert fast.value == pytest.approx(slow.value)
    assert [fast.lo, fast.hi] == pytest.approx([slow.lo, slow.hi], abs=0.01)


def test_photographs_of_one_leaf_widen_the_interval() -> None:
    # Six identical photographs of each of 50 leaves: the standard error is that of 50, not of 300.
    right = np.repeat(np.arange(50) < 40, 6)
    leaf = np.repeat(np.arange(50), 6)
    naive, honest = mean_interval(right, rng=rng()), mean_interval(right, leaf, rng=rng())
    assert (honest.hi - honest.lo) / (naive.hi - naive.lo) == pytest.approx(6**0.5, rel=0.15)
    assert (honest.n, honest.groups) == (300, 50)


def test_the_interval_of_a_mean_holds_the_truth_about_as_often_as_it_says() -> None:
    # 40 leaves of 3 photographs that share their fate, 300 repetitions: 95 % are 285, percentile limits lose a few.
    source = rng()
    leaf = np.repeat(np.arange(40), 3)
    held = 0
    for _ in range(300):
        interval = mean_interval(np.repeat(source.random(40) < 0.7, 3), leaf, rng=source)
        held += interval.lo <= 0.7 <= interval.hi
    assert 270 <= held <= 297


def test_one_group_or_no_case_has_no_interval() -> None:
    one = mean_interval([0, 1], ["a", "a"], rng=rng())
    none = mean_interval([], rng=rng())
    generic = clustered_bootstrap(mean_of, [0.0, 1.0], groups=["a", "a"], rng=rng())
    assert one.value == generic.value == 0.5
    assert np.isnan([one.lo, one.hi, generic.lo, generic.hi, none.value, none.lo, none.hi]).all()
    assert (none.n, none.groups) == (0, 0)


def test_draws_without_a_value_are_left_out_unless_they_are_most() -> None:
    # 1 of 20 accepted: a resample holds it with probability 1 - .95^20 = .64; of 20 with 0 accepted none has a value.
    accepted = np.arange(20) == 0
    some = ratio_interval(accepted, accepted, rng=rng())
    assert (some.value, some.lo, some.hi) == (1, 1, 1)
    none = ratio_interval(np.zeros(20), np.zeros(20), rng=rng())
    assert np.isnan([none.value, none.lo, none.hi]).all()


def test_the_same_seed_gives_the_same_interval() -> None:
    values = rng().random(30)
    assert mean_interval(values, rng=rng()) == mean_interval(values, rng=rng())


@settings(max_examples=30)
@given(st.floats(-5, 5), st.integers(2, 20), st.data())
def test_a_constant_has_an_interval_without_width(value: float, n: int, data: st.DataObject) -> None:
    leaf = data.draw(groups(n).filter(lambda g: len(set(g)) > 1))
    for interval in (
        mean_interval(np.full(n, value), leaf, draws=50, rng=rng()),
        clustered_bootstrap(mean_of, np.full(n, value), groups=leaf, draws=20, rng=rng()),
    ):
        assert [interval.lo, interval.hi] == pytest.approx([value, value])


@settings(max_examples=30)
@given(judged(min_size=2), st.data())
def test_an_interval_lies_within_the_groups_means(cases: Judged, data: st.DataObject) -> None:
    leaf = np.array(data.draw(groups(len(cases.correct))))
    means = [cases.confidence[leaf == g].mean() for g in set(leaf.tolist())]
    interval = mean_interval(cases.confidence, leaf, draws=50, rng=rng())
    assert min(means) - 1e-9 <= interval.value <= max(means) + 1e-9
    if len(means) > 1:
        assert min(means) - 1e-9 <= interval.lo <= interval.hi <= max(means) + 1e-9


def test_wilson_by_hand_and_by_scipy() -> None:
    # z = 1.96, p = .5, n = 4: centre .5, reach z sqrt(1/16 + z^2/64) / (1 + z^2/4) = .3500
    assert wilson(2, 4).lo == pytest.approx(0.15, abs=1e-3)
    for k, n in [(0, 7), (7, 7), (3, 7), (154, 160)]:
        expected = binomtest(k, n).proportion_ci(method="wilson")
        assert [wilson(k, n).lo, wilson(k, n).hi] == pytest.approx([expected.low, expected.high])
    assert np.isnan(wilson(0, 0)[:3]).all()
    with pytest.raises(ValueError, match="k: expected 0 to n=2, got 3"):
        wilson(3, 2)


def test_mcnemar_by_hand_and_by_scipy() -> None:
    # 1 against 5: 2 (C(6,0) + C(6,1)) / 2^6 = 14/64
    assert mcnemar_exact(1, 5) == pytest.approx(14 / 64)
    for b, c in [(22, 5), (0, 1), (3, 3), (40, 60)]:
        assert mcnemar_exact(b, c) == pytest.approx(binomtest(b, b + c).pvalue)
    assert mcnemar_exact(0, 0) == 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_treats_both_systems_alike(b: int, c: int) -> None:
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)
    assert 0 < mcnemar_exact(b, c) <= 1


def test_sign_flips_of_single_cases_approach_mcnemar_and_of_groups_do_not() -> None:
    difference = np.repeat([1, -1, 0], [12, 3, 100])
    assert sign_flip(difference, rng=rng()) == pytest.approx(mcnemar_exact(12, 3), abs=0.01)
    # The twelve wins are three leaves and the losses a fourth: totals 4 4 4 -3, flipped as far as 9 in
    # +-(15, 9): 2 x 2 of 16 ways, and +-7 is not as far.
    leaf = np.concatenate([np.repeat([0, 1, 2, 3], [4, 4, 4, 3]), np.arange(4, 104)])
    assert sign_flip(difference, leaf, rng=rng()) == pytest.approx(4 / 16, abs=0.02)
    assert sign_flip([], rng=rng()) == 1


def test_holm_by_hand() -> None:
    # ascending .01 x 4, .02 x 3, .03 x 2, .5 x 1 = .04 .06 .06 .5; nan is not a comparison
    assert holm([0.5, 0.01, np.nan, 0.03, 0.02]).tolist() == pytest.approx([0.5, 0.04, np.nan, 0.06, 0.06], nan_ok=True)
    assert holm([]).tolist() == []
    with pytest.raises(ValueError, match="pvalues"):
        holm([1.5])


@given(hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1)))
def test_holm_never_lowers_a_p_value_nor_changes_their_order(p: np.ndarray) -> None:
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
    assert adjusted.min() == pytest.approx(min(1, p.min() * len(p)))


def test_images_needed_by_hand() -> None:
    # psi .1, d .03: ((1.95996 x .316228 + .841621 x sqrt(.0991)) / .03)^2 = ((.619795 + .264943) / .03)^2 = 869.7
    needed = images_needed(0.1, 3, have=160)
    assert (needed.total, needed.more) == (870, 710)
    assert "710 more independent images (870 in all)" in needed.sentence
    assert images_needed(0.1, 3, have=1000).sentence.startswith("The 1,000 independent images at hand are enough")
    # no fewer discordant images than the difference itself
    assert images_needed(0.0, 3).total == images_needed(0.03, 3).total


def test_the_images_needed_have_the_power_they_claim() -> None:
    # 870 images, 6.5 % won and 3.5 % lost: the exact test at .05 finds it in about 80 % of 2,000 repetitions.
    source = rng()
    won, lost, _ = source.multinomial(870, [0.065, 0.035, 0.9], size=2000).T
    found = np.mean([mcnemar_exact(int(b), int(c)) < 0.05 for b, c in zip(won, lost, strict=True)])
    assert 0.74 <= found <= 0.83


def test_intervals_of_100_000_cases_take_about_a_second() -> None:
    source = rng()
    start = time.process_time()
    mean_interval(source.random(100_000) < 0.9, rng=source)
    mean_interval(source.random(100_000), source.integers(20_000, size=100_000), rng=source)
    assert time.process_time() - start < 4
