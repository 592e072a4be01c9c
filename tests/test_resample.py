"""Figures from counts against the plain metrics of the repeated cases, and their intervals against the plain loop."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from strategies import Labelled, groups, labelled

from secondlook.eval.accuracy import accuracy, balanced_accuracy, macro_f1
from secondlook.eval.answers import answer_figures
from secondlook.eval.arrays import Bools, Floats, Ints, group_codes
from secondlook.eval.bootstrap import clustered_bootstrap, mean_interval
from secondlook.eval.proper_scores import brier, nll
from secondlook.eval.ranked import best_aurc_of
from secondlook.eval.reliability import auroc_of_confidence, ccc, class_wise_ece, direction, ece, mce, ocr
from secondlook.eval.resample import Resamples, intervals, resamples
from secondlook.eval.selective import aurc, best_aurc, coverage_at_risk, excess_aurc, risk_at_coverage
from secondlook.eval.set_metrics import set_coverage, set_size


def plain(p: Floats, y: Ints, said: Ints, trust: Floats, sets: Bools) -> dict[str, float]:
    """Every figure by the function that defines it."""
    k = p.shape[1]
    conf, right = p.max(axis=1), said == y
    return {
        "acc/top1": accuracy(said, y),
        "acc/balanced": balanced_accuracy(said, y, k),
        "acc/macro_f1": macro_f1(said, y, k),
        "cal/ece": ece(conf, right),
        "cal/ece_mass": ece(conf, right, scheme="mass"),
        "cal/ece_classwise": class_wise_ece(p, y),
        "cal/mce": mce(conf, right),
        "cal/direction": direction(conf, right),
        "cal/nll": nll(p, y),
        "cal/brier": brier(p, y),
        "cal/ocr": ocr(conf, right),
        "cal/ccc": ccc(conf, right),
        "sel/auroc": auroc_of_confidence(trust, right),
        "sel/aurc": aurc(trust, right),
        "sel/eaurc": excess_aurc(trust, right),
        "sel/risk_at_90": risk_at_coverage(trust, right, 0.9),
        "sel/coverage_at_target": coverage_at_risk(trust, right, 0.05),
        "set/coverage": set_coverage(sets, y),
        "set/size": set_size(sets),
    }


@settings(max_examples=60)
@given(labelled(max_size=12), st.data())
def test_counts_give_exactly_the_plain_metrics_of_the_repeated_cases(cases: Labelled, data: st.DataObject) -> None:
    p, y = cases
    n, k = p.shape
    said = data.draw(hnp.arrays(np.int64, n, elements=st.integers(-1, k - 1)))
    own_trust = data.draw(st.booleans())
    trust = data.draw(hnp.arrays(np.float64, n, elements=st.floats(0, 1))) if own_trust else p.max(axis=1)
    sets = data.draw(hnp.arrays(np.bool_, (n, k)))
    counts = data.draw(hnp.arrays(np.uint8, (2, n), elements=st.integers(0, 4)))
    figures = answer_figures(p, y, labels=said, trust=trust if own_trust else None, sets=sets)
    found = figures(Resamples(counts))
    for b, times in enumerate(counts):
        expected = plain(*(np.repeat(array, times, axis=0) for array in (p, y, said, trust, sets)))
        assert {name: values[b] for name, values in found.items()} == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_many_ties_and_large_counts_are_counted_exactly_too() -> None:
    # 3,000 cases of 11 confidences; one case drawn 300 times, more than a byte holds.
    rng = np.random.default_rng(5)
    conf = rng.choice(np.linspace(0.5, 1, 11), size=3000)
    p = np.stack([conf, 1 - conf], axis=1)
    y = (rng.random(3000) > conf).astype(np.int64)
    counts = rng.poisson(1, size=(1, 3000))
    counts[0, 7] = 300
    found = answer_figures(p, y, sets=p > 0.2)(Resamples(counts))
    repeated = [np.repeat(array, counts[0], axis=0) for array in (p, y, p.argmax(axis=1), p.max(axis=1), p > 0.2)]
    assert {k: v[0] for k, v in found.items()} == pytest.approx(plain(*repeated), abs=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_best_aurc_is_a_matter_of_two_numbers(right: int, wrong: int) -> None:
    flags = np.repeat([True, False], [right, wrong])
    found = best_aurc_of(np.array([float(right + wrong) or np.nan]), np.array([float(wrong)]))
    assert found[0] == pytest.approx(best_aurc(flags), abs=1e-12, nan_ok=True)


def test_intervals_agree_with_the_plain_loop() -> None:
    # 400 cases of 100 leaves, 1,000 draws either way: ends agree within the noise of the draws.
    rng = np.random.default_rng(1)
    y, leaf = rng.integers(4, size=400), rng.integers(100, size=400)
    logits = rng.normal(size=(400, 4)) + 1.5 * np.eye(4)[y]
    p = np.exp(1.5 * logits) / np.exp(1.5 * logits).sum(axis=1, keepdims=True)
    sets = p > 0.15
    fast = intervals({"": answer_figures(p, y, sets=sets)}, 400, leaf, draws=1000, rng=rng)
    assert set(fast) == set(plain(p, y, p.argmax(axis=1), p.max(axis=1), sets))
    conf, right = p.max(axis=1), p.argmax(axis=1) == y
    for name, statistic in {
        "cal/ece": ece, "cal/ccc": ccc, "sel/auroc": auroc_of_confidence, "sel/eaurc": excess_aurc,
    }.items():  # fmt: skip
        slow = clustered_bootstrap(statistic, conf, right, groups=leaf, draws=1000, rng=rng)
        assert (fast[name].value, fast[name].n, fast[name].groups) == pytest.approx((slow.value, 400, slow.groups))
        assert [fast[name].lo, fast[name].hi] == pytest.approx([slow.lo, slow.hi], abs=0.2 * (slow.hi - slow.lo))
    share = mean_interval(right, leaf, draws=1000, rng=rng)
    assert [fast["acc/top1"].lo, fast["acc/top1"].hi] == pytest.approx([share.lo, share.hi], abs=0.01)


def test_no_case_and_one_group_have_no_interval() -> None:
    rng = np.random.default_rng(0)
    none = intervals({"a": answer_figures(np.empty((0, 3)), [], sets=np.empty((0, 3)))}, 0, rng=rng)
    assert np.isnan([[i.value, i.lo, i.hi] for i in none.values()]).all()
    assert {(i.n, i.groups) for i in none.values()} == {(0, 0)}
    one = intervals({"a": answer_figures([[0.9, 0.1], [0.8, 0.2]], [0, 1])}, 2, ["leaf", "leaf"], rng=rng)
    assert one["a/acc/top1"].value == 0.5
    assert np.isnan([[i.lo, i.hi] for i in one.values()]).all()


def test_a_constant_agent_has_no_correlation_and_no_auroc_in_any_draw() -> None:
    p, y = np.tile([0.95, 0.05], (30, 1)), np.arange(30) % 2
    found = intervals({"": answer_figures(p, y)}, 30, draws=50, rng=np.random.default_rng(0))
    assert np.isnan([found["cal/ccc"].value, found["cal/ccc"].lo]).all()
    # all level: half of the pairs are won
    assert found["sel/auroc"][:3] == (0.5, 0.5, 0.5)


@settings(max_examples=30)
@given(st.integers(1, 30).flatmap(groups), st.integers(0, 2**32 - 1))
def test_a_resample_draws_whole_groups_as_many_as_there_are(names: list[str], seed: int) -> None:
    total = 0
    for block in resamples(group_codes(names, len(names)), 20, np.random.default_rng(seed)):
        total += len(block.counts)
        for row in block.counts.astype(int):
            drawn = {name: {int(row[i]) for i, other in enumerate(names) if other == name} for name in set(names)}
            assert all(len(times) == 1 for times in drawn.values())
            assert sum(times.pop() for times in drawn.values()) == len(drawn)
    assert total == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [2]}, "labels: expected whole numbers from -1 to 1"),
        ({"trust": [1.5]}, "trust: 1 of 1 are not in [0, 1]"),
        ({"sets": [[2, 0]]}, "members: expected booleans"),
        ({"sets": [True]}, "members: expected [N, K], got (1,)"),
        ({"sets": [[True, False]] * 2}, "truth: expected [N=2], got (1,)"),
        ({"sets": [[True] * 3]}, "sets: expected [N=1, K=2], got (1, 3)"),
    ],
)
def test_what_is_no_answer_is_refused_in_words(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        answer_figures([[0.5, 0.5]], [0], **arguments)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_twenty_draws_of_100_000_cases_take_about_a_fifth_of_a_second() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=100_000)
    logits = rng.normal(size=(100_000, 4)) + 2 * np.eye(4)[y]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    figures = answer_figures(p, y, sets=p > 0.1)
    start = time.process_time()
    intervals({"": figures}, 100_000, draws=20, rng=rng)
    # A wide margin: sorting again for each draw, not a busy machine, is what must fail here.
    assert time.process_time() - start < 1
