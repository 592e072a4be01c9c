"""Budgets in the graph: paid before every look, served in order, never a reason to accept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar

import anyio
import numpy as np
import pytest
from toy_world import LABELS, Scripted, case_of, toy_model, toy_nodes

from secondlook.agents.calibration import Calibrated, Calibrator
from secondlook.agents.case import Case
from secondlook.agents.cost import Budget, Cost, Limits
from secondlook.agents.errors import ConfigError
from secondlook.options import budget_of
from secondlook.orchestrator.judgement import Hold
from secondlook.orchestrator.nodes import Nodes
from secondlook.orchestrator.panel import cost_of
from secondlook.orchestrator.pipeline import Pipeline
from secondlook.orchestrator.spending import Spending
from secondlook.orchestrator.verdict import Verdict

SURE, UNSURE = (0.98, 0.01, 0.01), (0.5, 0.3, 0.2)


class Paid(Scripted):
    """A scripted agent that declares what a case costs."""

    cost: ClassVar = {"vlm_calls": 1, "seconds": 4.0, "usd": 0.25}


def nodes(budget: Budget, threshold: float | None = 0.9, stranger_limit: float = 0.0) -> Nodes:
    """The toy world under a budget; its scripted agent, which is paid, is sure of some cases at once."""
    model = toy_model(threshold)
    gate = model.gate.model_copy(update={"stranger_limit": stranger_limit})
    model = model.model_copy(update={"config": model.config.model_copy(update={"budget": budget}), "gate": gate})
    paid = Paid("scripted", lambda case: UNSURE if "unsure" in case.id else SURE)
    return toy_nodes(model=model, agent=paid)


def cases(names: Sequence[str]) -> list[Case]:
    rng = np.random.default_rng(0)
    return [case_of("red", name, rng) for name in names]


def judged(nodes: Nodes, asked: Sequence[Case], batch_size: int = 4) -> list[Verdict]:
    with Pipeline(nodes, batch_size=batch_size) as pipeline:
        return list(pipeline.stream(asked))


def test_what_a_look_costs_is_what_its_agents_declare() -> None:
    free, paid = Scripted("a", lambda case: SURE), Paid("b", lambda case: SURE)
    assert cost_of([free, free], 1) == Cost()
    assert cost_of([free, Calibrated(paid, {1: Calibrator()})], 1) == Cost(vlm_calls=1, seconds=4, usd=0.25)
    assert cost_of([paid, paid], 2) == Cost(looks=1, vlm_calls=2, seconds=8, usd=0.5)


def test_second_looks_of_a_run_are_given_in_order_across_batches_until_they_are_spent() -> None:
    names = [f"{i}-{'sure' if i % 3 == 0 else 'unsure'}" for i in range(12)]
    free = judged(nodes(Budget()), cases(names))
    found = judged(made := nodes(Budget(per_run=Limits(looks=3))), cases(names))
    twice = [v.id for v in free if len(v.looks) == 2]
    assert len(twice) == 8
    assert [v.id for v in found if len(v.looks) == 2] == twice[:3]
    refused = [v for v in found if v.reason == "budget"]
    assert [v.id for v in refused] == twice[3:]
    for verdict in refused:
        assert (verdict.action, verdict.looks[-1].decision, len(verdict.looks)) == ("review", "review", 1)
        assert verdict.why.endswith("that is needed; another look is beyond the budget (looks 4 of 3 a run).")
        assert verdict.label is not None, "what the first look said is there for the human"
    assert made.spending.spent.looks == 3
    accepted = {v.id for v in found if v.action == "accept"}
    assert accepted <= {v.id for v in free if v.action == "accept"}, "no money, no acceptance"


def test_a_case_may_cost_only_so_much_all_its_looks_together() -> None:
    # One look is a call of .25 USD, two are two calls of .5 USD together.
    asked = cases(["0-unsure", "1-sure"])
    for limits, said in ((Limits(calls=1), "calls 2 of 1"), (Limits(usd=0.4), "usd 0.5 of 0.4")):
        first, second = judged(nodes(Budget(per_case=limits)), asked)
        assert (first.reason, len(first.looks)) == ("budget", 1)
        assert f"({said} a case)" in first.why
        assert second.action == "accept"
    assert [v.reason for v in judged(nodes(Budget(per_case=Limits(calls=2, usd=0.5, seconds=8))), asked)] == [
        v.reason for v in judged(nodes(Budget()), asked)
    ]


def test_a_case_whose_first_look_is_beyond_the_budget_is_not_asked_about() -> None:
    made = nodes(Budget(per_run=Limits(calls=2)))
    agent = made.panels[1][0]
    assert isinstance(agent, Paid)
    found = judged(made, cases(["0-sure", "1-sure", "2-sure", "3-sure"]), batch_size=3)
    assert [v.reason for v in found] == ["trusted", "trusted", "budget", "budget"]
    for verdict in found[2:]:
        assert (verdict.label, verdict.probs, verdict.trust, verdict.prediction_set) == (None, None, None, LABELS)
        assert verdict.typicality is not None
        assert verdict.why == "To look at it at all is beyond the budget (calls 3 of 2 a run)."
        assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict
        assert verdict.first_label is None
    assert sum(map(len, agent.asked)) == 2
    assert made.spending.spent.calls == 2


def test_strangers_and_cases_without_a_threshold_keep_their_reason_and_name_the_budget_too() -> None:
    none = Budget(per_run=Limits(looks=0))
    [stranger] = judged(nodes(none, stranger_limit=1.0), cases(["0-unsure"]))
    assert (stranger.reason, len(stranger.looks)) == ("stranger", 1)
    assert "another look is beyond the budget" in stranger.why
    [unpromised] = judged(nodes(none, threshold=None), cases(["0-unsure"]))
    assert unpromised.reason == "no_threshold"
    assert unpromised.why == (
        "No threshold can promise errors under 5%, so nothing is accepted; another look is beyond the budget "
        "(looks 1 of 0 a run)."
    )


def test_batches_judged_at_the_same_time_never_spend_more_than_there_is() -> None:
    made = nodes(Budget(per_run=Limits(looks=7)))
    pipeline = Pipeline(made)
    batches = [cases([f"{b}-{i}-unsure" for i in range(5)]) for b in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = [v for batch in threads.map(lambda batch: anyio.run(pipeline.judge, batch), batches) for v in batch]
    pipeline.close()
    assert Counter(len(v.looks) for v in found) == {1: 13, 2: 7}
    assert Counter(v.reason for v in found if len(v.looks) == 1) == {"budget": 13}


def test_a_purse_shared_by_many_threads_is_emptied_exactly() -> None:
    run = Spending(Budget(per_run=Limits(looks=100)), {1: Cost(), 2: Cost(looks=1)})
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: run.pay(2), range(400)))
    assert Counter(answers) == {"": 100, "looks 101 of 100 a run": 300}


def test_a_held_gate_accepts_nothing_in_the_graph() -> None:
    hold = Hold("unproven", "the prompt has changed.")
    held = replace(nodes(Budget()), hold=lambda look: hold if look == 1 else None)
    first, second = judged(held, cases(["0-sure", "1-unsure"]))
    assert (first.reason, first.action, len(first.looks)) == ("unproven", "review", 1)
    assert first.why.endswith("would be accepted, but the prompt has changed.")
    assert len(second.looks) == 2
    assert second.reason != "unproven", "the hold was of the first look only"


def test_a_budget_is_read_from_words() -> None:
    found = budget_of(["run.looks=500", "case.usd=0.01", "case.calls = 4"])
    assert found == Budget(per_case=Limits(usd=0.01, calls=4), per_run=Limits(looks=500))
    assert budget_of([]) == Budget()


@pytest.mark.parametrize("wrong", ["looks=5", "day.looks=5", "run.wishes=3", "run.looks", "run.looks=", "run.looks=-1",
                                   "run.looks=many", "run.usd=nan", "run.usd=inf"])  # fmt: skip
def test_a_budget_that_cannot_be_read_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="--budget") as refused:
        budget_of([wrong])
    assert refused.value.remedy


def test_a_budget_is_given_once_and_refused_by_its_whole_name() -> None:
    with pytest.raises(ConfigError, match=r"--budget run.looks is given twice"):
        budget_of(["run.looks=5", "case.looks=1", "run.looks=50"])
    with pytest.raises(ConfigError, match=r"--budget run.seconds: .*, got many"):
        budget_of(["run.seconds=many"])
