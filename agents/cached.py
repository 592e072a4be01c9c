"""Answers that are kept: what was asked before is not asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

from secondlook.agents.answer_cache import AnswerCache, Flight
from secondlook.agents.base import Keyed, Wrapper, together
from secondlook.agents.case import Case
from secondlook.agents.errors import AgentError
from secondlook.agents.prediction import FREE, Failure, Outcome, Prediction


class Cached(Wrapper):
    """Wrapper: a question that was answered before is not asked again, and one that is being asked is asked once.

    Only predictions are kept, each before it is returned, under the agent's `key`. One that comes from the cache, or
    that another caller is paying for, costs nothing.

    Parameters
    ----------
    agent : Keyed
    cache : AnswerCache
        Any number of agents, event loops and threads may share one.
    batched : bool
        Whether the agent is asked about all unknown cases of a batch in one call, as a model on this machine is. By
        default it is asked about each in a call of its own, all at once, so that each answer is kept when it comes.

    Examples
    --------
    An agent with a key; the second time it is not asked.

    >>> import tempfile, anyio
    >>> from pathlib import Path
    >>> from secondlook.agents.fakes import ScriptedAgent
    >>> from secondlook.agents.photo import Photo
    >>> class KeyedScript(ScriptedAgent):
    ...     def key(self, case: Case) -> str:
    ...         return f"{case.photo.digest} {case.draw}"
    >>> script, case = KeyedScript("eye", (0.9, 0.1)), Case(id="a", photo=Photo.of(b"file"))
    >>> with tempfile.TemporaryDirectory() as folder, AnswerCache(Path(folder)) as cache:
    ...     for _ in range(2):
    ...         outcomes = anyio.run(Cached(script, cache).predict, [case, case])
    >>> len(outcomes), script.asked
    (2, 1)
    """

    def __init__(self, agent: Keyed, cache: AnswerCache, *, batched: bool = False) -> None:
        super().__init__(agent)
        self._cache = cache
        self._batched = batched

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge a batch; see `Agent.predict`.

        Raises
        ------
        ConfigError
            When the cache cannot be used.
        """
        if self._batched:
            return await self._ask(cases)
        each = await together([partial(self._ask, [case]) for case in cases])
        return [outcome for (outcome,) in each]

    async def _ask(self, cases: Sequence[Case]) -> list[Outcome]:
        """Ask about those of some cases that nobody knows or asks about, then wait for the others."""
        keys = [self._key(case) for case in cases]
        flights: dict[str, Flight] = {}
        mine: dict[str, Case] = {}
        try:
            for key, case in zip(keys, cases, strict=True):
                if isinstance(key, str) and key not in flights:
                    flights[key] = self._cache.join(key)
                    if flights[key].is_mine:
                        mine[key] = case
            await self._fetch(mine)
        finally:
            for key in mine:
                if not flights[key].landed.done():
                    self._cache.land(key, None)
        outcomes: list[Outcome] = []
        for key, case in zip(keys, cases, strict=True):
            if isinstance(key, Failure):
                outcomes.append(key)
                continue
            is_mine = mine.pop(key, None) is not None
            outcome = await self._landed(flights[key], case, is_mine)
            outcomes.append(outcome.model_copy(update={"agent": self.name, "look": case.look}))
        return outcomes

    async def _fetch(self, mine: Mapping[str, Case]) -> None:
        """Land what this caller is to ask: from the cache, or from the agent by way of the cache."""
        asked: dict[str, Case] = {}
        for key, case in mine.items():
            if known := self._cache.get(key):
                self._cache.land(key, known.model_copy(update={"cost": FREE}))
            else:
                asked[key] = case
        if not asked:
            return
        outcomes = await self._agent.predict(list(asked.values()))
        # Nothing is awaited from here on: what was paid for is kept, even where this task was cancelled meanwhile.
        for key, outcome in zip(asked, outcomes, strict=True):
            if isinstance(outcome, Prediction):
                outcome = self._cache.add(key, outcome).model_copy(update={"cost": outcome.cost})
            self._cache.land(key, outcome)

    async def _landed(self, flight: Flight, case: Case, is_mine: bool) -> Outcome:
        """Wait for an outcome, for which another pays unless it is one's own; where the other gave up, ask."""
        landed = flight.landed
        outcome = landed.result() if landed.done() else await asyncio.wrap_future(landed)
        if outcome is None:
            (outcome,) = await self._ask([case])
            return outcome
        return outcome if is_mine else outcome.model_copy(update={"cost": FREE})

    def _key(self, case: Case) -> str | Failure:
        try:
            return self.key(case)
        except AgentError as error:
            return self._failure(case, str(error))
