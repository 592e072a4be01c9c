"""What looking costs, how much of it is allowed, and what is left."""

from __future__ import annotations

import threading
from typing import Annotated

from pydantic import Field

from secondlook.agents.case import Frozen

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Limit = Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
ROUNDING = 1e-9
"""Relative room for the rounding of sums: ten times .1 fits into 1."""


class Prices(Frozen):
    """What one of each is worth in a common unit. By default the unit is one call of a vision-language model."""

    looks: Amount = 0.0
    vlm_calls: Amount = 1.0
    llm_calls: Amount = 1.0
    humans: Amount = 100.0
    """Chosen by hand: a person takes minutes where a model takes seconds."""
    seconds: Amount = 0.0
    usd: Amount = 0.0


class Cost(Frozen):
    """What something costs, by kind; amounts may be means over cases, so calls need not be whole.

    Examples
    --------
    >>> ask = Cost(vlm_calls=1, seconds=4.5, usd=0.001)
    >>> twice = ask + ask
    >>> twice.calls, twice.seconds, ask.weigh()
    (2.0, 9.0, 1.0)
    >>> ask.weigh(Prices(vlm_calls=0, usd=1))
    0.001
    """

    looks: Amount = 0.0
    """Second looks."""
    vlm_calls: Amount = 0.0
    """Calls of a model that sees the image."""
    llm_calls: Amount = 0.0
    """Calls of a model that reads only text."""
    humans: Amount = 0.0
    """Cases shown to a person."""
    seconds: Amount = 0.0
    usd: Amount = 0.0

    @property
    def calls(self) -> float:
        """Model calls of both kinds."""
        return self.vlm_calls + self.llm_calls

    @property
    def in_words(self) -> str:
        """What was paid, such as `3 calls, 4.2 s, 0.0012 USD`; empty where nothing was.

        Examples
        --------
        >>> Cost(vlm_calls=1, seconds=0.5).in_words, Cost(looks=1).in_words
        ('1 call, 0.5 s', '')
        """
        calls = f"{self.calls:g} call{'' if self.calls == 1 else 's'}" if self.calls else ""
        parts = (calls, f"{self.seconds:.3g} s" if self.seconds else "", f"{self.usd:.3g} USD" if self.usd else "")
        return ", ".join(part for part in parts if part)

    def __add__(self, other: Cost) -> Cost:
        """Add kind by kind."""
        return Cost(**{kind: getattr(self, kind) + getattr(other, kind) for kind in Cost.model_fields})

    def times(self, number: float) -> Cost:
        """Return the cost of a number of these.

        Raises
        ------
        ValueError
            When the number is negative or not finite.
        """
        return Cost(**{kind: getattr(self, kind) * number for kind in Cost.model_fields})

    def weigh(self, prices: Prices | None = None) -> float:
        """Return the whole as one number, in the unit of the prices."""
        prices = prices or Prices()
        return float(sum(getattr(self, kind) * getattr(prices, kind) for kind in Cost.model_fields))


class Limits(Frozen):
    """The most that may be spent, by kind; None is no limit."""

    looks: Limit = None
    calls: Limit = None
    """Model calls of both kinds."""
    humans: Limit = None
    seconds: Limit = None
    usd: Limit = None

    def exceeded(self, cost: Cost, spent: Cost | None = None) -> str:
        """Say which limits a cost would exceed, with the numbers; the empty string where it fits.

        Parameters
        ----------
        cost : Cost
        spent : Cost, optional
            What was spent before. Where that is over a limit already, a cost that adds nothing of the kind still fits.

        Examples
        --------
        >>> limits = Limits(calls=3, usd=0.5)
        >>> limits.exceeded(Cost(vlm_calls=2, llm_calls=2, usd=0.5))
        'calls 4 of 3'
        >>> limits.exceeded(Cost(vlm_calls=1), spent=Cost(usd=0.6))
        ''
        """
        before = spent or Cost()
        after = before + cost
        wanted = {kind: (getattr(before, kind), getattr(after, kind)) for kind in Limits.model_fields}
        return ", ".join(
            f"{kind} {amount:.4g} of {limit:.4g}"
            for kind, (was, amount) in wanted.items()
            if (limit := getattr(self, kind)) is not None and amount > limit * (1 + ROUNDING) and amount > was
        )

    def fit(self, cost: Cost) -> bool:
        """Whether a cost is within every limit."""
        return not self.exceeded(cost)


