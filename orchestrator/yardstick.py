"""The yardstick: held-out figures that the figures of a working model are held against."""

from __future__ import annotations

from pydantic import Field

from secondlook.agents.case import Frozen
from secondlook.orchestrator.drift import upper_limit


class ErrorRate(Frozen):
    """Errors of one column on the held-out cases that it is asked about in a run; a failure counts as an error.

    Examples
    --------
    >>> record = ErrorRate(wrong=5, n=98)
    >>> round(record.expected, 3), round(record.limit, 3)
    (0.06, 0.104)
    """

    wrong: float
    """Sum over the units of their share wrong."""
    n: int
    """Units: groups, or cases without one."""

    @property
    def rate(self) -> float:
        """Share wrong; nan without a unit."""
        return self.wrong / self.n if self.n else float("nan")

    @property
    def expected(self) -> float:
        """(wrong + 1) / (n + 2): a record without an error is no claim of perfection."""
        return (self.wrong + 1) / (self.n + 2)

    @property
    def limit(self) -> float:
        """Highest rate that the record is compatible with, one-sided at 95 %; nan without a unit."""
        return upper_limit(self.wrong, self.n)


class Yardstick(Frozen):
    """What `fit` measured for later."""

    errors: dict[str, ErrorRate] = Field(default_factory=dict)
    """By column; of a second look, on the held-out cases that look again."""
    confidence: tuple[float, ...] = ()
    """Of held-out units at their first look: cross-fitted belief in the top label."""
    agreement: tuple[float, ...] = ()
    """Of the same: mean probability that the agents who answered give that label."""
