"""The next step: fitted on held-out cases, it asks what is expected to bring the most for its cost."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.cost import Prices
from secondlook.agents.errors import ConfigError
from secondlook.orchestrator.fusion import Folds, Truth, cross_fit, prior_of
from secondlook.orchestrator.gain import (
    Band,
    Fuse,
    Known,
    Option,
    band_limits,
    best_first,
    equal_pool,
    know,
    measure,
    price,
)
from secondlook.orchestrator.loss import Loss
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.step import Step, check_steps, plans
from secondlook.orchestrator.walk import NextStep, State, Taken, Walk, in_policy_order

__all__ = ["WORTH", "NextStep", "Walk", "fit_next_step"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
WORTH = 100.0
"""Value of a right label in calls of a vision-language model: a person's look by `Prices`. Chosen by hand."""
MOST_OPTIONS = 4
"""Kept for a band: the best, and others for where the budget does not allow it."""


def fit_next_step(
    opinions: Opinions,
    truth: Truth,
    folds: Folds,
    steps: Sequence[Step],
    *,
    worth: float = WORTH,
    at_most: float | None = None,
    prices: Prices | None = None,
    loss: Loss | None = None,
    fuse: Fuse = equal_pool,
) -> NextStep:
    """Measure on held-out cases what each step brings in each band of trust.

    Beliefs are fitted for the states that a walk can reach, and for those that an option leads to; every belief is
    cross-fitted.

    Parameters
    ----------
    opinions : Opinions
        Of M agents on N held-out cases, calibrated by cross-fitting; nan where one failed.
    truth : ndarray of shape (N,)
    folds : ndarray of shape (N,) or None
        None where no fold can be made: gains are then measured on what was fitted, and too good.
    steps : sequence of Step
        What can be done; of equals the first is preferred.
    worth : float
        Value of a right label in the unit of the prices.
    at_most : float, optional
        Mean cost of a case, in the unit of the prices, that must not be exceeded on these cases: worth is lowered by
        factors of the square root of 2, in the end to 0, until it is kept. For a limit that is never exceeded there
        is `Budget`.
    prices : Prices, optional
    loss : Loss, optional
        Costs of errors; without them every error costs 1.
    fuse : callable
        Fits the belief of a state, such as `functools.partial(fit_fusion, "confusion")`.

    Raises
    ------
    ConfigError
        When the steps do not fit together, one gives a column that is not among the opinions, or `at_most` is no cost.
    ValueError
        When the shapes do not fit together; see `Opinions.check_held_out`.
    """
    check_steps(steps)
    opinions.check_held_out(truth, folds)
    if at_most is not None and not at_most >= 0:
        raise ConfigError(f"A mean cost of at most {at_most} cannot be kept.", "Give 0 or more, or None.")
    if unknown := {column for step in steps for column in step.columns} - set(opinions.columns):
        raise ConfigError(f"No opinions are held of the columns {sorted(unknown)}.", f"Held: {opinions.columns}.")
    explorer = _Explorer(opinions, truth, folds, tuple(steps), prices or Prices(), loss or Loss(), fuse)
    fitted = explorer.explore(worth)
    for lower in (*(worth / 2 ** (i / 2) for i in range(1, 20)), 0.0):
        if at_most is None or fitted.mean_cost <= at_most:
            break
        fitted = explorer.explore(lower)
    return fitted


