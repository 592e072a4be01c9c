"""How long one core takes: intervals of every metric, a temperature, and the judgement of a batch.

It pins itself to one core and one thread. Seconds are processor time, which neighbours on a shared machine lengthen
less than wall time; both are printed, and the limits hold for the first. Exits 1 where a limit is missed.

    python benchmarks/speed.py [--json]
"""

# ruff: noqa: E402
from __future__ import annotations

import os

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
# Before numpy is loaded: its threads are counted then.
os.environ.update(dict.fromkeys(THREADS, "1"))
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from secondlook.agents.temperature import fit_temperature
from secondlook.eval import reliability, selective, set_metrics
from secondlook.eval.accuracy import accuracy, balanced_accuracy, macro_f1
from secondlook.eval.answers import answer_figures
from secondlook.eval.arrays import Floats, Ints
from secondlook.eval.bootstrap import clustered_bootstrap
from secondlook.eval.proper_scores import brier, nll
from secondlook.eval.resample import intervals
from secondlook.orchestrator.gate import Gate
from secondlook.orchestrator.judgement import judge
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.policies import fit_all
from secondlook.orchestrator.trust_model import features, fit_trust

AGENTS, LABELS, DRAWS, BATCH = 5, 4, 1000, 1000
LIMITS_S = {"intervals": 10.0, "temperature": 5.0, "judgement": 0.020}


class Timing(NamedTuple):
    """What was measured."""

    cpu_s: float
    wall_s: float


def timed(call: Callable[[], object]) -> Timing:
    """Run once."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Timing(time.process_time() - cpu, time.perf_counter() - wall)


def answers(n: int, k: int, truth: Ints, rng: np.random.Generator) -> Floats:
    """Draw an agent's distributions, right in about four of five cases of four labels, and too sure."""
    logits = 1.5 * (rng.normal(size=(n, k)) + 2 * np.eye(k)[truth])
    logits -= logits.max(axis=1, keepdims=True)
    probs: Floats = np.exp(logits)
    return probs / probs.sum(axis=1, keepdims=True)


