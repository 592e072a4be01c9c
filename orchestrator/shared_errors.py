"""Errors that agents share: what their agreement is worth."""

from __future__ import annotations

from secondlook.agents.case import Frozen, MaybeNan


class SharedErrors(Frozen):
    """How two agents err together, on the held-out cases that both answered."""

    agents: tuple[str, str]
    """Two columns."""
    n: int
    """Cases that both answered."""
    phi: MaybeNan
    """Pearson correlation of the two error indicators; nan where one of them never errs, or always."""
    both_wrong: MaybeNan
    """Share of cases where both are wrong."""
    agree: MaybeNan
    """Share of cases where both give one label."""
    wrong_of_agreed: MaybeNan
    """Share of those where that label is wrong; nan where they never agree."""
