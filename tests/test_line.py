"""All who call an endpoint share its slots, its rate and its circuit breaker, in whatever event loop or thread."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

from secondlook.agents.endpoint import Endpoint
from secondlook.agents.errors import AgentError
from secondlook.agents.line import ClosedLineError, Line, Slots, line_of

URL = "http://127.0.0.1:1/v1"


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Crowd:
    """Counts who is inside at the same time, over all threads."""

    def __init__(self) -> None:
        self.inside = self.most = self.came = 0
        self._lock = threading.Lock()

    async def stay(self, seconds: float) -> None:
        with self._lock:
            self.inside += 1
            self.came += 1
            self.most = max(self.most, self.inside)
        try:
            await anyio.sleep(seconds)
        finally:
            with self._lock:
                self.inside -= 1


def in_threads(number: int, main: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Run an event loop in each of some threads."""
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            asyncio.run(main(i))
        except BaseException as error:  # noqa: BLE001, told to the test below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not errors


async def call(line: Line, served: bool | None) -> None:
    async with line.turn() as turn:
        turn.served = served


def test_no_more_calls_than_slots_at_once_over_three_event_loops() -> None:
    line, crowd = Line(URL, concurrency=4), Crowd()

    async def one() -> None:
        async with line.turn():
            await crowd.stay(0.005)

    async def main(_: int) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(one)

    in_threads(3, main)
    assert crowd.came == 60
    assert crowd.most == 4, "and all four are used"


def test_whoever_has_waited_longest_is_next() -> None:
    slots, order = Slots(1), []

    async def one(i: int) -> None:
        await slots.acquire()
        order.append(i)
        await anyio.sleep(0)
        slots.release()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for i in range(6):
                tasks.start_soon(one, i)

    asyncio.run(main())
    assert order == list(range(6))


def test_whoever_gives_up_waiting_takes_no_slot_with_him() -> None:
    slots = Slots(1)

    async def main() -> None:
        await slots.acquire()
        waiting = [asyncio.create_task(slots.acquire()) for _ in range(3)]
        await anyio.sleep(0)
        waiting[0].cancel()
        slots.release()  # handed to the second, who is cancelled before he can run
        waiting[1].cancel()
        await waiting[2]
        assert [task.cancelled() for task in waiting] == [True, True, False]
        slots.release()
        await slots.acquire()

    asyncio.run(asyncio.wait_for(main(), 5))


def test_no_slot_is_lost_or_won_where_many_give_up_in_many_threads() -> None:
    slots, crowd = Slots(3), Crowd()

    async def one(rng: random.Random) -> None:
        with anyio.move_on_after(rng.random() * 0.02):
            await slots.acquire()
            try:
                await crowd.stay(rng.random() * 0.004)
            finally:
                slots.release()

    async def main(seed: int) -> None:
        rng = random.Random(seed)
        async with anyio.create_task_group() as tasks:
            for _ in range(60):
                tasks.start_soon(one, rng)
                await anyio.sleep(rng.random() * 0.002)

    in_threads(4, main)
    assert crowd.came > 0
    assert crowd.most <= 3

    async def all_are_there() -> None:
        for _ in range(3):
            await asyncio.wait_for(slots.acquire(), 1)

    asyncio.run(all_are_there())


def test_calls_are_spaced_evenly_over_event_loops() -> None:
    line, moments = Line(URL, concurrency=8, per_second=200), []

    async def one() -> None:
        async with line.turn() as turn:
            await line.pace(turn)
            moments.append(time.monotonic())

    async def main(_: int) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(one)

    in_threads(2, main)
    # 12 calls have 11 gaps of 5 ms; a timer may ring some tenths of a millisecond early.
    assert max(moments) - min(moments) >= 11 * 0.005 - 0.002


def test_after_five_failures_in_a_row_calls_fail_at_once_with_the_endpoint_and_since_when() -> None:
    clock = Clock()
    line = Line(URL, clock=clock)

    async def main() -> None:
        for _ in range(5):
            clock.now += 1
            await call(line, served=False)
        clock.now += 1
        with pytest.raises(ClosedLineError) as caught:
            await call(line, served=True)
        message = str(caught.value)
        assert message.startswith(f"{URL} has served none of the last calls (5 in a row) since 20")
        assert message.endswith("It is tried again in 29 s.")
        assert caught.value.retry_after_s == 29
        assert isinstance(caught.value, AgentError)

    asyncio.run(main())


