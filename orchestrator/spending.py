"""Spending: the looks of a run, each paid for before it is taken."""

from __future__ import annotations

from collections.abc import Mapping

from secondlook.agents.cost import Budget, Cost, Purse


class Spending:
    """The purse of a run, for any number of batches and threads.

    Parameters
    ----------
    budget : Budget
    looks : mapping of int to Cost
        What each look at one case costs, as declared; what it really takes is not measured.

    Examples
    --------
    >>> from secondlook.agents.cost import Limits
    >>> run = Spending(Budget(per_run=Limits(looks=1)), {1: Cost(), 2: Cost(looks=1)})
    >>> [run.pay(1), run.pay(2), run.pay(1), run.pay(2)]
    ['', '', '', 'looks 2 of 1 a run']
    """

    def __init__(self, budget: Budget, looks: Mapping[int, Cost]) -> None:
        self._per_case = budget.per_case
        self._purse = Purse(budget.per_run)
        self._free = budget == Budget()
        self._looks = looks

    @property
    def spent(self) -> Cost:
        """So far; nothing is counted where there is no limit."""
        return self._purse.spent

    def pay(self, look: int) -> str:
        """Pay for a case's next look.

        Returns
        -------
        str
            Empty; or, where nothing was paid, which limits the look would exceed, with the numbers.
        """
        if self._free:
            return ""
        case = sum((cost for number, cost in self._looks.items() if number <= look), Cost())
        if too_much := self._per_case.exceeded(case):
            return f"{too_much} a case"
        cost = self._looks[look]
        return "" if self._purse.spend(cost) else f"{self._purse.refusal(cost)} a run"
