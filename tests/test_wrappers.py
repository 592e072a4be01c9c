"""Retries are bounded, waits are kept, answers are paid for once, budgets hold, and draws are counted as by hand."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondlook.agents.answer_cache import AnswerCache
from secondlook.agents.base import Agent
from secondlook.agents.cached import Cached
from secondlook.agents.calibration import Calibrated, Calibrator
from secondlook.agents.case import Case, Evidence
from secondlook.agents.cost import Account, Budget, Cost, Limits
from secondlook.agents.endpoint import Endpoint
from secondlook.agents.errors import ConfigError, ImageError
from secondlook.agents.fakes import ScriptedAgent
from secondlook.agents.line import Line
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import FREE, Failure, Outcome, Prediction
from secondlook.agents.sampled import Sampled
from secondlook.agents.wrappers import Budgeted, Patience, Resilient

CALL = Cost(vlm_calls=1, usd=0.01)
QUICK = Patience(first_wait_s=0.0)


def case(name: object = "a", draw: int = 0, look: int = 1) -> Case:
    evidence = Evidence() if look == 2 else None
    return Case(id=str(name), photo=Photo.of(str(name).encode()), draw=draw, evidence=evidence)


def said(case: Case, **more: Any) -> Prediction:
    return Prediction(agent="far", look=case.look, scale="stated", scores=(0.9, 0.0), cost=CALL, **more)


def failed(case: Case, error: str = "answered 503", retry_after_s: float | None = 0.0) -> Failure:
    return Failure(agent="far", look=case.look, error=error, retry_after_s=retry_after_s, cost=CALL)


Reply = Callable[[Case, int], Outcome]


class FarAgent:
    """An agent whose replies are made by a function of the case and of how often it was asked about it."""

    name = "far"

    def __init__(
        self, reply: Callable[[Case, int], Outcome] | None = None, delay_s: float = 0.0, **cost: float
    ) -> None:
        self.asked: Counter[tuple[str, int]] = Counter()
        self.batches: list[int] = []
        self.most = self.now = 0
        self.cost = cost
        self.digest, self.prompt = "model 1", "ab" * 32
        self.gate: asyncio.Event | None = None
        """Where there is one, nothing is answered before it opens."""
        self._reply, self._delay_s = reply or (lambda case, n: said(case)), delay_s

    @property
    def calls(self) -> int:
        return sum(self.asked.values())

    def key(self, case: Case) -> str:
        return f"{case.photo.digest} {case.look} {case.draw}"

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        self.batches.append(len(cases))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self._delay_s)
            if self.gate:
                await self.gate.wait()
            return [self._one(each) for each in cases]
        finally:
            self.now -= 1

    def _one(self, case: Case) -> Outcome:
        number = self.asked[case.id, case.draw]
        self.asked[case.id, case.draw] += 1
        return self._reply(case, number)


def ask(agent: Agent, *cases: Case) -> list[Outcome]:
    return asyncio.run(asyncio.wait_for(agent.predict(cases), 30))


def resilient(agent: Agent, patience: Patience = QUICK, **line: Any) -> Resilient:
    return Resilient(agent, Line("http://there", **line), patience)


# Resilient


def test_each_case_is_asked_by_itself_and_all_at_once_within_the_line() -> None:
    far = FarAgent(delay_s=0.005)
    outcomes = ask(resilient(far, concurrency=3), *(case(i) for i in range(10)))
    assert len(outcomes) == 10
    assert far.batches == [1] * 10
    assert far.most == 3


def test_outcomes_are_in_the_order_of_the_cases_whoever_answers_first() -> None:
    class Slow(ScriptedAgent):
        async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
            await anyio.sleep(0.001 * (5 - int(cases[0].id)))
            return await super().predict(cases)

    agent = Slow("far", lambda case: (float(case.id), 0.5))
    outcomes = ask(resilient(agent), *(case(i) for i in range(5)))
    assert [o.scores[0] for o in outcomes if isinstance(o, Prediction)] == [0, 1, 2, 3, 4]


def test_what_may_help_is_tried_again_and_every_call_is_in_the_cost() -> None:
    far = FarAgent(lambda case, n: failed(case) if n < 2 else said(case))
    (outcome,) = ask(resilient(far), case())
    assert isinstance(outcome, Prediction)
    assert outcome.cost == CALL.times(3)
    assert far.calls == 3


def test_calls_for_a_case_are_bounded_and_the_failure_says_how_many() -> None:
    far = FarAgent(lambda case, n: failed(case))
    (outcome,) = ask(resilient(far, Patience(attempts=3, first_wait_s=0.0)), case())
    assert outcome == failed(case(), "answered 503 (asked 3 times)").model_copy(update={"cost": CALL.times(3)})
    assert far.calls == 3


def test_what_would_not_help_is_not_tried_again() -> None:
    far = FarAgent(lambda case, n: failed(case, "refused to answer", None))
    assert ask(resilient(far), case()) == [failed(case(), "refused to answer", None)]
    assert far.calls == 1


def test_a_wait_that_the_endpoint_asks_for_is_kept() -> None:
    far = FarAgent(lambda case, n: said(case) if n else failed(case, retry_after_s=0.05))
    start = time.perf_counter()
    (outcome,) = ask(resilient(far), case())
    assert isinstance(outcome, Prediction)
    assert time.perf_counter() - start >= 0.05


def test_a_wait_that_is_too_long_is_not_begun() -> None:
    far = FarAgent(lambda case, n: failed(case, retry_after_s=3600))
    start = time.perf_counter()
    (outcome,) = ask(resilient(far), case())
    assert outcome == failed(case(), retry_after_s=3600)
    assert far.calls == 1
    assert time.perf_counter() - start < 60


def test_all_waits_for_a_case_together_are_bounded() -> None:
    far = FarAgent(lambda case, n: failed(case, retry_after_s=0.02))
    (outcome,) = ask(resilient(far, Patience(attempts=100, first_wait_s=0.0, max_wait_s=0.05)), case())
    assert isinstance(outcome, Failure)
    assert far.calls == 3, "two waits of .02 s fit into .05 s"


def test_waits_without_a_word_from_the_endpoint_are_random_and_their_bound_doubles() -> None:
    patience = Patience(attempts=5, first_wait_s=1.0, longest_wait_s=4.0, max_wait_s=1e6)
    slept: list[list[float]] = []

    async def sleep(seconds: float) -> None:
        slept[-1].append(seconds)

    async def main() -> None:
        agent = resilient(FarAgent(lambda case, n: failed(case)), patience, failures=10**6)
        for i in range(200):
            slept.append([])
            await agent.predict([case(i)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secondlook.agents.wrappers.anyio.sleep", sleep)
        asyncio.run(main())
    waits = list(zip(*slept, strict=True))
    # Full jitter: uniform between 0 and 1, 2, 4, 4 s; the mean of 200 is within a fifth of the half.
    for bound, each in zip((1, 2, 4, 4), waits, strict=True):
        assert 0 <= min(each) < max(each) <= bound
        assert sum(each) / len(each) == pytest.approx(bound / 2, rel=0.2)


def test_silence_ends_after_the_timeout_and_may_be_tried_again() -> None:
    class Silent(FarAgent):
        async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
            self._delay_s = 5 if not self.batches else 0
            return await super().predict(cases)

    far = Silent(vlm_calls=1.0)
    (outcome,) = ask(resilient(far, Patience(timeout_s=0.2, first_wait_s=0.0)), case())
    assert isinstance(outcome, Prediction)
    assert far.batches == [1, 1]
    assert outcome.cost.vlm_calls == 2, "the call that was given up counts as declared"
    assert outcome.cost.seconds >= 0.2
    (outcome,) = ask(resilient(FarAgent(delay_s=5), Patience(timeout_s=0.02, attempts=1)), case())
    assert isinstance(outcome, Failure)
    assert outcome.error == "no answer within 0.02 s"
    assert outcome.retry_after_s == 0


def raising(error: BaseException) -> FarAgent:
    def reply(case: Case, n: int) -> Outcome:
        raise error

    return FarAgent(reply)


def test_an_agent_error_is_a_failure_with_its_text_and_not_tried_again() -> None:
    far = raising(ImageError("leaf.jpg: is empty (0 bytes)."))
    (outcome,) = ask(resilient(far), case(look=2))
    assert isinstance(outcome, Failure)
    assert (outcome.error, outcome.look, outcome.retry_after_s) == ("leaf.jpg: is empty (0 bytes).", 2, None)
    assert far.calls == 1


def test_an_error_of_the_system_is_named_without_its_text_and_tried_again() -> None:
    far = raising(ConnectionResetError("http://user:sk-secret@there"))
    (outcome,) = ask(resilient(far), case())
    assert isinstance(outcome, Failure)
    assert outcome.error == "the call broke off (ConnectionResetError) (asked 4 times)"
    assert far.calls == 4


@pytest.mark.parametrize("error", [TypeError("a bug"), AssertionError("a bug"), ConfigError("no key", "set it")])
def test_bugs_and_what_the_user_can_put_right_propagate_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=r"a bug|no key"):
        ask(resilient(raising(error)), case(1), case(2))


def test_cancellation_ends_all_calls_and_is_raised_again() -> None:
    far = FarAgent(delay_s=5)

    async def main() -> None:
        task = asyncio.create_task(resilient(far, concurrency=2).predict([case(i) for i in range(4)]))
        await anyio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert far.now == 0
    assert far.calls == 0


def test_a_dead_endpoint_costs_a_few_calls_and_the_others_fail_at_once() -> None:
    far = FarAgent(lambda case, n: failed(case, "could not be reached"))
    outcomes = ask(resilient(far, concurrency=2), *(case(i) for i in range(100)))
    assert all(isinstance(outcome, Failure) for outcome in outcomes)
    assert sum("http://there has served none of the last calls" in getattr(o, "error", "") for o in outcomes) >= 98
    assert far.calls <= 12, "five in a row, and what overlapped with them"


def test_an_endpoint_that_is_busy_or_a_case_that_is_hopeless_is_not_dead() -> None:
    far = FarAgent(
        lambda case, n: failed(case, "answered 429", 0.0001) if int(case.id) % 2 else failed(case, "no", None)
    )
    outcomes = ask(resilient(far, concurrency=1), *(case(i) for i in range(10)))
    assert [getattr(outcome, "error", "") for outcome in outcomes] == ["no", "answered 429 (asked 4 times)"] * 5


# Budgeted


def test_a_case_beyond_the_budget_of_the_run_is_refused_with_the_numbers_and_not_asked() -> None:
    account = Account(Budget(per_run=Limits(usd=0.02)))
    far = FarAgent(vlm_calls=1, usd=0.01)
    outcomes = ask(Budgeted(far, account), case(1), case(2), case(3))
    assert [type(outcome) for outcome in outcomes] == [Prediction, Prediction, Failure]
    refused = "the budget allows no further call: usd 0.03 of 0.02 a run"
    assert outcomes[2] == Failure(agent="far", error=refused, reached=False)
    assert far.calls == 2


def test_retries_are_paid_for_and_end_where_the_budget_of_the_case_ends() -> None:
    account = Account(Budget(per_case=Limits(calls=3)))
    far = FarAgent(lambda case, n: failed(case), vlm_calls=1)
    agent = resilient(Budgeted(far, account), Patience(attempts=10, first_wait_s=0.0), failures=100)
    (outcome,) = ask(agent, case(1))
    assert isinstance(outcome, Failure)
    assert outcome.error == "the budget allows no further call: calls 4 of 3 a case (asked 3 times)"
    assert outcome.cost == CALL.times(3)
    assert far.calls == account.run.spent.calls == 3
    ask(agent, case(2))
    assert far.calls == 6, "another case has a budget of its own"


def test_what_was_measured_takes_the_place_of_what_was_declared() -> None:
    account = Account(Budget(per_run=Limits(usd=0.06)))
    dear = FarAgent(vlm_calls=1, usd=0.05)  # declared at five times what it takes
    agent = Budgeted(dear, account)
    assert all(isinstance(ask(agent, case(i))[0], Prediction) for i in range(2))
    assert account.run.spent.usd == pytest.approx(0.02)
    (outcome,) = ask(agent, case(2))
    assert isinstance(outcome, Failure)
    assert "usd 0.07 of 0.06 a run" in outcome.error


def test_what_is_not_declared_is_expected_as_it_was_measured() -> None:
    account = Account(Budget(per_run=Limits(usd=0.035)))
    far = FarAgent(vlm_calls=1)
    outcomes = ask(resilient(Budgeted(far, account), concurrency=1), *(case(i) for i in range(10)))
    assert [isinstance(outcome, Prediction) for outcome in outcomes] == [True] * 3 + [False] * 7
    assert account.run.spent.usd == pytest.approx(0.03)


def test_a_refused_call_takes_no_turn_of_the_line() -> None:
    account = Account(Budget(per_run=Limits(calls=1)))
    agent = resilient(Budgeted(FarAgent(vlm_calls=1), account), per_second=5, concurrency=2)
    start = time.perf_counter()
    outcomes = ask(agent, *(case(i) for i in range(50)))
    assert sum(isinstance(outcome, Prediction) for outcome in outcomes) == 1
    assert time.perf_counter() - start < 5, "fifty turns would take 10 s, the two that had begun take .2 s"


def test_a_call_that_was_broken_off_counts_as_it_was_declared() -> None:
    account = Account(Budget(per_run=Limits(calls=10)))
    agent = Budgeted(FarAgent(delay_s=5, vlm_calls=1), account)
    (outcome,) = ask(resilient(agent, Patience(attempts=2, timeout_s=0.01, first_wait_s=0.0)), case())
    assert isinstance(outcome, Failure)
    assert outcome.cost.calls == account.run.spent.calls == 2


def test_agents_in_several_threads_share_one_purse() -> None:
    account = Account(Budget(per_run=Limits(calls=100)))
    agents = [FarAgent(vlm_calls=1) for _ in range(4)]

    def run(far: FarAgent) -> None:
        ask(Budgeted(far, account), *(case(i) for i in range(40)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, agents))
    assert sum(far.calls for far in agents) == account.run.spent.calls == 100


# Cached


@pytest.fixture
def cache(tmp_path: Path) -> AnswerCache:
    return AnswerCache(tmp_path)


@pytest.mark.parametrize("batched", [False, True])
def test_what_was_answered_is_not_asked_again_and_costs_nothing(cache: AnswerCache, batched: bool) -> None:
    far = FarAgent(lambda case, n: said(case, reason=f"time {n}"))
    cases = [case(i) for i in range(5)]
    first = ask(Cached(far, cache, batched=batched), *cases)
    again = ask(Cached(far, cache, batched=batched), *cases[::-1])[::-1]
    assert far.calls == 5
    assert far.batches == ([5] if batched else [1] * 5)
    assert [outcome.cost for outcome in first] == [CALL] * 5
    assert again == [outcome.model_copy(update={"cost": FREE}) for outcome in first]


def test_what_decides_the_answer_is_asked_anew(cache: AnswerCache) -> None:
    far = FarAgent()
    ask(Cached(far, cache), case(1), case(1, draw=1), case(1, look=2), case(2))
    assert far.calls == 4


def test_failures_are_asked_again(cache: AnswerCache) -> None:
    far = FarAgent(lambda case, n: failed(case) if n == 0 else said(case))
    agent = Cached(far, cache)
    assert [type(ask(agent, case())[0]) for _ in range(3)] == [Failure, Prediction, Prediction]
    assert far.calls == 2
    assert len(cache) == 1


def test_an_image_that_cannot_be_read_is_a_failure_beside_the_others(cache: AnswerCache, tmp_path: Path) -> None:
    (path := tmp_path / "gone.jpg").write_bytes(b"leaf")
    gone = Case(id="gone", photo=Photo.of(path))
    path.unlink()
    outcomes = ask(Cached(FarAgent(), cache), case(1), gone, case(2))
    assert [type(outcome) for outcome in outcomes] == [Prediction, Failure, Prediction]
    assert "gone.jpg" in getattr(outcomes[1], "error", "")


@pytest.mark.parametrize("batched", [False, True])
def test_equal_questions_at_once_are_asked_and_paid_once(cache: AnswerCache, batched: bool) -> None:
    far = FarAgent(delay_s=0.01)
    agents = [Cached(far, cache, batched=batched) for _ in range(3)]

    async def main() -> list[list[Outcome]]:
        return await asyncio.gather(*(agent.predict([case("a"), case("a"), case("b")]) for agent in agents))

    outcomes = [outcome for batch in asyncio.run(main()) for outcome in batch]
    assert far.calls == 2
    assert sum((outcome.cost for outcome in outcomes), FREE) == CALL.times(2)
    assert {outcome.scores for outcome in outcomes if isinstance(outcome, Prediction)} == {(0.9, 0.0)}
    assert len(outcomes) == 9


def test_equal_questions_in_several_event_loops_are_asked_once(cache: AnswerCache) -> None:
    far = FarAgent(delay_s=0.05)
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: ask(Cached(far, cache), case())[0], range(4)))
    assert far.calls == 1
    assert all(isinstance(outcome, Prediction) for outcome in outcomes)


async def two_at_once(agent: Cached, far: FarAgent, which: int) -> list[Outcome]:
    """Ask one question twice, and let one of them give up while it is on its way; return what the other hears."""
    far.gate = asyncio.Event()
    tasks = [asyncio.create_task(agent.predict([case()])) for _ in range(2)]
    while not far.now:
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    tasks[which].cancel()
    await asyncio.wait([tasks[which]])
    assert tasks[which].cancelled()
    far.gate.set()
    return await tasks[1 - which]


def test_who_waits_for_another_that_gives_up_asks_himself(cache: AnswerCache) -> None:
    far = FarAgent()
    assert asyncio.run(asyncio.wait_for(two_at_once(Cached(far, cache), far, 0), 10)) == [said(case())]
    assert far.batches == [1, 1]


def test_who_gives_up_waiting_ends_it_for_nobody_else(cache: AnswerCache) -> None:
    far = FarAgent()
    assert asyncio.run(asyncio.wait_for(two_at_once(Cached(far, cache), far, 1), 10)) == [said(case())]
    assert far.batches == [1]


def test_answers_that_came_before_a_crash_are_kept(cache: AnswerCache) -> None:
    def reply(case: Case, n: int) -> Outcome:
        if case.id == "3":
            raise TypeError("a bug")
        return said(case)

    line = Line("http://there", concurrency=1)
    with pytest.raises(TypeError):
        ask(Cached(Resilient(FarAgent(reply), line), cache), *(case(i) for i in range(6)))
    assert len(cache) == 3
    far = FarAgent()
    assert len(ask(Cached(far, cache), *(case(i) for i in range(6)))) == 6
    assert far.calls == 3


def test_an_answer_of_another_agent_with_the_same_key_bears_the_name_of_the_one_that_was_asked(
    cache: AnswerCache,
) -> None:
    ask(Cached(FarAgent(), cache), case())
    other = FarAgent()
    other.name = "another"
    (outcome,) = ask(Cached(other, cache), case())
    assert outcome.agent == "another"
    assert other.calls == 0


# Sampled


def test_shares_are_of_the_draws_that_succeed_and_the_reason_is_the_winners_first() -> None:
    # Five draws of three labels: 2, 1, (failed), 2, 2.
    tops = (2, 1, None, 2, 2)

    def reply(case: Case, n: int) -> Outcome:
        top = tops[case.draw]
        if top is None:
            return failed(case)
        scores = tuple(0.6 if k == top else 0.0 for k in range(3))
        reason = "" if case.draw == 0 else f"draw {case.draw}"
        return said(case, reason=reason, prompt="cd" * 32, again=case.draw < 3).model_copy(update={"scores": scores})

    (outcome,) = ask(Sampled(FarAgent(reply), draws=5), case(look=2))
    assert outcome == Prediction(
        agent="far",
        look=2,
        scale="sampled",
        scores=(0.0, 0.25, 0.75),
        reason="draw 3",
        again=False,  # two of four say so
        prompt="cd" * 32,
        cost=CALL.times(5),
    )


@given(st.lists(st.sampled_from([0, 1, 2, None]), min_size=2, max_size=9))
def test_half_of_the_draws_must_succeed_and_then_the_shares_are_a_distribution(tops: list[int | None]) -> None:
    agent = ScriptedAgent(
        "far", lambda case: "down" if (t := tops[case.draw]) is None else [float(k == t) for k in range(3)]
    )
    one, other = ask(Sampled(agent, draws=len(tops)), case(1), case(2))
    assert one == other
    failures = tops.count(None)
    if 2 * failures > len(tops):
        assert isinstance(one, Failure)
        assert one.error == f"{failures} of {len(tops)} draws failed, the first so: down"
    else:
        assert isinstance(one, Prediction)
        assert sum(one.scores) == pytest.approx(1)
        assert one.scores == tuple(pytest.approx(tops.count(k) / (len(tops) - failures)) for k in range(3))


def test_a_failure_of_draws_may_be_repeated_if_one_of_theirs_may() -> None:
    waits = (None, 2.0, 5.0)
    far = FarAgent(lambda case, n: failed(case, retry_after_s=waits[case.draw]))
    (outcome,) = ask(Sampled(far, draws=3), case())
    assert isinstance(outcome, Failure)
    assert outcome.retry_after_s == 5
    assert outcome.cost == CALL.times(3)


def test_one_draw_is_no_sample() -> None:
    with pytest.raises(ValueError, match="2 or more, got 1"):
        Sampled(FarAgent(), draws=1)


def test_draws_are_kept_and_paid_each_for_itself(cache: AnswerCache) -> None:
    far = FarAgent()
    agent = Sampled(Cached(resilient(far), cache), draws=3)
    ask(agent, case(1), case(2))
    assert far.asked == {(name, draw): 1 for name in "12" for draw in range(3)}
    assert ask(agent, case(1))[0].cost == FREE
    ask(Sampled(Cached(resilient(far), cache), draws=4), case(1))
    assert far.calls == 7, "a fourth draw is one more call"


# All of them


def whole(far: FarAgent, cache: AnswerCache, account: Account, draws: int = 2) -> Sampled:
    return Sampled(Cached(resilient(Budgeted(far, account)), cache), draws)


def test_what_the_agent_says_of_itself_every_wrapper_says(cache: AnswerCache) -> None:
    far = FarAgent(vlm_calls=1, usd=0.01)
    wrappers = (Budgeted(far, Account(Budget())), resilient(far), Cached(far, cache))
    for agent in (*wrappers, resilient(Budgeted(far, Account(Budget())))):
        assert (agent.name, agent.cost, agent.digest, agent.prompt) == ("far", far.cost, "model 1", "ab" * 32)
        assert agent.key(case()) == far.key(case())
    sampled = whole(far, cache, Account(Budget()), draws=3)
    assert sampled.cost == {"vlm_calls": 3, "usd": 0.03}
    assert sampled.key(case()) not in (far.key(case()), whole(far, cache, Account(Budget())).key(case()))
    plain = resilient(ScriptedAgent("plain", (1.0, 0.0)))
    assert (plain.cost, plain.digest, plain.prompt) == ({}, "", "")


def test_with_all_wrappers_every_case_has_an_outcome_and_a_second_run_asks_nothing(cache: AnswerCache) -> None:
    far = FarAgent(lambda case, n: failed(case) if (int(case.id) + case.draw + n) % 3 == 0 else said(case), vlm_calls=1)
    account = Account(Budget(per_run=Limits(calls=1000), per_case=Limits(calls=8)))
    both = {1: Calibrator()}
    cases = [case(i) for i in range(50)]
    outcomes = ask(Calibrated(whole(far, cache, account), both), *cases)
    assert all(isinstance(outcome, Prediction) and outcome.scale == "probability" for outcome in outcomes)
    assert far.calls == account.run.spent.calls == sum(outcome.cost.calls for outcome in outcomes)
    assert max(far.asked.values()) == 2, "one that succeeds is not asked again"
    before = far.calls
    again = ask(Calibrated(whole(far, cache, account), both), *cases)
    assert far.calls == before
    assert [outcome.model_copy(update={"cost": FREE}) for outcome in outcomes] == again


def test_an_endpoint_says_itself_that_it_took_too_long_before_the_wrapper_does() -> None:
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", attempts=7, timeout_s=30)
    patience = Patience.of(endpoint)
    assert patience.attempts == 7
    assert patience.timeout_s > 30
