"""What makes an agent that is far away fit for work: retries, and money. Each wraps an agent and is one.

Wrappers are put on in one order::

    Calibrated(Sampled(Cached(Resilient(Budgeted(agent)))))

so that a calibrator can be fitted again without asking again, only answers are kept, every retry is paid for, and the
budget is checked before each call. Retries are made here and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Self

import anyio
from pydantic import Field
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_result,
    stop_after_attempt,
    wait_random_exponential,
)

from secondlook.agents.base import Agent, Wrapper, together
from secondlook.agents.case import Case, Frozen
from secondlook.agents.cost import Account, Cost
from secondlook.agents.errors import AgentError
from secondlook.agents.line import ClosedLineError, Line
from secondlook.agents.prediction import FREE, Failure, Outcome, Prediction

if TYPE_CHECKING:
    from secondlook.agents.endpoint import Endpoint

MARGIN_S = 5.0


class Patience(Frozen):
    """How long an agent is waited for."""

    attempts: int = Field(4, ge=1)
    """Calls for one case, the first included."""
    timeout_s: float = Field(60.0, gt=0)
    """Seconds for one call."""
    first_wait_s: float = Field(0.5, ge=0)
    """Longest wait before the second call, in seconds; it doubles with each further one."""
    longest_wait_s: float = Field(20.0, ge=0)
    """What it doubles up to."""
    max_wait_s: float = Field(120.0, ge=0)
    """Seconds between the calls for one case, all together."""

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        """As an endpoint is configured; a call has a little longer than it gives itself, to say what happened."""
        return cls(attempts=endpoint.attempts, timeout_s=endpoint.timeout_s + MARGIN_S)


class Resilient(Wrapper):
    """Wrapper: each case in a call of its own, all at once over the endpoint's line, and again where that may help.

    A call that failed is made again after the longer of what the endpoint asked for and a random time below a bound
    that doubles; never more often, nor after more waiting, than `Patience` says, and not over a line that is closed.
    The cost of an outcome is that of all calls made for it.

    An `AgentError` becomes a `Failure` with its text; another error of the system (`OSError`) becomes one that may be
    repeated, with its type alone, since its text might hold anything. All other exceptions are bugs, or the user's to
    put right, and propagate; so does cancellation.

    Parameters
    ----------
    agent : Agent
    line : Line
        See `secondlook.agents.line.line_of`.
    patience : Patience

    References
    ----------
    Brooker, "Exponential backoff and jitter", AWS Architecture Blog, 2015,
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/: the waits are "full jitter".
    """

    def __init__(self, agent: Agent, line: Line, patience: Patience | None = None) -> None:
        super().__init__(agent)
        self._line = line
        self._patience = patience or Patience()
        self._backoff = wait_random_exponential(
            multiplier=self._patience.first_wait_s, max=self._patience.longest_wait_s
        )

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge a batch; see `Agent.predict`."""
        return await together([partial(self._ask, case) for case in cases])

    async def _ask(self, case: Case) -> Outcome:
        """Ask until there is an answer, or no more may be asked."""
        spent: list[Cost] = []

        async def attempt() -> Outcome:
            async with self._line.turn() as turn:
                if isinstance(self._agent, Budgeted) and (refused := self._agent.refusal(case)):
                    return refused  # before the wait for the rate, which would be for nothing
                await self._line.pace(turn)
                outcome = await self._call(case)
                turn.served = _is_served(outcome)
            spent.append(outcome.cost)
            return outcome

        enough = stop_after_attempt(self._patience.attempts)
        # An `AsyncRetrying` keeps its state by thread, so every case has its own.
        retrying = AsyncRetrying(
            retry=retry_if_result(_may_be_repeated),
            wait=self._wait,
            stop=lambda state: enough(state) or self._waits_too_long(state),
            sleep=anyio.sleep,
            retry_error_callback=_last,
        )
        try:
            outcome: Outcome = await retrying(attempt)
        except ClosedLineError as error:
            outcome = self._failure(case, str(error), error.retry_after_s, reached=False)
        if isinstance(outcome, Failure) and len(spent) > 1:
            outcome = outcome.model_copy(update={"error": f"{outcome.error} (asked {len(spent)} times)"})
        return outcome.model_copy(update={"cost": sum(spent, FREE)})

    def _wait(self, state: RetryCallState) -> float:
        failed = _last(state)
        asked_for = failed.retry_after_s if isinstance(failed, Failure) else None
        return max(asked_for or 0.0, self._backoff(state))

    def _waits_too_long(self, state: RetryCallState) -> bool:
        return state.idle_for + state.upcoming_sleep > self._patience.max_wait_s

    async def _call(self, case: Case) -> Outcome:
        start = time.perf_counter()
        error = f"no answer within {self._patience.timeout_s:g} s"
        retry_after_s: float | None = 0.0
        try:
            with anyio.move_on_after(self._patience.timeout_s):
                (outcome,) = await self._agent.predict([case])
                return outcome
        except AgentError as failed:
            error, retry_after_s = str(failed), None
        except OSError as failed:
            error = f"the call broke off ({type(failed).__name__})"
        # Nobody measured this call. It may have been made, so it counts as it was declared.
        cost = Cost(**{**self.cost, "seconds": time.perf_counter() - start})
        return self._failure(case, error, retry_after_s, reached=False, cost=cost)


