"""The pipeline: cases in, verdicts out, in order, reading ahead of the encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Self, cast

from anyio.from_thread import start_blocking_portal

from secondlook.agents.case import Case
from secondlook.orchestrator.graph import compile_graph, initial_state
from secondlook.orchestrator.hold import Watch
from secondlook.orchestrator.nodes import Nodes
from secondlook.orchestrator.verdict import Verdict

RECURSION_LIMIT = 25


class Pipeline:
    """A fitted model, ready to judge.

    Parameters
    ----------
    nodes : Nodes
    batch_size : int
        Cases of a micro-batch; at most two of them are in memory.
    on_close : callable, optional
        Lets go of what was opened for it.
    read_ahead : bool
        Whether to read, decode and preprocess the next batch while one is judged. It pays where the encoder runs on
        a GPU; on the same cores the two get in each other's way.
    watch : Watch, optional
        What the model's ledger says of it.
    """

    def __init__(
        self,
        nodes: Nodes,
        batch_size: int = 64,
        on_close: Callable[[], None] | None = None,
        *,
        read_ahead: bool = False,
        watch: Watch | None = None,
    ) -> None:
        self.nodes = nodes
        self.model = nodes.model
        self.embedder = nodes.embedder
        self.batch_size = batch_size
        self.watch = watch
        self._on_close = on_close
        self._read_ahead = read_ahead
        self._graph = compile_graph(nodes)

    async def judge(self, cases: Iterable[Case]) -> list[Verdict]:
        """Judge one batch.

        Returns
        -------
        list of Verdict
            In the order of the cases.
        """
        batch = list(cases)
        if not batch:
            return []
        final = await self._graph.ainvoke(initial_state(batch), {"recursion_limit": RECURSION_LIMIT})
        verdicts = cast("dict[int, Verdict]", final["verdicts"])
        return [verdicts[i] for i in range(len(batch))]

    def stream(self, cases: Iterable[Case]) -> Iterator[Verdict]:
        """Judge any number of cases in constant memory; also from within a running event loop.

        Threads read, decode and preprocess a batch; with `read_ahead`, while the one before is judged.

        Yields
        ------
        Verdict
            In the order of the cases.
        """
        rest = iter(cases)

        def prepared() -> list[Case]:
            batch = list(islice(rest, self.batch_size))
            self.embedder.prepare([case.photo for case in batch])
            return batch

        with self._judging() as judged, ThreadPoolExecutor(1, thread_name_prefix="ahead") as ahead:
            coming: Future[list[Case]] = ahead.submit(prepared)
            while batch := coming.result():
                if self._read_ahead:
                    coming = ahead.submit(prepared)
                yield from judged(batch)
                if not self._read_ahead:
                    coming = ahead.submit(prepared)
                for case in batch:
                    case.photo.release()

    @contextmanager
    def _judging(self) -> Iterator[Callable[[list[Case]], list[Verdict]]]:
        """Judge in this thread, where tensors are reused soonest; in another where an event loop runs in this one."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            with asyncio.Runner() as runner:
                yield lambda batch: runner.run(self.judge(batch))
        else:
            with start_blocking_portal() as portal:
                yield lambda batch: portal.call(self.judge, batch)

    def close(self) -> None:
        """End the threads, close cache and index."""
        self.embedder.close()
        if self._on_close is not None:
            self._on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
