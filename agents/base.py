"""The one interface of everything that looks at cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from secondlook.agents.case import Case
from secondlook.agents.prediction import Outcome


@runtime_checkable
class Agent(Protocol):
    """Anything that looks at a batch of cases and says what it sees."""

    @property
    def name(self) -> str:
        """The agent's name in track records, verdicts and reports."""
        ...

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge a batch.

        Parameters
        ----------
        cases : sequence of Case
            All of one look: with evidence or without.

        Returns
        -------
        list of Outcome
            As many as cases, in their order. A case that cannot be judged yields a `Failure`.
        """
        ...