@dataclass(frozen=True)
class _Explorer:
    """The held-out cases, and what is known of them by state."""

    opinions: Opinions
    truth: Truth
    folds: Folds
    steps: tuple[Step, ...]
    prices: Prices
    loss: Loss
    fuse: Fuse
    found: dict[Taken, Known] = field(default_factory=dict)

    def known(self, taken: Taken) -> Known:
        """Return what is known after some steps, fitted when it is first asked for."""
        if taken not in self.found:
            columns = [column for step in self.steps if step.name in taken for column in step.columns]
            fitted = self.fuse(self.opinions.of(columns), self.truth, self.folds) if columns else None
            beliefs = fitted.beliefs if fitted else self._frequencies()
            self.found[taken] = know(fitted, beliefs, self.loss, self.truth)
        return self.found[taken]

    def _frequencies(self) -> Floats:
        """Cross-fitted label frequencies of shape (N, K)."""
        k, any_column = self.opinions.n_labels, self.opinions.of(self.opinions.columns[:1])
        return cross_fit(
            lambda _, y, asked: np.tile(prior_of(y, k), (len(asked), 1)), any_column, self.truth, self.folds
        )

    def explore(self, worth: float) -> NextStep:
        """Measure the states that the held-out cases reach, each by the first option that pays for it."""
        reached: dict[Taken, Bools] = {(): np.ones(len(self.truth), dtype=np.bool_)}
        states: dict[Taken, State] = {}
        while waiting := reached.keys() - states.keys():
            taken = min(waiting, key=lambda its: (len(its), its))  # every way to a state is shorter than it
            state = states[taken] = self._state(taken, reached[taken], worth)
            for after, goes in self._onward(state, reached[taken], worth):
                reached[after] = reached.get(after, False) | goes
        states = {taken: self._within(state, states) for taken, state in states.items()}
        loss, cost = self._walked(states, worth)
        return NextStep(
            steps=self.steps,
            worth=worth,
            prices=self.prices,
            loss=self.loss,
            prior=tuple(prior_of(self.truth, self.opinions.n_labels).tolist()),
            states=tuple(states.values()),
            n=len(self.truth),
            mean_loss=loss,
            mean_cost=cost,
        )

    def _onward(self, state: State, here: Bools, worth: float) -> list[tuple[Taken, Bools]]:
        """Where the cases of a state go on to ask models, and which of N they are."""
        risk = 1 - self.known(state.taken).trust
        number, found = _numbers(state.bands, 1 - risk), []
        for b, band in enumerate(state.bands):
            inside = here & (number == b)
            for option in band.options:
                goes = inside & (np.minimum(option.gain, risk) * worth >= option.cost)
                inside = inside & ~goes
                if goes.any() and not self._step(option.steps[0]).ends:
                    found.append((self._after(state.taken, option), goes))
        return found

    def _within(self, state: State, states: Collection[Taken]) -> State:
        """Leave out options that lead where no held-out case was."""
        bands = (
            band.model_copy(
                update={
                    "options": tuple(
                        option
                        for option in band.options
                        if self._step(option.steps[0]).ends or self._after(state.taken, option) in states
                    )
                }
            )
            for band in state.bands
        )
        return state.model_copy(update={"bands": tuple(bands)})

    def _after(self, taken: Taken, option: Option) -> Taken:
        return in_policy_order(self.steps, (*taken, option.steps[0]))

    def _state(self, taken: Taken, reached: Bools, worth: float) -> State:
        """Bands of the cases that reach a state, each with what all held-out cases in it gained by the options."""
        known = self.known(taken)
        limits = band_limits(known.trust[reached])
        number = np.searchsorted(limits, known.trust, side="right") - 1
        ahead = [
            (plan, plan[0] if plan[0].ends else self.known(in_policy_order(self.steps, (*taken, *_names(plan)))))
            for plan in plans(self.steps, taken)
        ]
        bands = []
        for b, least in enumerate(limits):
            where = number == b
            options = (
                Option(
                    steps=_names(plan),
                    gain=measure(known, after, where, self.loss),
                    cost=price(plan, self.prices),
                )
                for plan, after in ahead
            )
            pay = [option for option in options if option.pays(worth, 1 - least)]
            bands.append(
                Band(
                    least=least,
                    n=int(where.sum()),
                    loss=float(known.loss[where].mean()),
                    options=best_first(pay)[:MOST_OPTIONS],
                )
            )
        return State(taken=taken, fusion=known.fusion, bands=tuple(bands))

    def _walked(self, states: dict[Taken, State], worth: float) -> tuple[float, float]:
        """Mean loss and cost of the held-out cases when each goes where its first option that pays leads."""
        lost = cost = 0.0
        for i in range(len(self.truth)):
            taken: Taken = ()
            while True:
                known = self.known(taken)
                options = states[taken].options(float(known.trust[i]), worth)
                if not options:
                    lost += known.loss[i]
                    break
                step = self._step(options[0].steps[0])
                cost += step.cost.weigh(self.prices)
                if step.accuracy is not None:
                    lost += 1 - step.accuracy
                    break
                taken = in_policy_order(self.steps, (*taken, step.name))
        return lost / len(self.truth), cost / len(self.truth)

    def _step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)


def _names(plan: Sequence[Step]) -> tuple[str, ...]:
    return tuple(step.name for step in plan)


def _numbers(bands: Sequence[Band], trust: Floats) -> NDArray[np.intp]:
    """Which band each of N cases is in."""
    return np.searchsorted([band.least for band in bands], trust, side="right") - 1
