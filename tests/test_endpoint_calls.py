"""Many cases asked at a real server that fails in every way: all get an outcome, none is invented, none is paid twice.

The large ones are benchmarks/faults.py and benchmarks/endpoint_calls.py.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_server import FAULTS, KINDS, Asked, FaultServer, digest, picture_digest

from secondlook.agents.answer_cache import AnswerCache
from secondlook.agents.cached import Cached
from secondlook.agents.case import Case, Task
from secondlook.agents.chat import ChatModel, Endpoint
from secondlook.agents.cost import Account, Budget, Limits
from secondlook.agents.line import line_of
from secondlook.agents.openai_vlm import OpenAISpec, OpenAIVlm
from secondlook.agents.photo import Photo
from secondlook.agents.picture_url import picture_url
from secondlook.agents.prediction import Failure, Outcome, Prediction
from secondlook.agents.sampled import Sampled
from secondlook.agents.wrappers import Budgeted, Patience, Resilient

TASK = Task(labels=("red", "green", "blue"))
KEY = "sk-planted-0123456789"


def cases(number: int) -> list[Case]:
    pictures = np.random.default_rng(number).integers(0, 256, (number, 16, 16, 3), dtype=np.uint8)
    return [Case(id=f"{i}", photo=Photo.of(picture)) for i, picture in enumerate(pictures)]


def sent(case: Case) -> str:
    """Digest of a case's picture as the server sees it."""
    return picture_digest(picture_url(case.photo.pixels(), 768))


def far(server: FaultServer, cache: AnswerCache, budget: Budget | None = None, draws: int = 1, **more: Any) -> Cached:
    endpoint = Endpoint(base_url=server.base_url, **{"concurrency": 16, "timeout_s": 20, **more})
    belief = "sampled" if draws > 1 else "stated"
    spec = OpenAISpec(name="far", model="scripted", endpoint=endpoint, belief=belief)
    agent = OpenAIVlm("far", ChatModel(endpoint, spec.model), TASK, spec)
    patience = Patience.of(endpoint).model_copy(update={"first_wait_s": 0.02})
    return Cached(Resilient(Budgeted(agent, Account(budget or Budget())), line_of(endpoint), patience), cache)


def ask(agent: Cached | Sampled, asked: Sequence[Case]) -> list[Outcome]:
    return asyncio.run(agent.predict(asked))


@pytest.fixture
def cache(tmp_path: Path) -> AnswerCache:
    return AnswerCache(tmp_path)


