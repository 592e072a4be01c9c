"""Costs are added and weighed as by hand; no purse is ever spent beyond its limit, whoever spends at the same time."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from secondlook.agents.cost import Account, Budget, Cost, Limits, Prices, Purse

AMOUNTS = st.floats(0, 10, allow_subnormal=False)
COSTS = st.builds(Cost, vlm_calls=AMOUNTS, llm_calls=AMOUNTS, humans=AMOUNTS, seconds=AMOUNTS, usd=AMOUNTS)
LIMITS = st.builds(Limits, calls=st.none() | AMOUNTS, seconds=st.none() | AMOUNTS, usd=st.none() | AMOUNTS)
CALL = Cost(vlm_calls=1)


def test_costs_add_by_kind_and_weigh_by_price() -> None:
    whole = Cost(vlm_calls=4, seconds=10, usd=0.005) + Cost(llm_calls=2, seconds=5)
    assert whole == Cost(vlm_calls=4, llm_calls=2, seconds=15, usd=0.005)
    assert whole.calls == 6
    assert whole.weigh() == 6
    # 4 * 2 + 2 * 1 + 15 * .1 + .005 * 100 = 8 + 2 + 1.5 + .5
    assert whole.weigh(Prices(vlm_calls=2, llm_calls=1, seconds=0.1, usd=100)) == pytest.approx(12)
    assert whole.times(0.5).vlm_calls == 2


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf")])
def test_a_cost_is_a_finite_amount_that_is_not_negative(amount: float) -> None:
    with pytest.raises(ValidationError):
        Cost(usd=amount)
    with pytest.raises(ValidationError):
        Limits(usd=amount)
    with pytest.raises(ValidationError):
        Cost(usd=1).times(amount)


@given(COSTS, COSTS)
def test_what_is_weighed_together_is_what_is_weighed_apart(one: Cost, other: Cost) -> None:
    assert (one + other).weigh() == pytest.approx(one.weigh() + other.weigh())
    assert one + other == other + one
    assert one + Cost() == one


def test_a_purse_without_limits_pays_for_everything() -> None:
    purse = Purse(Limits())
    assert all(purse.spend(Cost(vlm_calls=1e6, usd=1e6)) for _ in range(3))
    assert purse.left == Limits()


def test_calls_of_both_kinds_count_towards_one_limit() -> None:
    purse = Purse(Limits(calls=2))
    assert purse.spend(Cost(vlm_calls=1, llm_calls=1))
    assert not purse.can(CALL)
    assert purse.can(Cost(seconds=100)), "what is not limited can still be spent"


def test_a_limit_of_nothing_allows_nothing_but_what_is_free() -> None:
    purse = Purse(Limits(calls=0))
    assert not purse.spend(CALL)
    assert purse.spend(Cost(seconds=1))


def test_rounding_refuses_nobody() -> None:
    purse = Purse(Limits(usd=0.3))
    assert [purse.spend(Cost(usd=0.1)) for _ in range(4)] == [True, True, True, False]  # .1 + .1 + .1 > .3 in floats


def test_a_refused_spend_takes_nothing_out_of_any_purse() -> None:
    run = Purse(Limits(calls=1, usd=1))
    case = Purse(Limits(calls=5), inside=run)
    assert not case.spend(Cost(vlm_calls=2))
    assert case.spent == run.spent == Cost()
    assert case.refusal(Cost(vlm_calls=2, usd=2)) == "calls 2 of 1, usd 2 of 1"
    assert case.spend(CALL)
    assert not Purse(Limits(), inside=run).spend(CALL), "another case of the run"


@given(LIMITS, LIMITS, st.lists(COSTS, max_size=12))
def test_no_order_of_spending_exceeds_a_limit(of_run: Limits, of_case: Limits, costs: list[Cost]) -> None:
    run = Purse(of_run)
    cases = [Purse(of_case, inside=run) for _ in range(2)]
    for number, cost in enumerate(costs):
        purse = cases[number % 2]
        foreseen = purse.can(cost)
        assert purse.spend(cost) == foreseen
    assert of_run.fit(run.spent)
    assert all(of_case.fit(case.spent) for case in cases)
    both = cases[0].spent + cases[1].spent
    assert both.weigh(Prices(seconds=1, usd=1)) == pytest.approx(run.spent.weigh(Prices(seconds=1, usd=1)))


def test_eight_threads_together_spend_exactly_what_there_is() -> None:
    run = Purse(Limits(calls=1000))

    def spend_all(_: int) -> int:
        case = Purse(Limits(calls=400), inside=run)
        return sum(case.spend(CALL) for _ in range(500))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads are exchanged as often as can be, to part every check from its spend
    try:
        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(spend_all, range(8)))
    finally:
        sys.setswitchinterval(before)
    assert sum(taken) == 1000 == run.spent.calls
    assert max(taken) <= 400


def test_a_budget_survives_json() -> None:
    budget = Budget(per_case=Limits(calls=4), per_run=Limits(usd=2.5, looks=100))
    assert Budget.model_validate_json(budget.model_dump_json()) == budget


@given(st.lists(st.tuples(COSTS, COSTS), max_size=10))
def test_after_all_is_settled_what_was_measured_is_spent(calls: list[tuple[Cost, Cost]]) -> None:
    run = Purse(Limits())
    case = Purse(Limits(), inside=run)
    for estimate, _ in calls:
        assert case.spend(estimate)
    for estimate, actual in calls:
        case.settle(estimate, actual)
    measured = sum((actual for _, actual in calls), Cost())
    for purse in (case, run):
        for kind in Cost.model_fields:
            assert getattr(purse.spent, kind) == pytest.approx(getattr(measured, kind), abs=1e-9)


def test_what_cost_less_than_expected_leaves_room_and_what_cost_more_refuses_the_next() -> None:
    purse = Purse(Limits(usd=1.0))
    assert purse.spend(Cost(usd=0.8))
    assert not purse.spend(Cost(usd=0.8))
    purse.settle(Cost(usd=0.8), Cost(usd=0.1))
    assert purse.spend(Cost(usd=0.8))
    purse.settle(Cost(usd=0.8), Cost(usd=1.5))
    assert purse.spent.usd == pytest.approx(1.6)
    assert purse.left.usd == 0
    assert purse.pay(Cost(usd=0.1)) == "usd 1.7 of 1"


def test_over_a_limit_what_adds_nothing_to_it_can_still_be_spent() -> None:
    purse = Purse(Limits(usd=1.0, calls=2))
    purse.settle(Cost(), Cost(usd=1.5))
    assert not purse.spend(Cost(usd=0.001))
    assert purse.spend(CALL), "an agent of one's own costs no dollar"


def test_a_refusal_says_whether_a_case_or_the_run_is_out_of_money() -> None:
    account = Account(Budget(per_case=Limits(calls=2), per_run=Limits(calls=3)))
    assert account.purse("a").pay(Cost(vlm_calls=3)) == "calls 3 of 2 a case"
    assert account.purse("a").pay(Cost(vlm_calls=2)) == ""
    assert account.purse("b").pay(Cost(vlm_calls=2)) == "calls 4 of 3 a run"
    assert account.purse("b").spent == Cost()
    assert account.purse("b") is account.purse("b")
    assert account.run.spent.calls == 2


def test_without_limits_a_case_there_is_one_purse_for_all() -> None:
    account = Account(Budget(per_run=Limits(calls=3)))
    assert account.purse("a") is account.purse("b") is account.run
