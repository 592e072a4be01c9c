"""A walk: what is asked about a case, step by step; cheap first, and no more once it is trusted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.case import Frozen
from secondlook.agents.cost import Budget, Cost, Prices, Purse
from secondlook.orchestrator.gain import Band, Option, expected_loss
from secondlook.orchestrator.loss import Loss
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.policies import AnyFusion
from secondlook.orchestrator.step import Step

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Taken = tuple[str, ...]
"""Names of the steps taken, in the order of `NextStep.steps`."""


class State(Frozen):
    """What is known once some steps were taken, and what may come next."""

    taken: Taken
    fusion: AnyFusion | None
    """None before the first step, when only the label frequencies are known."""
    bands: tuple[Band, ...]
    """By trust, the lowest first."""

    def options(self, trust: float, worth: float) -> tuple[Option, ...]:
        """Return what is worth doing next about a case of this trust, the best first."""
        band = next(band for band in reversed(self.bands) if trust >= band.least)
        return tuple(option for option in band.options if option.pays(worth, 1 - trust))


@dataclass(frozen=True)
class Walk:
    """What was asked about N cases, and what is believed of them in the end.

    Attributes
    ----------
    beliefs : ndarray of shape (N, K)
        nan where nobody answered that was asked.
    trust : ndarray of shape (N,)
        1 minus the expected loss of the label; without costs of errors, its probability. Where a person was asked,
        how often they are right.
    asked : ndarray of shape (M, N)
        Which columns were asked and paid for, failures included.
    steps : tuple of N tuples of str
        Names of the steps in the order of taking.
    by_person : ndarray of shape (N,)
        Whether a person decides the label; the belief is then what the models had said before.
    spent : Cost
        On all cases together.
    """

    beliefs: Floats
    trust: Floats
    asked: Bools
    steps: tuple[tuple[str, ...], ...]
    by_person: Bools
    spent: Cost


class NextStep(Frozen):
    """A policy of asking: the step of best expected gain per cost, while it is worth it and the budget allows.

    References
    ----------
    Howard (1966), Information value theory, https://doi.org/10.1109/TSSC.1966.300074: a question is worth the expected
    fall of the loss through its answer. Stopping early on what is trusted is a cascade, as in Viola and Jones (2001),
    https://doi.org/10.1109/CVPR.2001.990517, or Chen, Zaharia and Zou (2023), FrugalGPT,
    https://arxiv.org/abs/2305.05176.
    """

    steps: tuple[Step, ...]
    worth: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Value of a right label in the unit of the prices: a step is taken if its expected gain times this reaches its
    cost. So nothing is asked about a case once 1 - trust times this is below the cost of the cheapest option."""
    prices: Prices = Prices()
    loss: Loss = Loss()
    prior: tuple[float, ...]
    """Label frequencies."""
    states: tuple[State, ...]
    """Those that a walk can reach."""
    n: int
    """Held-out cases that gains were measured on."""
    mean_loss: float
    """Of a walk on them; their beliefs are cross-fitted, the choice of steps is not."""
    mean_cost: float
    """Of a walk on them, in the unit of the prices."""

    def state(self, taken: Taken) -> State:
        """Return what is known after these steps."""
        return next(state for state in self.states if state.taken == taken)

    def believe(self, taken: Taken, opinions: Opinions) -> tuple[Floats, Floats]:
        """Beliefs of shape (N, K) and trust of shape (N,) after some steps; reads their columns only."""
        fusion = self.state(taken).fusion
        known = np.tile(self.prior, (len(opinions), 1))
        beliefs = fusion.fuse(opinions.of(fusion.agents)) if fusion else known
        return beliefs, 1 - expected_loss(beliefs, self.loss.labels(beliefs), self.loss)

    def options(self, taken: Taken, trust: float) -> tuple[Option, ...]:
        """Return what is worth doing next about a case, the best first; nothing where it is best to stop."""
        return self.state(taken).options(trust, self.worth)

    def step(self, name: str) -> Step:
        """Return a step by its name."""
        return next(step for step in self.steps if step.name == name)

    def walk(self, opinions: Opinions, budget: Budget | None = None) -> Walk:
        """Ask about N cases, step by step, from opinions that are already there.

        No opinion is read that was not asked for. In each round the cases of best gain per cost are served first, as
        they matter where the budget of the run ends. An option is begun only if the budgets allow all of it.

        Parameters
        ----------
        opinions : Opinions
            With a column for each that may be asked.
        budget : Budget, optional
            For these cases; without it only worth decides.
        """
        walker = _Walker(self, opinions, budget or Budget())
        pending = np.arange(len(opinions))
        while len(pending):
            pending = walker.go_on(pending)
        return walker.walk()


def in_policy_order(steps: Sequence[Step], taken: Collection[str]) -> Taken:
    """Name a state: the steps taken, in whatever order, are sorted as the policy lists them."""
    return tuple(step.name for step in steps if step.name in taken)


class _Walker:
    """Where N cases are on their walk."""

    def __init__(self, policy: NextStep, opinions: Opinions, budget: Budget) -> None:
        n = len(opinions)
        self._policy, self._opinions = policy, opinions
        self._run = Purse(budget.per_run)
        self._purses = [Purse(budget.per_case, inside=self._run) for _ in range(n)]
        self._beliefs, self._trust = np.empty((n, opinions.n_labels)), np.empty(n)
        self._steps: list[tuple[str, ...]] = [()] * n
        self._by_person = np.zeros(n, dtype=np.bool_)

    def go_on(self, pending: NDArray[np.intp]) -> NDArray[np.intp]:
        """Judge cases by what they have, take one step of each that it pays for, and return those."""
        policy = self._policy
        taken = {int(i): in_policy_order(policy.steps, self._steps[i]) for i in pending}
        for state in set(taken.values()):
            rows = np.array([i for i, its in taken.items() if its == state])
            self._beliefs[rows], self._trust[rows] = policy.believe(state, self._of(state, rows))
        options = {i: policy.options(its, self._trust[i]) for i, its in taken.items()}
        served = sorted((i for i in options if options[i]), key=lambda i: -options[i][0].rate)
        return np.array([i for i in served if self._take(i, options[i])], dtype=np.intp)

    def _of(self, taken: Taken, rows: NDArray[np.intp]) -> Opinions:
        columns = [column for name in taken for column in self._policy.step(name).columns]
        return self._opinions.of(columns or self._opinions.columns[:1]).cases(rows)

    def _take(self, i: int, options: Sequence[Option]) -> bool:
        """Take the first step of the first option that can be paid for; say whether the walk goes on from there."""
        for option in options:
            steps = [self._policy.step(name) for name in option.steps]
            whole = sum((step.cost for step in steps), Cost())
            if self._purses[i].can(whole) and self._purses[i].spend(steps[0].cost):
                self._steps[i] += (steps[0].name,)
                if steps[0].accuracy is not None:
                    self._by_person[i], self._trust[i] = True, steps[0].accuracy
                return not steps[0].ends
        return False

    def walk(self) -> Walk:
        """Return what came of it."""
        asked = np.zeros(self._opinions.probs.shape[:2], dtype=np.bool_)
        for i, steps in enumerate(self._steps):
            for column in (column for name in steps for column in self._policy.step(name).columns):
                asked[self._opinions.columns.index(column), i] = True
        return Walk(self._beliefs, self._trust, asked, tuple(self._steps), self._by_person, self._run.spent)
