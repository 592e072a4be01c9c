"""The nodes of the graph: state in, a pure stage, part of the state out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import numpy as np

from secondlook.agents.base import Agent
from secondlook.agents.case import Case, Evidence
from secondlook.agents.cost import Cost
from secondlook.agents.embedder import Embedder
from secondlook.agents.errors import ImageError, RetrievalError
from secondlook.agents.prediction import Failure, Outcome, Prediction
from secondlook.orchestrator.evidence import with_evidence
from secondlook.orchestrator.fitted import Arrays, Model
from secondlook.orchestrator.gate import Gate
from secondlook.orchestrator.judgement import Decision, Hold, Judgement, explain, judge
from secondlook.orchestrator.loss import UNKNOWN, Loss
from secondlook.orchestrator.panel import ask, cost_of, opinion, stack
from secondlook.orchestrator.spending import Spending
from secondlook.orchestrator.statements import hear
from secondlook.orchestrator.verdict import LookTrail, Opinion, Reason, Verdict
from secondlook.retrieval.search import Searcher

MOST_ERROR = 160
"""Characters of an agent's error that a verdict repeats in its reason; the trail has it whole."""


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


class Decided(NamedTuple):
    """What becomes of a case at a look, the budget included."""

    decision: Decision
    reason: Reason
    refused: str = ""
    """Which limits of the budget the next look would exceed."""


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
    judge : Agent, optional
        A calibrated agent that hears what the others say; asked last, at every look.
    hold : callable
        Returns for a look why nothing is accepted at it for the time being; None where there is no reason.
    spending : Spending
        What is spent of the budget: that of a run is for everything judged with these nodes, in this process.
    """

    model: Model
    arrays: Arrays
    embedder: Embedder
    panels: dict[int, Sequence[Agent]]
    open_searcher: Callable[[], Searcher]
    looks: int = 2
    hold: Callable[[int], Hold | None] = lambda look: None
    judge_agent: Agent | None = None
    spending: Spending = field(init=False)

    def __post_init__(self) -> None:
        judges = [self.judge_agent] if self.judge_agent else []
        costs = {look: cost_of([*agents, *judges], look) for look, agents in self.panels.items()}
        object.__setattr__(self, "spending", Spending(self.model.config.budget, costs))

    @property
    def gate(self) -> Gate:
        """The gate that was chosen for this number of looks."""
        return self.model.gate_for(self.looks)

    async def place(self, state: State) -> dict[str, object]:
        """Measure how typical each image is, and leave out what the budget allows no look at."""
        found = self.embedder.embed([case.photo for case in state["cases"]])
        typicality = np.full(len(state["cases"]), np.nan)
        if found.ok.size:
            scores = self.arrays.strangers.of(found.vectors[found.ok])
            typicality[found.ok] = self.arrays.typicality.of(scores)
        state = State(**{**state, "typicality": tuple(typicality.tolist())})
        refused = {i: why for i in state["pending"] if (why := self.spending.pay(1))}
        trails = {i: (self._unseen(why),) for i, why in refused.items()}
        every = self.model.task.labels
        return {
            "typicality": state["typicality"],
            "pending": tuple(i for i in state["pending"] if i not in refused),
            "trails": trails,
            "verdicts": {i: self._verdict(state, i, "budget", trail, every) for i, trail in trails.items()},
        }

    async def ask(self, state: State) -> dict[str, object]:
        """Ask this look's panel about the pending cases."""
        pending = state["pending"]
        asking = [state["cases"][i] for i in pending]
        answers = await ask(self.panels[state["look"]], asking, self.judge_agent, self.model.task.labels)
        outcomes = dict(state["outcomes"])
        for position, i in enumerate(pending):
            outcomes[i] = outcomes.get(i, {}) | {name: row[position] for name, row in answers.items()}
        return {"outcomes": outcomes}

    async def judge(self, state: State) -> dict[str, object]:
        """Fuse, trust and decide; cases that are decided get their verdict."""
        look, pending = state["look"], state["pending"]
        if not pending:
            return {}
        fusion, labels = self.model.fusions[look], self.model.task.labels
        rows = {name: [state["outcomes"][i][name] for i in pending] for name in fusion.agents}
        opinions = stack(rows, fusion.agents, len(labels))
        found = judge(
            fusion,
            self.model.trusts[look],
            self.gate,
            opinions,
            np.array([state["typicality"][i] for i in pending]),
            may_look_again=look < self.looks,
            loss=Loss(costs=self.model.task.costs),
            hold=(held := self.hold(look)),
            incomplete=np.array([any(map(_unreached, state["outcomes"][i].values())) for i in pending]),
            again=np.array([_asks_again(state["outcomes"][i].values(), look) for i in pending]),
        )
        sets = self.gate.sets.of(found.belief)
        trails, verdicts, left = dict(state["trails"]), dict(state["verdicts"]), []
        for row, i in enumerate(pending):
            decided = self._afford(found.decisions[row], found.reasons[row], look)
            trail = self._trail(state, i, look, found, row, decided, held)
            trails[i] = (*trails.get(i, ()), trail)
            if trail.decision == "look_again":
                left.append(i)
                continue
            inside = tuple(x for x, member in zip(labels, sets[row], strict=True) if member or x == trail.label)
            verdicts[i] = self._verdict(state, i, decided.reason, trails[i], inside)
        return {"trails": trails, "verdicts": verdicts, "pending": tuple(left)}

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
            cases[i] = hear(case, list(state["outcomes"][i].values()), self.model.task.labels)
        return {"cases": tuple(cases), "look": state["look"] + 1}

    def _afford(self, decision: Decision, reason: Reason, look: int) -> Decided:
        """Pay for another look where one was decided; without the money, the case goes to review."""
        refused = self.spending.pay(look + 1) if decision == "look_again" else ""
        if not refused:
            return Decided(decision, reason)
        # A stranger, or a case without a threshold, would have gone to review after another look too.
        return Decided("review", "budget" if reason in ("low_trust", "incomplete") else reason, refused)

    def _trail(
        self, state: State, i: int, look: int, found: Judgement, row: int, decided: Decided, held: Hold | None
    ) -> LookTrail:
        fusion, gate = self.model.fusions[look], self.gate
        labels = self.model.task.labels
        outcomes = {name: state["outcomes"][i][name] for name in fusion.agents}
        opinions = tuple(opinion(outcome, labels) for outcome in outcomes.values())
        decision, reason, refused = decided
        because = held.why if held and reason == held.reason else ""
        known = found.labels[row] != UNKNOWN
        if not known:
            because = "; ".join(dict.fromkeys(o.error for o in opinions if o.error))
        trust, least = float(found.trust[row]), gate.least_trust(last=look == self.looks)
        why = explain(reason, decision, gate, least, trust, state["typicality"][i], because, refused)
        return LookTrail(
            look=look,
            opinions=opinions,
            fused_by=fusion.fused_from([name for name, o in outcomes.items() if not isinstance(o, Failure)]),
            probs=tuple(found.belief[row].tolist()) if known else None,
            label=labels[found.labels[row]] if known else None,
            trust=trust if known else None,
            threshold=least,
            decision=decision,
            why=f"{why} {_absent(opinions)}".strip() if known else why,
        )

    def _unseen(self, refused: str) -> LookTrail:
        least = self.gate.least_trust(last=self.looks == 1)
        why = explain("budget", "review", self.gate, least, np.nan, np.nan, refused=refused)
        return LookTrail(
            look=1, opinions=(), fused_by="nobody", probs=None, trust=None, threshold=least, decision="review", why=why
        )

    def _verdict(
        self, state: State, i: int, reason: Reason, trail: tuple[LookTrail, ...], inside: tuple[str, ...]
    ) -> Verdict:
        case, last, labels = state["cases"][i], trail[-1], self.model.task.labels
        typicality = state["typicality"][i]
        assert last.decision != "look_again"
        return Verdict(
            id=case.id,
            path=str(case.photo.path) if case.photo.path else None,
            digest=_digest(case),
            group=case.group,
            labels=labels,
            label=last.label,
            confidence=None if last.label is None or last.probs is None else last.probs[labels.index(last.label)],
            probs=last.probs,
            prediction_set=inside,
            action=last.decision,
            reason=reason,
            why=last.why,
            trust=last.trust,
            typicality=None if np.isnan(typicality) else typicality,
            looks=trail,
            evidence=case.evidence.neighbours if case.evidence else (),
            cost=sum((outcome.cost for outcome in state["outcomes"].get(i, {}).values()), Cost()),
            model=self.model.digest,
        )


def _asks_again(outcomes: Iterable[Outcome], look: int) -> bool:
    return any(isinstance(o, Prediction) and o.again for o in outcomes if o.look == look)


def _unreached(outcome: Outcome) -> bool:
    return isinstance(outcome, Failure) and not outcome.reached


def _absent(opinions: Sequence[Opinion]) -> str:
    """Say which agents the belief had to do without, and why; empty where all answered."""
    silent = {o.agent: o.error for o in opinions if o.error}
    if not silent:
        return ""
    told = "; ".join(f"{agent} ({error[:MOST_ERROR].rstrip('.')})" for agent, error in silent.items())
    return f"Judged without {told}."


def _digest(case: Case) -> str | None:
    try:
        return case.photo.digest
    except ImageError:
        return None