def test_a_rested_line_is_tried_by_one_call_that_opens_it_or_closes_it_again() -> None:
    clock = Clock()
    line = Line(URL, failures=2, rest_s=10, clock=clock)

    async def trial(served: bool | None) -> None:
        async with line.turn() as turn:
            with pytest.raises(ClosedLineError, match="being tried"):
                await call(line, served=True)
            turn.served = served

    async def main() -> None:
        for _ in range(2):
            await call(line, served=False)
        clock.now = 10
        await trial(served=False)
        clock.now = 19
        with pytest.raises(ClosedLineError, match="3 in a row"):
            await call(line, served=True)
        clock.now = 20
        await trial(served=None)  # the image could not be read: nothing is known, the next call tries
        await trial(served=True)
        await call(line, served=True)

    asyncio.run(main())


def test_a_trial_that_is_cancelled_leaves_the_next_call_to_try() -> None:
    clock = Clock()
    line = Line(URL, failures=1, rest_s=10, clock=clock)

    async def main() -> None:
        await call(line, served=False)
        clock.now = 10
        with anyio.move_on_after(0.001):
            async with line.turn():
                await anyio.sleep(5)
        await call(line, served=True)

    asyncio.run(main())


def test_failures_of_calls_that_overlap_count_once() -> None:
    line = Line(URL, concurrency=32)

    async def main() -> None:
        everybody = anyio.Event()

        async def broken_off() -> None:
            async with line.turn() as turn:
                await everybody.wait()
                turn.served = False

        async with anyio.create_task_group() as tasks:
            for _ in range(32):
                tasks.start_soon(broken_off)
            await anyio.sleep(0.001)
            everybody.set()
        await call(line, served=True)

    asyncio.run(main())


def test_a_success_begins_the_count_anew_and_what_says_nothing_changes_nothing() -> None:
    line = Line(URL, failures=3)

    async def main() -> None:
        for served in (False, False, True, False, None, False):
            await call(line, served=served)
        await call(line, served=False)
        with pytest.raises(ClosedLineError):
            await call(line, served=True)

    asyncio.run(main())


def test_those_who_wait_for_a_slot_are_told_when_the_line_closes() -> None:
    line = Line(URL, concurrency=1, failures=1)

    async def main() -> list[object]:
        async def fail() -> None:
            async with line.turn() as turn:
                await anyio.sleep(0.001)
                turn.served = False

        return list(await asyncio.gather(fail(), *(call(line, served=True) for _ in range(4)), return_exceptions=True))

    first, *others = asyncio.run(main())
    assert first is None
    assert [type(other) for other in others] == [ClosedLineError] * 4


def test_an_endpoint_has_one_line_with_the_strictest_limits_of_all_who_share_it() -> None:
    line = line_of(Endpoint(base_url="http://127.0.0.1:9/v1", concurrency=8))
    same = line_of(Endpoint(base_url="http://127.0.0.1:9/v1/", concurrency=2, per_second=5))
    assert same is line
    assert (line.concurrency, line.per_second) == (2, 5)
    assert line_of(Endpoint(base_url="http://127.0.0.1:9/v1", concurrency=4, per_second=50)) is line
    assert (line.concurrency, line.per_second) == (2, 5)
    assert line_of(Endpoint(base_url="http://127.0.0.1:10/v1")) is not line


def test_a_line_that_nobody_holds_is_forgotten() -> None:
    line = line_of(Endpoint(base_url="http://127.0.0.1:11/v1", concurrency=1))
    assert line.concurrency == 1
    del line
    gc.collect()
    assert line_of(Endpoint(base_url="http://127.0.0.1:11/v1", concurrency=7)).concurrency == 7


def test_more_slots_wake_those_who_wait() -> None:
    slots = Slots(1)

    async def main() -> None:
        await slots.acquire()
        waiting = asyncio.create_task(slots.acquire())
        await anyio.sleep(0)
        slots.resize(2)
        await asyncio.wait_for(waiting, 1)

    asyncio.run(main())


@pytest.mark.parametrize("bad", [{"concurrency": 0}, {"per_second": 0.0}, {"per_second": float("nan")}])
def test_limits_that_let_nobody_through_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Line(URL, **bad)
