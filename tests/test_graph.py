"""The graph against a plain loop, and how the pipeline behaves when consumers die and parts fail."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from toy_world import LABELS, Scripted, by_id, case_of, toy_model, toy_nodes

from secondlook.agents.base import Agent
from secondlook.agents.case import Case, Evidence
from secondlook.agents.errors import AgentError, RetrievalError
from secondlook.agents.prediction import Failure, Outcome
from secondlook.orchestrator.judgement import judge
from secondlook.orchestrator.nodes import Nodes
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.panel import ask, column
from secondlook.orchestrator.pipeline import Pipeline
from secondlook.orchestrator.verdict import Verdict
from secondlook.retrieval.store import Hit, MemoryStore

KINDS = (*LABELS, *LABELS, "stranger", "unreadable")
"""Colours twice: most cases are ordinary."""
SURE, UNSURE = (0.98, 0.01, 0.01), (0.5, 0.3, 0.2)


def batch(seed: int, n: int, kinds: Sequence[str] = KINDS) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [case_of(kinds[int(rng.integers(len(kinds)))], f"{seed}-{i}", rng) for i in range(n)]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    made = toy_nodes()
    yield made
    made.embedder.close()


@pytest.fixture(scope="module")
def pipeline(nodes: Nodes) -> Pipeline:
    return Pipeline(nodes, batch_size=4)


def answers_of(agents: Sequence[Agent], case: Case) -> dict[str, Outcome]:
    said: dict[str, Outcome] = {}
    for agent in agents:
        said[column(agent.name, case.look)] = anyio.run(agent.predict, [case])[0]
    return said


def plain_loop(nodes: Nodes, case: Case) -> tuple[list[tuple[object, ...]], dict[str, Outcome], Case]:
    """Judge one case without a graph: (decision, reason, probs, trust) of each look, all outcomes, the last case."""
    found = nodes.embedder.embed([case.photo])
    readable = found.errors[0] is None
    typicality = (
        nodes.arrays.typicality.of(nodes.arrays.strangers.of(found.vectors)) if readable else np.array([np.nan])
    )
    said: dict[str, Outcome] = {}
    looks: list[tuple[object, ...]] = []
    for look in range(1, nodes.looks + 1):
        if look == 2:
            neighbours = nodes.open_searcher().search(found.vectors, [case])[0]
            case = case.model_copy(update={"evidence": Evidence(neighbours=neighbours, views=nodes.model.config.views)})
        said |= answers_of(nodes.panels[look], case)
        fusion = nodes.model.fusions[look]
        rows = [said[name] for name in fusion.agents]
        probs = np.array([[[np.nan] * 3 if isinstance(row, Failure) else row.scores] for row in rows])
        opinions = Opinions.uncalibrated(fusion.agents, probs)
        more = look < nodes.looks
        judged = judge(fusion, nodes.model.trusts[look], nodes.model.gate, opinions, typicality, may_look_again=more)
        looks.append((judged.decisions[0], judged.reasons[0], judged.belief[0], judged.trust[0]))
        if judged.decisions[0] != "look_again":
            break
    return looks, said, case


def assert_same(verdict: Verdict, nodes: Nodes, case: Case) -> None:
    looks, said, last = plain_loop(nodes, case)
    assert [trail.decision for trail in verdict.looks] == [look[0] for look in looks]
    assert verdict.reason == looks[-1][1]
    for trail, (_, reason, belief, trust) in zip(verdict.looks, looks, strict=True):
        if reason == "no_outcome":
            assert (trail.probs, trail.trust) == (None, None)
        else:
            assert trail.probs == pytest.approx(belief, abs=1e-6)
            assert trail.trust == pytest.approx(trust, abs=1e-6)
        for opinion in trail.opinions:
            outcome = said[column(opinion.agent, opinion.look)]
            if isinstance(outcome, Failure):
                assert opinion.error == outcome.error
            else:
                assert opinion.probs == pytest.approx(outcome.scores, abs=1e-6)
                assert opinion.label == LABELS[outcome.top]
    assert (verdict.id, verdict.group, verdict.action) == (case.id, case.group, looks[-1][0])
    belief = looks[-1][2]
    inside = nodes.model.gate.sets.of(np.array([belief]))[0]
    assert verdict.prediction_set == tuple(x for x, member in zip(LABELS, inside, strict=True) if member)
    if verdict.label is not None:
        assert verdict.label == LABELS[int(np.argmax(belief))]
        assert verdict.confidence == verdict.probs[np.argmax(belief)]
    assert [n.id for n in verdict.evidence] == [n.id for n in (last.evidence.neighbours if last.evidence else ())]
    assert verdict.model == nodes.model.digest


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 10))
def test_the_graph_gives_what_a_plain_loop_gives(nodes: Nodes, pipeline: Pipeline, seed: int, n: int) -> None:
    cases = batch(seed, n)
    verdicts = anyio.run(pipeline.judge, cases)
    assert [v.id for v in verdicts] == [c.id for c in cases]
    for verdict, case in zip(verdicts, cases, strict=True):
        assert_same(verdict, nodes, case)


def test_the_random_batches_reach_every_reason_and_both_looks(pipeline: Pipeline) -> None:
    verdicts = anyio.run(pipeline.judge, batch(0, 120))
    assert {v.reason for v in verdicts} == {"trusted", "low_trust", "stranger", "no_outcome"}
    assert {(v.action, len(v.looks)) for v in verdicts} == {("accept", 1), ("accept", 2), ("review", 1), ("review", 2)}
    stood_in = {trail.fused_by for v in verdicts for trail in v.looks}
    assert stood_in == {"best agent: scripted", "linear-head, as those before it failed", "log-linear pool"}


def test_without_a_threshold_nothing_is_accepted_and_the_reason_says_so() -> None:
    made = toy_nodes(model=toy_model(threshold=None))
    with Pipeline(made) as unpromising:
        cases = batch(3, 20, LABELS)
        verdicts = anyio.run(unpromising.judge, cases)
        for verdict, case in zip(verdicts, cases, strict=True):
            assert_same(verdict, made, case)
    assert {v.reason for v in verdicts} == {"no_threshold"}


@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_neither_batch_size_nor_streaming_changes_a_verdict(nodes: Nodes, pipeline: Pipeline, size: int) -> None:
    cases = batch(5, 23)
    together = anyio.run(pipeline.judge, cases)
    streamed = list(Pipeline(nodes, batch_size=size).stream(iter(cases)))
    rounded = {"probs", "confidence", "trust", "looks", "evidence"}  # numpy sums batches of other sizes in other orders
    for a, b in zip(streamed, together, strict=True):
        assert a.model_dump(exclude=rounded) == b.model_dump(exclude=rounded)
        assert a.probs == (None if b.probs is None else pytest.approx(b.probs, abs=1e-6))
        assert [n.id for n in a.evidence] == [n.id for n in b.evidence]
        assert [trail.decision for trail in a.looks] == [trail.decision for trail in b.looks]


def test_no_case_gives_no_verdict(pipeline: Pipeline) -> None:
    assert list(pipeline.stream([])) == []
    assert anyio.run(pipeline.judge, []) == []


def test_with_second_looks_off_everybody_is_asked_once() -> None:
    speaker = Scripted("scripted", lambda case: UNSURE)
    with Pipeline(toy_nodes(agent=speaker, looks=1)) as once:
        verdicts = list(once.stream(batch(1, 6, LABELS)))
    assert {len(v.looks) for v in verdicts} == {1}
    assert {v.reason for v in verdicts} == {"low_trust"}
    assert speaker.asked == [(1,) * 6]


def test_only_pending_cases_are_asked_again() -> None:
    speaker = Scripted("scripted", lambda case: SURE if int(case.id[-1]) % 2 else UNSURE)
    with Pipeline(toy_nodes(agent=speaker)) as some:
        verdicts = list(some.stream(batch(1, 6, LABELS)))
    assert speaker.asked == [(1,) * 6, (2,) * 3]
    assert [len(v.looks) for v in verdicts] == [2, 1, 2, 1, 2, 1]
    assert [len(v.evidence) for v in verdicts] == [5, 0, 5, 0, 5, 0]
    assert not any(n.group == v.group for v in verdicts for n in v.evidence)


def test_cases_are_read_no_further_than_a_batch_ahead(pipeline: Pipeline) -> None:
    read: list[str] = []

    def endless() -> Iterator[Case]:
        for i in range(10**9):
            read.append(str(i))
            yield batch(i, 1, LABELS)[0]

    stream = pipeline.stream(endless())
    next(stream)
    stream.close()
    assert len(read) <= 3 * pipeline.batch_size


def test_a_consumer_that_dies_leaves_no_thread_behind(pipeline: Pipeline) -> None:
    list(pipeline.stream(batch(2, 2)))  # the embedder's own threads are there now
    before = set(threading.enumerate())
    stream = pipeline.stream(batch(2, 30))
    next(stream)
    assert set(threading.enumerate()) > before
    stream.close()
    assert set(threading.enumerate()) <= before


def test_a_source_of_cases_that_breaks_raises_its_own_error_after_what_was_judged(pipeline: Pipeline) -> None:
    def broken() -> Iterator[Case]:
        yield from batch(4, 4)
        raise PermissionError("the folder went away")

    before, found = set(threading.enumerate()), []
    with pytest.raises(PermissionError, match="went away"):
        found.extend(pipeline.stream(broken()))
    assert set(threading.enumerate()) <= before


def test_it_works_inside_a_running_event_loop(pipeline: Pipeline) -> None:
    cases = batch(6, 5)

    async def notebook() -> list[str]:
        return [verdict.id for verdict in pipeline.stream(cases)]

    assert asyncio.run(notebook()) == [case.id for case in cases]


def buggy(case: Case) -> tuple[float, ...]:
    raise ZeroDivisionError(f"no letters in {case.id}")


def test_a_bug_in_an_agent_reaches_the_caller_as_that_bug() -> None:
    before = set(threading.enumerate())
    with Pipeline(toy_nodes(buggy)) as pipeline, pytest.raises(ZeroDivisionError, match="no letters in 1-0") as caught:
        list(pipeline.stream(batch(1, 3)))
    assert caught.value.__cause__ is None
    assert set(threading.enumerate()) <= before


def test_bugs_of_two_agents_are_both_shown() -> None:
    agents = [Scripted("a", buggy), Scripted("b", buggy)]
    with pytest.raises((ExceptionGroup, ZeroDivisionError)):
        anyio.run(ask, agents, batch(1, 1))


class Offline:
    """An agent whose world has gone."""

    name = "scripted"

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        raise AgentError("the endpoint does not answer")


def test_an_agent_that_cannot_answer_is_a_failure_beside_the_others() -> None:
    with Pipeline(toy_nodes(agent=Offline())) as pipeline:
        verdicts = list(pipeline.stream(batch(1, 4, LABELS)))
    for verdict in verdicts:
        silent, head = verdict.looks[0].opinions
        assert silent.error == "the endpoint does not answer"
        assert verdict.label == head.label


class Short:
    """An agent that loses a case."""

    name = "short"

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        return []


def test_an_agent_that_loses_cases_or_shares_a_name_is_a_bug_that_is_named() -> None:
    with pytest.raises(ValueError, match=r"short: expected 2 outcomes, got 0"):
        anyio.run(ask, [Short()], batch(1, 2))
    with pytest.raises(ValueError, match="different names"):
        anyio.run(ask, [Short(), Short()], batch(1, 2))


class BrokenStore(MemoryStore):
    """A store that cannot be read."""

    def query(self, embeddings: ArrayLike, k: int) -> list[list[Hit]]:
        raise RetrievalError("the disk is gone")


def test_where_the_store_fails_the_vote_fails_and_the_others_still_look() -> None:
    nodes = toy_nodes(lambda case: UNSURE, store=BrokenStore())
    with Pipeline(nodes) as pipeline:
        verdicts = list(pipeline.stream(batch(1, 4, LABELS)))
    for verdict in verdicts:
        assert len(verdict.looks) == 2
        by_column = {column(o.agent, o.look): o for o in verdict.looks[1].opinions}
        assert by_column["neighbour-vote@2"].error
        assert by_column["linear-head@2"].label is not None
        assert verdict.label is not None


def test_an_unreadable_image_is_reviewed_and_named_even_where_an_agent_has_an_answer() -> None:
    with Pipeline(toy_nodes(lambda case: SURE)) as pipeline:
        (verdict,) = pipeline.stream(batch(1, 1, ["unreadable"]))
    assert (verdict.action, verdict.reason, verdict.label, verdict.probs) == ("review", "no_outcome", None, None)
    assert verdict.prediction_set == LABELS
    assert "image" in verdict.why
    with Pipeline(toy_nodes(lambda case: UNSURE)) as pipeline:
        verdicts = list(pipeline.stream(batch(2, 6, ["unreadable", "red"])))
    assert {v.reason for v in verdicts} <= {"no_outcome", "trusted", "low_trust"}


def test_a_verdict_is_the_same_after_json(pipeline: Pipeline) -> None:
    for verdict in anyio.run(pipeline.judge, batch(0, 30)):
        assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_closing_a_pipeline_closes_what_was_opened_for_it() -> None:
    closed: list[bool] = []
    nodes = toy_nodes(by_id)
    with Pipeline(nodes, on_close=lambda: closed.append(True)) as pipeline:
        list(pipeline.stream(batch(1, 2)))
    assert closed == [True]
