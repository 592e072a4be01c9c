"""The nodes of the graph: state in, a pure stage, part of the state out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from secondlook.agents.base import Agent
from secondlook.agents.case import Case, Evidence
from secondlook.agents.embedder import Embedder
from secondlook.agents.errors import ImageError, RetrievalError
from secondlook.agents.prediction import Failure, Outcome
from secondlook.orchestrator.evidence import with_evidence
from secondlook.orchestrator.fitted import Arrays, Model
from secondlook.orchestrator.gate import Gate
from secondlook.orchestrator.judgement import Decision, Judgement, explain, judge
from secondlook.orchestrator.panel import ask, opinion, stack
from secondlook.orchestrator.verdict import LookTrail, Verdict
from secondlook.retrieval.search import Searcher


class State(TypedDict):
    """A micro-batch on its way; every value is replaced, never changed."""

    cases: tuple[Case, ...]
    """All N cases; those that look again carry evidence."""
    look: int
    pending: tuple[int, ...]
    """Indices of the cases this look is for."""
    typicality: tuple[float, ...]
    """nan where an image cannot be read."""
    outcomes: dict[int, dict[str, Outcome]]
    """By case and column, all looks together."""
    trails: dict[int, tuple[LookTrail, ...]]
    verdicts: dict[int, Verdict]


@dataclass(frozen=True)
class Nodes:
    """What the nodes work with.

    Attributes
    ----------
    model : Model
    arrays : Arrays
    embedder : Embedder
        Shared with the agents.
    panels : dict of int to sequence of Agent
        The calibrated agents of each look.
    open_searcher : callable
        Returns the one Searcher; called when it is first needed, since opening an index takes a second.
    looks : int
        1 where second looks are off, 2 where they are on.
    """

    model: Model
    arrays: Arrays
    embedder: Embedder
    panels: dict[int, Sequence[Agent]]
    open_searcher: Callable[[], Searcher]
    looks: int = 2

    @property
    def gate(self) -> Gate:
        """The gate that was chosen for this number of looks."""
        return self.model.gate_for(self.looks)

    async def place(self, state: State) -> dict[str, object]:
        """Measure how typical each image is."""
        found = self.embedder.embed([case.photo for case in state["cases"]])
        typicality = np.full(len(state["cases"]), np.nan)
        if found.ok.size:
            scores = self.arrays.strangers.of(found.vectors[found.ok])
            typicality[found.ok] = self.arrays.typicality.of(scores)
        return {"typicality": tuple(typicality.tolist())}

    async def ask(self, state: State) -> dict[str, object]:
        """Ask this look's panel about the pending cases."""
        pending = state["pending"]
        answers = await ask(self.panels[state["look"]], [state["cases"][i] for i in pending])
        outcomes = dict(state["outcomes"])
        for position, i in enumerate(pending):
            outcomes[i] = outcomes.get(i, {}) | {name: row[position] for name, row in answers.items()}
        return {"outcomes": outcomes}

    async def judge(self, state: State) -> dict[str, object]:
        """Fuse, trust and decide; cases that are decided get their verdict."""
        look, pending = state["look"], state["pending"]
        fusion = self.model.fusions[look]
        rows = {name: [state["outcomes"][i][name] for i in pending] for name in fusion.agents}
        opinions = stack(rows, fusion.agents, len(self.model.task.labels))
        typicality = np.array([state["typicality"][i] for i in pending])
        may_look_again = look < self.looks
        trust = self.model.trusts[look]
        found = judge(fusion, trust, self.gate, opinions, typicality, may_look_again=may_look_again)
        sets = self.gate.prediction_sets(found.belief)
        trails, verdicts = dict(state["trails"]), dict(state["verdicts"])
        for row, i in enumerate(pending):
            trail = self._trail(state, i, look, found, row)
            trails[i] = (*trails.get(i, ()), trail)
            if trail.decision != "look_again":
                inside = tuple(x for x, member in zip(self.model.task.labels, sets[row], strict=True) if member)
                verdicts[i] = self._verdict(state, i, found, row, trails[i], inside)
        again: tuple[Decision, ...] = found.decisions
        left = tuple(i for row, i in enumerate(pending) if again[row] == "look_again")
        return {"trails": trails, "verdicts": verdicts, "pending": left}

    async def gather(self, state: State) -> dict[str, object]:
        """Retrieve labelled neighbours for the pending cases and put them into the cases."""
        pending = state["pending"]
        cases = list(state["cases"])
        asking, views = [cases[i] for i in pending], self.model.config.views
        try:
            again = with_evidence(asking, self.embedder, self.open_searcher(), views)
        except RetrievalError:
            # The vote then reports a failure for these cases; the others still look at the views.
            again = [case.model_copy(update={"evidence": Evidence(views=views)}) for case in asking]
        for i, case in zip(pending, again, strict=True):
            cases[i] = case
        return {"cases": tuple(cases), "look": state["look"] + 1}

    def _trail(self, state: State, i: int, look: int, found: Judgement, row: int) -> LookTrail:
        fusion, gate = self.model.fusions[look], self.gate
        labels = self.model.task.labels
        outcomes = {name: state["outcomes"][i][name] for name in fusion.agents}
        opinions = tuple(opinion(outcome, labels) for outcome in outcomes.values())
        errors = "; ".join(dict.fromkeys(o.error for o in opinions if o.error))
        decision, reason = found.decisions[row], found.reasons[row]
        known = reason != "no_outcome"
        trust, least = float(found.trust[row]), gate.least_trust(last=look == self.looks)
        return LookTrail(
            look=look,
            opinions=opinions,
            fused_by=fusion.fused_from([name for name, o in outcomes.items() if not isinstance(o, Failure)]),
            probs=tuple(found.belief[row].tolist()) if known else None,
            trust=trust if known else None,
            threshold=least,
            decision=decision,
            why=explain(reason, decision, gate, least, trust, state["typicality"][i], errors),
        )

    def _verdict(
        self, state: State, i: int, found: Judgement, row: int, trail: tuple[LookTrail, ...], inside: tuple[str, ...]
    ) -> Verdict:
        case, last, labels = state["cases"][i], trail[-1], self.model.task.labels
        top = None if last.probs is None else int(np.argmax(last.probs))
        typicality = state["typicality"][i]
        assert last.decision != "look_again"
        return Verdict(
            id=case.id,
            path=str(case.photo.path) if case.photo.path else None,
            digest=_digest(case),
            group=case.group,
            labels=labels,
            label=None if top is None else labels[top],
            confidence=None if top is None or last.probs is None else last.probs[top],
            probs=last.probs,
            prediction_set=inside,
            action=last.decision,
            reason=found.reasons[row],
            why=last.why,
            trust=last.trust,
            typicality=None if np.isnan(typicality) else typicality,
            looks=trail,
            evidence=case.evidence.neighbours if case.evidence else (),
            model=self.model.digest,
        )


def _digest(case: Case) -> str | None:
    try:
        return case.photo.digest
    except ImageError:
        return None
