"""A policy of a replay: fitted on some cases, it decides others and says whom it asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.cost import Cost
from secondlook.agents.errors import ConfigError
from secondlook.eval.recorded_answers import Spent
from secondlook.orchestrator.fusion import Fitted, Fusion
from secondlook.orchestrator.judge_fusion import JUDGES, judge_in, look_in
from secondlook.orchestrator.next_step import NextStep, fit_next_step
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.policies import POLICIES, choose, fit_fusion
from secondlook.orchestrator.rules import Single, neighbour_vote_in
from secondlook.orchestrator.step import Step

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
CHEAP_FIRST = "cheap_first"


class Decided(NamedTuple):
    """What a policy makes of N cases."""

    beliefs: Floats
    """Of shape (N, K); nan where nobody whom it asked had answered."""
    asked: Bools
    """Of shape (M, N): which columns it needed for which case, those included that a second look is shown."""


@dataclass
class Training:
    """What policies are fitted on: cases of which the truth is known, calibrated by cross-fitting over `folds`.

    Attributes
    ----------
    opinions : Opinions
        Of all M columns on N cases.
    truth : ndarray of shape (N,)
    folds : ndarray of shape (N,) or None
        None where no fold can be made.
    spent : mapping of str to Spent
        By column, on these cases.
    """

    opinions: Opinions
    truth: NDArray[np.intp]
    folds: NDArray[np.intp] | None
    spent: Mapping[str, Spent]
    _fitted: dict[str, Fitted] = field(default_factory=dict)

    def fusion(self, name: str) -> Fusion:
        """Fit one of `secondlook.orchestrator.policies.POLICIES`, once for all who ask."""
        if name not in self._fitted:
            if name == "auto":
                others = fusions_for(self.opinions.columns)
                for other in others:
                    self.fusion(other)
                self._fitted[name] = choose({other: self._fitted[other] for other in others})
            else:
                self._fitted[name] = fit_fusion(name, self.opinions, self.truth, self.folds)
        return self._fitted[name].fusion


class FittedPolicy(Protocol):
    """Ready to decide."""

    def decide(self, opinions: Opinions) -> Decided:
        """Decide N cases that it was not fitted on."""
        ...


class Policy(Protocol):
    """A way to decide, before it has seen a case."""

    @property
    def name(self) -> str:
        """As `--policy` names it."""
        ...

    def fit(self, training: Training) -> FittedPolicy:
        """Fit on cases of known truth."""
        ...


@dataclass(frozen=True)
class FusionPolicy:
    """One of `secondlook.orchestrator.policies.POLICIES`: it asks every column, or the one that decides alone."""

    name: str

    def fit(self, training: Training) -> FittedPolicy:
        """Fit the fusion."""
        return FittedFusion(training.fusion(self.name), needs_of(training))


@dataclass(frozen=True)
class FittedFusion:
    """A fusion that decides."""

    fusion: Fusion
    needs: Mapping[str, frozenset[str]]
    """By column, all that must be asked to get its answer."""

    def decide(self, opinions: Opinions) -> Decided:
        """Fuse, and count whom that took."""
        return Decided(self.fusion.fuse(opinions), with_needs(self._asked(opinions), opinions.columns, self.needs))

    def _asked(self, opinions: Opinions) -> Bools:
        asked = np.ones(opinions.probs.shape[:2], dtype=np.bool_)
        if isinstance(self.fusion, Single):
            # One after the other, until one has answered.
            unanswered = np.ones(len(opinions), dtype=np.bool_)
            for name in self.fusion.order:
                m = opinions.columns.index(name)
                asked[m] = unanswered
                unanswered = unanswered & ~opinions.answered[m]
        return asked


@dataclass(frozen=True)
class CheapFirst:
    """Ask the cheapest first, and go on only where what is known is not trusted and asking pays."""

    name: str = CHEAP_FIRST

    def fit(self, training: Training) -> FittedPolicy:
        """Measure what each column brings, given the trust before."""
        needs = needs_of(training)
        steps = [
            Step(
                name=name, columns=(name,), needs=tuple(sorted(needs[name] - {name})), cost=_cost(training.spent[name])
            )
            for name in training.opinions.columns
        ]
        return FittedCheapFirst(fit_next_step(training.opinions, training.truth, training.folds, steps))


@dataclass(frozen=True)
class FittedCheapFirst:
    """A walk from step to step."""

    steps: NextStep

    def decide(self, opinions: Opinions) -> Decided:
        """Walk; only what was asked for is read."""
        walk = self.steps.walk(opinions)
        return Decided(walk.beliefs, walk.asked)


def _cost(spent: Spent) -> Cost:
    """Mean cost of an answer; what is not recorded counts nothing."""
    calls = float(spent.calls.mean())
    return Cost(
        vlm_calls=calls if spent.kind == "vlm" else 0.0,
        llm_calls=calls if spent.kind == "llm" else 0.0,
        seconds=float(np.nan_to_num(spent.seconds).mean()),
        usd=float(np.nan_to_num(spent.usd).mean()),
    )


def needs_of(training: Training) -> dict[str, frozenset[str]]:
    """Say for each column which columns its answer takes: a second look its agent's first one, and the vote.

    The second look of a recorded agent was shown the neighbours and its own first answer; whoever wants it pays for
    these too. A judge was told what all said at its look and before.
    """
    columns = training.opinions.columns
    votes = {name for name in columns if training.spent[name].kind == "vote" and not name.endswith("@2")}

    def before(name: str) -> set[str]:
        if name.startswith(JUDGES):
            others = {other for other in columns if not other.startswith(JUDGES) or look_in(other) < look_in(name)}
            return {other for other in others if look_in(other) <= look_in(name)}
        return votes | {name[:-2]} & set(columns) if name.endswith("@2") else set()

    return {name: frozenset({name} | before(name)) for name in columns}


def with_needs(asked: Bools, columns: tuple[str, ...], needs: Mapping[str, frozenset[str]]) -> Bools:
    """Add to the columns asked, of shape (M, N), those that their answers take."""
    whole = asked.copy()
    for m, name in enumerate(columns):
        for needed in needs[name]:
            whole[columns.index(needed)] |= asked[m]
    return whole


def fusions_for(columns: tuple[str, ...]) -> list[str]:
    """Names of the fusions that these columns allow, but `auto`."""
    absent = {"auto": True, "neighbour_vote": neighbour_vote_in(columns) is None, "judge": judge_in(columns) is None}
    return [name for name in POLICIES if not absent.get(name)]


def policies_for(columns: tuple[str, ...], names: list[str]) -> list[Policy]:
    """Find policies by name; all that the columns allow where none is named.

    Parameters
    ----------
    columns : tuple of M str
    names : list of str
        Dashes count as underscores.

    Raises
    ------
    ConfigError
        When there is no such policy, or the columns do not allow it.
    """
    allowed = [*fusions_for(columns), "auto", CHEAP_FIRST]
    wanted = list(dict.fromkeys(name.strip().replace("-", "_") for name in names)) or allowed
    for name in wanted:
        if name not in allowed:
            of = f"for {', '.join(columns)}" if name in (*POLICIES, CHEAP_FIRST) else ""
            raise ConfigError(f"There is no policy {name!r} {of}".rstrip() + ".", f"Choose of {', '.join(allowed)}.")
    return [CheapFirst() if name == CHEAP_FIRST else FusionPolicy(name) for name in wanted]