def time_intervals(n: int, rng: np.random.Generator) -> dict[str, object]:
    """Time all figures of all agents with their intervals, preparation included, beside the plain loop."""
    truth, leaf = rng.integers(LABELS, size=n), rng.integers(n // 2, size=n)
    panel = [answers(n, LABELS, truth, rng) for _ in range(AGENTS)]
    sets = [probs >= 0.1 for probs in panel]

    def shared() -> object:
        figures = {str(m): answer_figures(panel[m], truth, sets=sets[m]) for m in range(AGENTS)}
        return intervals(figures, n, leaf, draws=DRAWS, rng=rng)

    few = 2

    def loop() -> None:
        for probs, held in zip(panel, sets, strict=True):
            for metric, *arrays in plain(probs, truth, held):
                clustered_bootstrap(metric, *arrays, groups=leaf, draws=few, rng=rng)

    found, slow = timed(shared), timed(loop)
    # Beside the draws, the loop computes each figure once of the cases as they are.
    plain_s = slow.cpu_s * (DRAWS + 1) / (few + 1)
    what = f"{len(plain(panel[0], truth, sets[0]))} metrics, {AGENTS} agents, {DRAWS:,} draws, N = {n:,}, K = {LABELS}"
    return row(found, "intervals", what) | {"plain_loop_cpu_s": plain_s, "ratio": plain_s / found.cpu_s}


def plain(p: Floats, y: Ints, sets: object) -> list[tuple[Callable[..., float], *tuple[object, ...]]]:
    """List every metric with what it takes, as one would call it without shared counts."""
    conf, said = p.max(axis=1), p.argmax(axis=1)
    right = said == y
    of_confidence = [
        reliability.ece,
        partial(reliability.ece, scheme="mass"),
        reliability.mce,
        reliability.direction,
        reliability.ocr,
        reliability.ccc,
        reliability.auroc_of_confidence,
        selective.aurc,
        selective.excess_aurc,
        partial(selective.risk_at_coverage, coverage=0.9),
        partial(selective.coverage_at_risk, risk=0.05),
    ]
    return [
        (accuracy, said, y),
        (partial(balanced_accuracy, k=LABELS), said, y),
        (partial(macro_f1, k=LABELS), said, y),
        (reliability.class_wise_ece, p, y),
        (nll, p, y),
        (brier, p, y),
        (set_metrics.set_coverage, sets, y),
        (set_metrics.set_size, sets),
        *((metric, conf, right) for metric in of_confidence),
    ]


def time_temperature(n: int, k: int, rng: np.random.Generator) -> dict[str, object]:
    """Time one fit."""
    truth = rng.integers(k, size=n)
    log_q = np.log(answers(n, k, truth, rng))
    return row(timed(lambda: fit_temperature(log_q, truth)), "temperature", f"N = {n:,}, K = {k}")


def time_judgement(rounds: int, rng: np.random.Generator) -> dict[str, object]:
    """Time fusion, trust and gate of one batch by the median of many rounds; the slowest policy counts."""
    columns = (*(f"agent-{m}" for m in range(AGENTS - 1)), "neighbour-vote@2")
    truth = rng.integers(LABELS, size=500 + BATCH)
    probs = np.stack([answers(len(truth), LABELS, truth, rng) for _ in columns])
    everything = Opinions.uncalibrated(columns, probs)
    known, batch = everything.cases(slice(500)), everything.cases(slice(500, None))
    folds, typical = np.arange(500) % 5, rng.uniform(0.01, 1, size=BATCH)
    gate = Gate(threshold=0.9)
    found: dict[str, Timing] = {}
    for name, (fusion, beliefs) in fit_all(known, truth[:500], folds).items():
        chosen = known.of(fusion.agents)
        x = features(beliefs, chosen.probs, np.ones(500))
        trust, _ = fit_trust(x, beliefs.argmax(axis=1) == truth[:500], folds)
        own = batch.of(fusion.agents)
        call = partial(judge, fusion, trust, gate, own, typical, may_look_again=True)
        times = np.array([timed(call) for _ in range(rounds)])
        found[name] = Timing(*np.median(times, axis=0).tolist())
    slowest = max(found, key=lambda name: found[name].cpu_s)
    what = f"{BATCH:,} cases, M = {AGENTS}, K = {LABELS}, slowest of {len(found)} policies: {slowest}"
    return row(found[slowest], "judgement", what) | {
        "policies_cpu_s": {name: timing.cpu_s for name, timing in found.items()}
    }


def row(found: Timing, name: str, what: str) -> dict[str, object]:
    """Put a timing beside its limit."""
    return {
        "name": name,
        "what": what,
        "cpu_s": found.cpu_s,
        "wall_s": found.wall_s,
        "limit_s": LIMITS_S[name],
        "within": found.cpu_s <= LIMITS_S[name],
    }


def main() -> None:
    """Measure, print, and exit 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cases", type=int, default=100_000, help="for the intervals")
    parser.add_argument("--logits", type=int, default=1_000_000, help="cases for the temperature, of 10 labels")
    parser.add_argument("--rounds", type=int, default=50, help="of each judgement")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    rows = [
        time_intervals(args.cases, rng),
        time_temperature(args.logits, 10, rng),
        time_judgement(args.rounds, rng),
    ]
    if args.json:
        print(json.dumps({"machine": platform.machine(), "seed": args.seed, "rows": rows}))
    else:
        print(f"{'':12} {'one core':>11} {'wall':>11} {'limit':>8}")
        for found in rows:
            numbers = f"{found['cpu_s']:9.4f} s {found['wall_s']:9.4f} s {found['limit_s']:6.2f} s"
            print(f"{found['name']:12} {numbers} {'' if found['within'] else ' MISSED'}  {found['what']}")
        first = rows[0]
        print(
            f"The plain loop, one call a draw, would take {first['plain_loop_cpu_s']:.0f} s for the intervals "
            f"(extrapolated from 2 draws): {first['ratio']:.0f} times as long."
        )
    raise SystemExit(0 if all(found["within"] for found in rows) else 1)


if __name__ == "__main__":
    main()
