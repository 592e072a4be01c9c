"""The line to an endpoint: how many calls at once, how many a second, and none where nobody answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import anyio

from secondlook.agents.errors import AgentError

if TYPE_CHECKING:
    from secondlook.agents.endpoint import Endpoint

FAILURES = 5
"""Calls in a row that find nobody before the line is closed."""
REST_S = 30.0
"""Seconds that it is closed before one call tries again."""


class ClosedLineError(AgentError):
    """Nobody answered at the endpoint, several times in a row; nothing was sent."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class Slots:
    """A semaphore that tasks of any event loop in any thread share; first come, first served.

    Those of asyncio and anyio belong to one event loop; here a pipeline has its own, and each `fit` starts several.
    """

    def __init__(self, number: int) -> None:
        if number < 1:
            raise ValueError(f"number: expected 1 or more, got {number}")
        self.number = number
        self._taken = 0
        self._waiting: deque[Future[None]] = deque()
        self._lock = threading.Lock()

    async def acquire(self) -> None:
        """Wait until a slot is free, and take it."""
        with self._lock:
            if self._taken < self.number and not self._waiting:
                self._taken += 1
                return
            turn: Future[None] = Future()
            self._waiting.append(turn)
        try:
            await asyncio.wrap_future(turn)
        except BaseException:
            if not turn.cancel():  # it was this task's turn at the very moment in which the task was cancelled
                self.release()
            raise

    def release(self) -> None:
        """Give the slot to the one who has waited longest."""
        with self._lock:
            self._taken -= 1
            turns = self._next()
        for turn in turns:
            turn.set_result(None)

    def resize(self, number: int) -> None:
        """Change the number of slots; those taken are given back as ever."""
        with self._lock:
            self.number = number
            turns = self._next()
        for turn in turns:
            turn.set_result(None)

    def _next(self) -> list[Future[None]]:
        """Take the free slots for those who wait and have not given up."""
        turns = []
        while self._taken < self.number and self._waiting:
            turn = self._waiting.popleft()
            if turn.set_running_or_notify_cancel():
                self._taken += 1
                turns.append(turn)
        return turns


@dataclass
class Turn:
    """One call over the line. Say how it went; where nothing is said, it tells nothing about the endpoint."""

    began: float
    is_trial: bool = False
    served: bool | None = None
    """True where the endpoint did its work, False where it could not be reached or broke off."""


class Line:
    """What all agents of an endpoint share: slots, a rate, and a circuit breaker.

    The breaker counts turns that were not served. After `failures` of them in a row the line is closed: no turn begins
    until it has rested, then one does, as a trial, and opens the line again or closes it for another rest. Turns that
    overlap count as one, so that a restart which breaks off all calls at once is one failure and not many.

    Parameters
    ----------
    name : str
        What messages call the endpoint.
    concurrency : int
        Calls at once, over all event loops and threads of this process.
    per_second : float, optional
        Calls a second, evenly spaced; any number by default.
    failures : int
    rest_s : float
        Seconds.
    clock : callable
        Monotonic seconds.

    Examples
    --------
    >>> line = Line("http://127.0.0.1:8000", concurrency=2, failures=1)
    >>> async def call(served: bool) -> None:
    ...     async with line.turn() as turn:
    ...         turn.served = served
    >>> anyio.run(call, True)
    >>> anyio.run(call, False)
    >>> anyio.run(call, True)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    secondlook.agents.line.ClosedLineError: http://127.0.0.1:8000 has served none of the last calls...
    """

    def __init__(
        self,
        name: str,
        concurrency: int = 8,
        per_second: float | None = None,
        *,
        failures: int = FAILURES,
        rest_s: float = REST_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if per_second is not None and not per_second > 0:
            raise ValueError(f"per_second: expected more than 0, got {per_second}")
        self.name = name
        self._slots = Slots(concurrency)
        self._per_second = per_second
        self._failures, self._rest_s, self._clock = failures, rest_s, clock
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._in_a_row = 0
        self._failed_at = float("-inf")
        self._since = ""
        self._is_tried = False

    @property
    def concurrency(self) -> int:
        """Calls at once."""
        return self._slots.number

    @property
    def per_second(self) -> float | None:
        """Calls a second; None where there is no limit."""
        return self._per_second

    def tighten(self, concurrency: int, per_second: float | None) -> None:
        """Keep to the stricter of what was agreed so far and this."""
        if concurrency < self._slots.number:
            self._slots.resize(concurrency)
        with self._lock:
            self._per_second = min(filter(None, (self._per_second, per_second)), default=None)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Wait for a slot and hold it; before the call, `pace`.

        Raises
        ------
        ClosedLineError
            At once, and without a wait, where the breaker is open.
        """
        self._check()
        await self._slots.acquire()
        try:
            turn = self._begin()
            try:
                yield turn
            finally:
                self._end(turn)
        finally:
            self._slots.release()

    async def pace(self, turn: Turn) -> None:
        """Reserve the next moment at which a call may go out, and wait for it."""
        if self._per_second:
            with self._lock:
                now = self._clock()
                moment = max(now, self._next_at)
                self._next_at = moment + 1 / self._per_second
            await anyio.sleep(moment - now)
        turn.began = self._clock()

    def _check(self) -> None:
        """Refuse while the line rests or is being tried."""
        if self._in_a_row < self._failures:
            return
        left = self._failed_at + self._rest_s - self._clock()
        if left > 0 or self._is_tried:
            again = f"It is tried again in {left:.0f} s" if left > 0 else "It is being tried again"
            raise ClosedLineError(
                f"{self.name} has served none of the last calls ({self._in_a_row} in a row) since {self._since}. "
                f"{again}.",
                max(0.0, left),
            )

    def _begin(self) -> Turn:
        with self._lock:
            self._check()
            is_trial = self._in_a_row >= self._failures
            self._is_tried |= is_trial
            return Turn(self._clock(), is_trial)

    def _end(self, turn: Turn) -> None:
        with self._lock:
            self._is_tried &= not turn.is_trial
            if turn.served:
                self._in_a_row = 0
            elif turn.served is False and turn.began >= self._failed_at:
                if not self._in_a_row:
                    self._since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
                self._in_a_row += 1
                self._failed_at = self._clock()


_LINES: WeakValueDictionary[str, Line] = WeakValueDictionary()
_LOCK = threading.Lock()


def line_of(endpoint: Endpoint) -> Line:
    """Return the line to an endpoint: one in this process for each URL, as long as anybody holds it.

    Where the agents of a URL ask for different limits, the strictest count.
    """
    parts = urlsplit(endpoint.base_url)
    place = parts.netloc.rpartition("@")[2].lower()
    name = f"{parts.scheme}://{place}{parts.path.rstrip('/')}"
    with _LOCK:
        line = _LINES.get(name)
        if line is None:
            line = _LINES[name] = Line(name, endpoint.concurrency, endpoint.per_second)
        else:
            line.tighten(endpoint.concurrency, endpoint.per_second)
        return line
