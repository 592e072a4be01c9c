"""A step: something that can be done next about a case, with what it needs and what it costs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Annotated, Self

from pydantic import Field, model_validator

from secondlook.agents.case import Frozen
from secondlook.agents.cost import Cost
from secondlook.agents.errors import ConfigError

PAIRED = 6
"""Steps left at most for which pairs are looked at: of more there would be too many to measure."""


class Step(Frozen):
    """Ask for some columns of opinions, or ask a person.

    Examples
    --------
    >>> vote = Step(name="vote", columns=("neighbour-vote",))
    >>> again = Step(name="qwen@2", columns=("qwen@2",), needs=("neighbour-vote", "qwen"), cost=Cost(vlm_calls=1))
    >>> again.ready({"neighbour-vote"}), vote.ready(())
    (False, True)
    """

    name: str
    columns: tuple[str, ...] = ()
    """What it adds to the opinions."""
    needs: tuple[str, ...] = ()
    """Columns that must have been asked before: a second look needs what it is shown."""
    cost: Cost = Cost()
    """Of taking it for one case. It is paid whether or not the agents answer."""
    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of a person, whose label ends the walk: how often it is right. None for models."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.accuracy is None) != bool(self.columns):
            raise ConfigError(
                f"The step {self.name!r} has columns {list(self.columns)} and accuracy {self.accuracy}.",
                "A step that asks models names columns; one that asks a person names an accuracy.",
            )
        return self

    @property
    def ends(self) -> bool:
        """Whether nothing is asked afterwards."""
        return self.accuracy is not None

    def ready(self, columns: Collection[str]) -> bool:
        """Whether all that it needs is among the columns asked."""
        return set(self.needs) <= set(columns)


def human(cost: Cost | None = None, accuracy: float = 1.0) -> Step:
    """Return the step of asking a person; by default one who is always right."""
    return Step(name="human", cost=cost or Cost(humans=1), accuracy=accuracy)


def check_steps(steps: Sequence[Step]) -> None:
    """Check that steps fit together.

    Raises
    ------
    ConfigError
        When two have one name or one column, or when one needs what no step gives.
    """
    names = [step.name for step in steps]
    given = [column for step in steps for column in step.columns]
    for what, words in (("step", names), ("column", given)):
        if len(set(words)) < len(words):
            raise ConfigError(f"A {what} stands twice in {words}.", "Name each once.")
    for step in steps:
        lacking = sorted(set(step.needs) - set(given))
        if lacking:
            raise ConfigError(f"The step {step.name!r} needs {lacking}, which no step gives.", f"Given: {given}.")


def plans(steps: Sequence[Step], taken: Collection[str]) -> list[tuple[Step, ...]]:
    """Return what may be done next: each step with all that it still needs, and pairs while `PAIRED` steps are left.

    Two first looks may bring together what neither brings alone. A person is a plan alone: what models say just before
    would not change the label that the person gives.

    Examples
    --------
    >>> steps = [
    ...     Step(name="gpt@2", columns=("gpt@2",), needs=("gpt", "vote")),
    ...     Step(name="gpt", columns=("gpt",)),
    ...     Step(name="vote", columns=("vote",)),
    ...     human(),
    ... ]
    >>> [[step.name for step in plan] for plan in plans(steps, ("vote",))]
    [['gpt', 'gpt@2'], ['gpt'], ['human']]
    """
    asked = [column for step in steps if step.name in taken for column in step.columns]
    left = [step for step in steps if step.name not in taken]
    sets = [_with_needs(step, left) for step in left]
    models = [step for step in left if not step.ends]
    if len(left) <= PAIRED:
        sets += [list(pair) for pair in combinations(models, 2)]
    orders = {frozenset(step.name for step in chosen): in_order(chosen, asked) for chosen in sets}
    return [order for order in orders.values() if order]


def _with_needs(step: Step, left: Sequence[Step]) -> list[Step]:
    """Return a step and those left that it needs, and that they need, in the order of `left`."""
    names, needs = {step.name}, set(step.needs)
    for _ in left:
        more = [other for other in left if needs & set(other.columns)]
        names |= {other.name for other in more}
        needs |= {need for other in more for need in other.needs}
    return [other for other in left if other.name in names]


def in_order(chosen: Sequence[Step], asked: Collection[str]) -> tuple[Step, ...]:
    """Sort steps so that each is ready when its turn comes, else as given; empty where there is no such order."""
    columns, waiting, order = set(asked), list(chosen), list[Step]()
    while waiting:
        first = next((step for step in waiting if step.ready(columns)), None)
        if first is None:
            return ()
        waiting.remove(first)
        order.append(first)
        columns |= set(first.columns)
    return tuple(order)