def _last(state: RetryCallState) -> Outcome:
    assert state.outcome is not None
    outcome: Outcome = state.outcome.result()
    return outcome


def _may_be_repeated(outcome: Outcome) -> bool:
    return isinstance(outcome, Failure) and outcome.retry_after_s is not None


def _is_served(outcome: Outcome) -> bool | None:
    """Whether an endpoint did its work, as `Turn.served` says.

    One that names a time to come back is busy, not dead. A failure that cannot be repeated says nothing: there may have
    been no call.
    """
    if isinstance(outcome, Prediction):
        return True
    if outcome.retry_after_s is None:
        return None
    return outcome.retry_after_s > 0


class Budgeted(Wrapper):
    """Wrapper: no call is made that the budget does not allow.

    Before a call the purse of its case, and through it that of the run, pays what a call is expected to cost;
    afterwards what was measured takes the place of that. Expected is what the agent declares; of a kind that it does
    not declare, the mean of what was measured so far. So a limit may be exceeded by what the calls that are made at the
    same time cost above what was expected, and by no more. A refusal is a `Failure` with the numbers. A call that is
    broken off counts as expected, since it may have been made.

    Parameters
    ----------
    agent : Agent
    account : Account
        Shared by all agents of a run.
    """

    def __init__(self, agent: Agent, account: Account) -> None:
        super().__init__(agent)
        self._account = account
        self._measured = Cost()
        self._n_measured = 0

    @property
    def accounted(self) -> bool:
        """True: no call is made that was not paid for."""
        return True

    def refusal(self, case: Case) -> Failure | None:
        """Say why a call would be refused now; None where it would not."""
        refused = self._account.purse(case.id).refusal(self._expected())
        return self._refused(case, refused) if refused else None

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge what can be paid for; see `Agent.predict`."""
        expected = self._expected()
        refused = [self._account.purse(case.id).pay(expected) for case in cases]
        paid = [case for case, why in zip(cases, refused, strict=True) if not why]
        said = iter(await self._agent.predict(paid))
        outcomes = [self._refused(c, why) if why else next(said) for c, why in zip(cases, refused, strict=True)]
        for case, outcome, why in zip(cases, outcomes, refused, strict=True):
            if not why:
                self._account.purse(case.id).settle(expected, outcome.cost)
                self._measured += outcome.cost
                self._n_measured += 1
        return outcomes

    def _expected(self) -> Cost:
        mean = self._measured.times(1 / max(1, self._n_measured))
        return Cost(**{**mean.model_dump(), **self.cost})

    def _refused(self, case: Case, refused: str) -> Failure:
        return self._failure(case, f"the budget allows no further call: {refused}", reached=False)
