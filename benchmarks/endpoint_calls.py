"""What it takes to ask an endpoint about many cases at once, beside the least that it could take.

A server in a process of its own answers every call after 200 ms. 400 cases are asked through the agent of endpoints
and all its wrappers, 32 at once: ideally in ceil(400 / 32) * .2 = 2.6 s. Then the same run again, from the cache.

    python benchmarks/endpoint_calls.py [--calls 400] [--concurrency 32] [--latency .2] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from secondlook.agents.answer_cache import AnswerCache
from secondlook.agents.cached import Cached
from secondlook.agents.case import Case, Task
from secondlook.agents.chat import ChatModel, Endpoint
from secondlook.agents.cost import Account, Budget, Limits
from secondlook.agents.line import line_of
from secondlook.agents.openai_vlm import OpenAISpec, OpenAIVlm
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Outcome, Prediction
from secondlook.agents.wrappers import Budgeted, Patience, Resilient

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

TASK = Task(labels=("red", "green", "blue"))


def cases(number: int, seed: int = 0) -> list[Case]:
    """Different small pictures."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    return [Case(id=f"{i:05}", photo=Photo.of(picture)) for i, picture in enumerate(pictures)]


def serve(pipe: Connection, latency_s: float) -> None:
    """Serve until told to stop; what is received is answered by the number of calls so far."""
    from fault_server import FaultServer

    with FaultServer(labels=TASK.labels, latency_s=latency_s) as server:
        pipe.send(server.base_url)
        while pipe.recv():
            pipe.send(server.total)


def wrapped(endpoint: Endpoint, account: Account, cache: AnswerCache, patience: Patience) -> Cached:
    """Put on all wrappers of one answer a case."""
    spec = OpenAISpec(name="far", model="scripted", endpoint=endpoint)
    agent = OpenAIVlm(spec.name, ChatModel(endpoint, spec.model), TASK, spec)
    return Cached(Resilient(Budgeted(agent, account), line_of(endpoint), patience), cache)


def timed(agent: Cached, asked: list[Case]) -> tuple[float, list[Outcome]]:
    """Ask in an event loop of its own, and return the seconds."""
    start = time.perf_counter()
    outcomes = asyncio.run(agent.predict(asked))
    return time.perf_counter() - start, outcomes


def measure(url: str, pipe: Connection, args: argparse.Namespace) -> dict[str, object]:
    """Ask for some rounds, each with an empty cache, and once more with the last one."""
    endpoint = Endpoint(base_url=url, concurrency=args.concurrency)
    account = Account(Budget(per_run=Limits(usd=1e6)))
    ideal = math.ceil(args.calls / args.concurrency) * args.latency
    asked = cases(args.calls)
    walls, used, warm, before, repeated = [], [], 0.0, 0, 0
    for number in range(args.rounds + 1):  # the first imports the client, and is not counted
        with tempfile.TemporaryDirectory() as folder, AnswerCache(Path(folder)) as cache:
            agent = wrapped(endpoint, account, cache, Patience.of(endpoint))
            start = time.process_time()
            wall, outcomes = timed(agent, asked)
            used += [time.process_time() - start] * (number > 0)
            assert all(isinstance(outcome, Prediction) for outcome in outcomes)
            walls += [wall] * (number > 0)
            pipe.send(True)
            before = pipe.recv()
            warm, _ = timed(agent, asked)
            pipe.send(True)
            repeated += pipe.recv() - before
    return {
        "calls": args.calls,
        "concurrency": args.concurrency,
        "latency_s": args.latency,
        "rounds": args.rounds,
        "ideal_s": round(ideal, 3),
        "wall_s": [round(wall, 3) for wall in walls],
        "ratio_median": round(statistics.median(walls) / ideal, 3),
        "ratio_worst": round(max(walls) / ideal, 3),
        "processor_s": [round(seconds, 3) for seconds in used],
        "again_s": round(warm, 3),
        "again_calls": repeated,
    }


def main() -> None:
    """Start the server, measure, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    pipe, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, args.latency), daemon=True)
    server.start()
    print(json.dumps(measure(pipe.recv(), pipe, args)))
    pipe.send(False)
    server.join(10)


if __name__ == "__main__":
    main()
