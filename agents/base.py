"""The one interface of everything that looks at cases."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import anyio
import anyio.lowlevel

from secondlook.agents.case import Case
from secondlook.agents.prediction import Failure, Outcome

T = TypeVar("T")


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


class Keyed(Agent, Protocol):
    """An agent that can name the question it would ask."""

    def key(self, case: Case) -> str:
        """Return a digest of everything that decides the answer: endpoint, model, settings, prompt, image, draw.

        Raises
        ------
        AgentError
            When the image cannot be read.
        """
        ...


class Wrapper:
    """Base of the wrappers: says of itself what the agent inside says of itself."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    @property
    def name(self) -> str:
        """The wrapped agent's name."""
        return self._agent.name

    @property
    def cost(self) -> Mapping[str, float]:
        """What the wrapped agent declares that one case costs, by kind; empty where it declares nothing."""
        return getattr(self._agent, "cost", {})

    @property
    def accounted(self) -> bool:
        """Whether each call is paid for when it is made; else what is declared has to be, before."""
        return bool(getattr(self._agent, "accounted", False))

    @property
    def digest(self) -> str:
        """Names what the wrapped agent answers with: model and settings; empty where it does not say."""
        return getattr(self._agent, "digest", "")

    @property
    def prompt(self) -> str:
        """SHA-256 of the wrapped agent's prompt files; empty where it has none."""
        return getattr(self._agent, "prompt", "")

    def key(self, case: Case) -> str:
        """Digest of everything that decides the wrapped agent's answer."""
        return cast("Keyed", self._agent).key(case)

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge a batch; see `Agent.predict`."""
        return await self._agent.predict(cases)

    def _failure(self, case: Case, error: str, retry_after_s: float | None = None, **more: Any) -> Failure:
        return Failure(agent=self.name, look=case.look, error=error, retry_after_s=retry_after_s, **more)


async def together(asks: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """Run all at the same time, and return what they return; the first error ends the others and is raised as it is.

    Examples
    --------
    >>> async def three() -> int:
    ...     return 3
    >>> anyio.run(together, [three, three])
    [3, 3]
    """
    if len(asks) == 1:
        return [await asks[0]()]
    found: dict[int, T] = {}

    async def run(i: int) -> None:
        found[i] = await asks[i]()

    try:
        async with anyio.create_task_group() as tasks:
            for i in range(len(asks)):
                tasks.start_soon(run, i)
                # What has begun goes on before more begins: the first call is not kept waiting by hundreds of others.
                await anyio.lowlevel.checkpoint()
    except BaseExceptionGroup as errors:
        # Where all fail for one reason, such as a key that is missing, the reason is what the user is to be told.
        raise errors.exceptions[0] from None
    return [found[i] for i in range(len(asks))]