class Budget(Frozen):
    """What may be spent on one case, and on all cases of a run together."""

    per_case: Limits = Limits()
    per_run: Limits = Limits()


class Purse:
    """What has been spent of a limit. Any number of threads may share one.

    Ask before the spend: `spend` takes the cost and says True, or takes nothing and says False, so that what is spent
    never exceeds the limit. Where a cost is known only afterwards, `spend` its estimate and `settle` it later; what was
    measured counts even where it is over the limit, and then refuses what comes next.

    Parameters
    ----------
    limits : Limits
        Of this purse.
    inside : Purse, optional
        A purse that everything spent here is also spent from, as a case's purse is inside its run's.
    scope : str
        What the limits are for, put behind the numbers of a refusal: `a case`, `a run`.

    Examples
    --------
    >>> run = Purse(Limits(calls=3))
    >>> case = Purse(Limits(calls=2), inside=run)
    >>> call = Cost(vlm_calls=1)
    >>> [case.spend(call) for _ in range(3)]
    [True, True, False]
    >>> case.left.calls, run.left.calls, case.refusal(call)
    (0.0, 1.0, 'calls 3 of 2')
    >>> case.settle(estimate=call, actual=Cost())
    >>> case.left.calls, run.left.calls
    (1.0, 2.0)
    """

    def __init__(self, limits: Limits, inside: Purse | None = None, scope: str = "") -> None:
        self.limits = limits
        self._inside = inside
        self._scope = scope
        self._spent = Cost()
        self._lock = threading.Lock()

    @property
    def spent(self) -> Cost:
        """So far."""
        return self._spent

    @property
    def left(self) -> Limits:
        """What this purse still holds, by kind; None where it has no limit."""
        spent, limits = self._spent, self.limits
        held = {kind: (getattr(limits, kind), getattr(spent, kind)) for kind in Limits.model_fields}
        return Limits(**{kind: None if most is None else max(0.0, most - out) for kind, (most, out) in held.items()})

    def can(self, cost: Cost) -> bool:
        """Whether a cost would fit now; another thread may be faster, so only `spend` is sure."""
        return not self.refusal(cost)

    def refusal(self, cost: Cost) -> str:
        """Say which limits a cost would exceed now, of this purse or of the one around it; empty where it fits."""
        return self._exceeded(cost) or (self._inside.refusal(cost) if self._inside else "")

    def spend(self, cost: Cost) -> bool:
        """Take a cost out of this purse and those around it, or nothing out of any."""
        return not self.pay(cost)

    def pay(self, cost: Cost) -> str:
        """Spend, and where nothing was taken say why, as `refusal` does."""
        # Locks are always taken from the inner purse to the outer one, so two spenders cannot wait for each other.
        with self._lock:
            refused = self._exceeded(cost) or (self._inside.pay(cost) if self._inside else "")
            if not refused:
                self._spent += cost
            return refused

    def settle(self, estimate: Cost, actual: Cost) -> None:
        """Put back what was spent as an estimate, and take what it really was, here and in those around."""
        with self._lock:
            if self._inside:
                self._inside.settle(estimate, actual)
            paid = {k: getattr(self._spent, k) - getattr(estimate, k) + getattr(actual, k) for k in Cost.model_fields}
            self._spent = Cost(**{kind: max(0.0, amount) for kind, amount in paid.items()})

    def _exceeded(self, cost: Cost) -> str:
        refused = self.limits.exceeded(cost, self._spent)
        return f"{refused} {self._scope}" if refused and self._scope else refused


class Account:
    """The purse of a run, and in it one for each of its cases. Any number of agents and threads may share one.

    Parameters
    ----------
    budget : Budget

    Examples
    --------
    >>> account = Account(Budget(per_case=Limits(calls=2), per_run=Limits(calls=3)))
    >>> [account.purse(case).pay(Cost(vlm_calls=1)) for case in ("a", "a", "a", "b", "b")]
    ['', '', 'calls 3 of 2 a case', '', 'calls 4 of 3 a run']
    """

    def __init__(self, budget: Budget) -> None:
        self.run = Purse(budget.per_run, scope="a run")
        self._per_case = budget.per_case
        self._cases: dict[str, Purse] = {}

    def purse(self, case: str) -> Purse:
        """Return the purse of a case by its id; the run's own where cases have no limits."""
        if self._per_case == Limits():
            return self.run
        return self._cases.setdefault(case, Purse(self._per_case, inside=self.run, scope="a case"))
