"""Answers that were given before: an agent that says what its record says, and calls no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secondlook.agents.case import Case
from secondlook.agents.prediction import Failure, Outcome


class RecordedAgent:
    """An agent whose answers stand in a record, by look and by the id of the case.

    Parameters
    ----------
    name : str
        Put on the outcomes.
    answers : mapping of int to mapping of str to Outcome
        For each look (1 without evidence, 2 with), the outcome of each case by its id. A case that is not in the
        record yields a `Failure`.

    Raises
    ------
    ValueError
        When an outcome of the record names another agent or look.

    Examples
    --------
    >>> import anyio
    >>> from secondlook.agents.photo import Photo
    >>> from secondlook.agents.prediction import Prediction
    >>> said = Prediction(agent="vlm", scale="probability", scores=(0.9, 0.1))
    >>> agent = RecordedAgent("vlm", {1: {"leaf-1": said}})
    >>> cases = [Case(id=name, photo=Photo.of(b"", name=name)) for name in ("leaf-1", "leaf-2")]
    >>> [type(outcome).__name__ for outcome in anyio.run(agent.predict, cases)]
    ['Prediction', 'Failure']
    """

    def __init__(self, name: str, answers: Mapping[int, Mapping[str, Outcome]]) -> None:
        for look, record in answers.items():
            for case, outcome in record.items():
                if (outcome.agent, outcome.look) != (name, look):
                    raise ValueError(
                        f"answers of {case!r}: expected agent {name!r} at look {look}, "
                        f"got {outcome.agent!r} at look {outcome.look}"
                    )
        self._name = name
        self._answers = {look: dict(record) for look, record in answers.items()}

    @property
    def name(self) -> str:
        """The agent's name in track records, verdicts and reports."""
        return self._name

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Look up a batch; see `Agent.predict`. No photo is opened."""
        return [self._answers.get(case.look, {}).get(case.id) or self._unrecorded(case) for case in cases]

    def _unrecorded(self, case: Case) -> Failure:
        return Failure(agent=self.name, look=case.look, error=f"no answer is recorded at look {case.look}")