def test_every_fault_at_least_once_and_every_case_has_an_outcome_that_the_server_gave(cache: AnswerCache) -> None:
    # The first call for every second case fails, in all ways in turn; of two others every call does.
    asked = cases(2 * len(FAULTS))
    faults = {sent(case): FAULTS[i // 2 % len(FAULTS)] for i, case in enumerate(asked) if i % 2}
    always = {sent(case) for i, case in enumerate(asked) if i in (10, 20)}

    def plan(request: Asked) -> str:
        if request.picture in always:
            return "502"
        return faults.get(request.picture, "ok") if request.number == 0 else "ok"

    with FaultServer(labels=TASK.labels, plan=plan) as server:
        outcomes = ask(far(server, cache, timeout_s=2), asked)
        assert set(server.calls) == {"ok", *FAULTS}
        calls = Counter(request.picture for request in server.asked)
        assert max(calls.values()) == 4, "retries are bounded"
        assert set(server.paid.values()) == {1}, "successes are paid once"
        assert sum(outcome.cost.vlm_calls for outcome in outcomes) >= server.total, "every call is in the costs"
        for case, outcome in zip(asked, outcomes, strict=True):
            picture = sent(case)
            fault = "502" if picture in always else faults.get(picture, "ok")
            is_answered = picture not in always and (KINDS[fault].answers or KINDS[fault].again)
            assert isinstance(outcome, Prediction) == is_answered or fault == "a megabyte", fault
            if isinstance(outcome, Prediction):
                truth = server.answer_of(picture)
                assert TASK.labels[outcome.top] == truth.label, fault
                assert max(outcome.scores) == pytest.approx(0.95 if fault == "95%" else truth.confidence)
        kept = sum(isinstance(outcome, Prediction) for outcome in outcomes)
        assert len(cache) == kept
        server.reset()
        ask(far(server, cache), [case for case, o in zip(asked, outcomes, strict=True) if isinstance(o, Prediction)])
        assert server.total == 0, "the same again calls nobody"


def test_the_same_run_again_makes_no_call_and_costs_nothing(cache: AnswerCache) -> None:
    asked = cases(40)
    with FaultServer(labels=TASK.labels, latency_s=0.01) as server:
        first = ask(far(server, cache, concurrency=8), asked)
        assert server.total == 40
        assert server.most_at_once <= 8
        again = ask(far(server, cache), asked)
        assert server.total == 40
    assert [o.scores for o in again if isinstance(o, Prediction)] == [
        o.scores for o in first if isinstance(o, Prediction)
    ]
    assert all(outcome.cost.calls == 0 for outcome in again)


def test_as_many_are_asked_at_once_as_the_endpoint_allows(cache: AnswerCache) -> None:
    with FaultServer(labels=TASK.labels, latency_s=0.2) as server:
        ask(far(server, cache, concurrency=32), cases(64))
        assert server.total == 64
        assert server.most_at_once == 32


def test_draws_differ_by_their_number_and_are_each_paid_once(cache: AnswerCache) -> None:
    asked = cases(5)
    with FaultServer(labels=TASK.labels, plan=lambda r: "503" if r.number == 0 and r.seed == 1 else "ok") as server:
        outcomes = ask(Sampled(far(server, cache, draws=3), draws=3), asked)
        assert all(isinstance(o, Prediction) and o.scale == "sampled" and max(o.scores) == 1 for o in outcomes)
        assert server.total == 5 * 4, "draw 1 of each case is asked twice"
        assert set(server.paid.values()) == {1}
        assert [outcome.cost.vlm_calls for outcome in outcomes] == [4] * 5


def test_money_is_checked_before_it_is_spent(cache: AnswerCache) -> None:
    # The server counts 500 tokens in and 20 out: at 10 and 50 dollars a million, .006 dollars a call.
    prices = {"usd_per_million_input": 10.0, "usd_per_million_output": 50.0}
    with FaultServer(labels=TASK.labels) as server:
        agent = far(server, cache, Budget(per_run=Limits(usd=0.1)), concurrency=2, **prices)
        outcomes = ask(agent, cases(30))
        paid = [outcome for outcome in outcomes if isinstance(outcome, Prediction)]
        assert server.total == len(paid)
        assert sum(outcome.cost.usd for outcome in outcomes) == pytest.approx(0.006 * len(paid))
        assert 0 < 0.006 * len(paid) <= 0.1
        assert all("usd" in o.error and "of 0.1 a run" in o.error for o in outcomes if isinstance(o, Failure))


def test_an_endpoint_where_nobody_listens_is_given_up_and_the_outcomes_say_so(cache: AnswerCache) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = FaultServer()
    server.port = port
    outcomes = ask(far(server, cache, concurrency=4), cases(60))
    assert all(isinstance(outcome, Failure) for outcome in outcomes)
    errors = [outcome.error for outcome in outcomes if isinstance(outcome, Failure)]
    told = [error for error in errors if f"127.0.0.1:{port}" in error and "has served none of the last calls" in error]
    assert len(told) >= 50, "those that were not in flight when the line closed are told at once"
    assert len(cache) == 0


def test_one_agent_works_in_one_event_loop_after_another(cache: AnswerCache) -> None:
    with FaultServer(labels=TASK.labels) as server:
        agent = far(server, cache)
        for i, case in enumerate(cases(4)):
            (outcome,) = ask(agent, [case])
            assert isinstance(outcome, Prediction)
            assert server.total == i + 1


def test_the_key_is_in_no_outcome_and_not_in_the_cache(cache: AnswerCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_KEY", KEY)
    with FaultServer(labels=TASK.labels, key=KEY, share=0.5, faults=[k for k in FAULTS if k != "silence"]) as server:
        outcomes = ask(far(server, cache, key_env="PLANTED_KEY", attempts=2), cases(24))
        assert any(isinstance(outcome, Failure) for outcome in outcomes)
        assert len(cache) > 0
        assert KEY not in "".join(outcome.model_dump_json() for outcome in outcomes)
        files = list(cache.path.parent.iterdir())
        assert files
        assert not any(KEY.encode() in file.read_bytes() for file in files)


def test_digests_of_the_tests_are_those_of_the_server() -> None:
    (case,) = cases(1)
    assert len(sent(case)) == len(digest(b"")) == 64
    assert not math.isnan(FaultServer(labels=TASK.labels).answer_of(sent(case)).confidence)
