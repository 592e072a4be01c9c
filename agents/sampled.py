"""Belief by sampling: an agent asked several times, and how often it said what."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from secondlook.agents.base import Agent, Wrapper
from secondlook.agents.case import Case
from secondlook.agents.prediction import FREE, Failure, Outcome, Prediction


class Sampled(Wrapper):
    """Wrapper: the shares of the labels over several draws of the same question.

    A draw's label is its top one. At least half of the draws must succeed, and the shares are over those that do. The
    reason is the first that was given for the label with the largest share; the case is to be looked at again where
    more than half of the draws say so.

    Parameters
    ----------
    agent : Agent
        Must answer by chance, and differently for each `Case.draw`: with a temperature above 0.
    draws : int

    Raises
    ------
    ValueError
        When there are fewer than two draws.

    References
    ----------
    Wang et al., "Self-consistency improves chain of thought reasoning in language models", ICLR 2023,
    https://arxiv.org/abs/2203.11171

    Examples
    --------
    >>> import anyio
    >>> from secondlook.agents.fakes import ScriptedAgent
    >>> from secondlook.agents.photo import Photo
    >>> moody = ScriptedAgent("moody", lambda case: (0.6, 0.4) if case.draw < 3 else (0.1, 0.9))
    >>> (outcome,) = anyio.run(Sampled(moody, draws=4).predict, [Case(id="a", photo=Photo.of(b""))])
    >>> outcome.scale, outcome.scores
    ('sampled', (0.75, 0.25))
    """

    def __init__(self, agent: Agent, draws: int) -> None:
        if draws < 2:
            raise ValueError(f"draws: expected 2 or more, got {draws}")
        super().__init__(agent)
        self.draws = draws

    @property
    def cost(self) -> Mapping[str, float]:
        """What all draws for one case cost as the wrapped agent declares it, by kind."""
        return {kind: amount * self.draws for kind, amount in super().cost.items()}

    def key(self, case: Case) -> str:
        """Digest of the question and the number of draws."""
        return hashlib.sha256(f"{self.draws} draws of {super().key(case)}".encode()).hexdigest()

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge a batch; see `Agent.predict`. The wrapped agent is asked for all draws of all cases at once."""
        drawn = [case.model_copy(update={"draw": draw}) for case in cases for draw in range(self.draws)]
        outcomes = await self._agent.predict(drawn)
        return [self._shares(case, outcomes[i * self.draws : (i + 1) * self.draws]) for i, case in enumerate(cases)]

    def _shares(self, case: Case, outcomes: Sequence[Outcome]) -> Outcome:
        said = [outcome for outcome in outcomes if isinstance(outcome, Prediction)]
        failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        cost = sum((outcome.cost for outcome in outcomes), FREE)
        if 2 * len(said) < len(outcomes):
            waits = [failure.retry_after_s for failure in failed if failure.retry_after_s is not None]
            error = f"{len(failed)} of {len(outcomes)} draws failed, the first so: {failed[0].error}"
            return Failure(
                agent=self.name,
                look=case.look,
                error=error,
                retry_after_s=max(waits, default=None),
                cost=cost,
                reached=all(failure.reached for failure in failed),
            )
        tops = [prediction.top for prediction in said]
        shares = tuple(tops.count(label) / len(said) for label in range(len(said[0].scores)))
        winner = shares.index(max(shares))
        reasons = (prediction.reason for prediction in said if prediction.top == winner and prediction.reason)
        return Prediction(
            agent=self.name,
            look=case.look,
            scale="sampled",
            scores=shares,
            reason=next(reasons, ""),
            again=2 * sum(prediction.again for prediction in said) > len(said),
            prompt=said[0].prompt,
            cost=cost,
        )
