"""The panel that fusion finds best: heads compared by cross-validation on the train split."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.calibration import fit_calibrator, log_distribution
from secondlook.agents.errors import ConfigError
from secondlook.agents.head import HeadSpec
from secondlook.agents.lessons import Lessons
from secondlook.eval.reliability import ece
from secondlook.orchestrator.candidate import Candidate
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.policies import fit_fusion

Floats = NDArray[np.float64]
MOST_HEADS = 5
"""A panel of more is slower to ask and to read, and errors of heads on the same features are alike."""
LEAST_GAIN = 0.01
"""Share by which the pool's held-out NLL must fall for one more head to join."""
WORDS = "zero-shot"


class Chosen(NamedTuple):
    """A panel, and how it came about."""

    panel: tuple[HeadSpec, ...]
    table: tuple[Candidate, ...]
    """Of every candidate, the lowest NLL first."""
    notes: tuple[str, ...]


def choose_panel(
    candidates: Sequence[HeadSpec],
    lessons: Lessons,
    seconds: float,
    tell: Callable[[str], None] = lambda what: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Chosen:
    """Compare heads, and take those whose log-linear pool with the words has the lowest held-out NLL.

    Each head is fitted on all folds but one and judged on that one; its answers are calibrated by cross-fitting. Heads
    join one by one, the one that helps the pool most first, as long as it helps.

    Parameters
    ----------
    candidates : sequence of HeadSpec
        The cheap ones first: time may run out.
    lessons : Lessons
        Of the train split.
    seconds : float
        What comparing may take. A head whose first fold shows that it would take more is left out, with a note.
    tell : callable
        Told what begins.
    clock : callable
        Seconds.

    Returns
    -------
    Chosen
        A panel of one head at least.

    Raises
    ------
    ConfigError
        When no fold can be made, or no candidate can be fitted.
    """
    folds = lessons.folds()
    if folds is None:
        raise ConfigError(
            "Heads cannot be compared: a label has training images of one group only.",
            "Name the panel (--panel linear,gda), or add images of other leaves, patients or parts.",
        )
    end = clock() + seconds
    table: list[Candidate] = []
    held_out: dict[str, Floats] = {WORDS: _calibrated(lessons.classifier.logits(lessons.vectors), lessons, folds)}
    for spec in candidates:
        tell(f"comparing {spec.name}")
        found, probs = _judge(spec, lessons, folds, end, clock)
        table.append(found)
        if probs is not None:
            held_out[spec.name] = probs
    names = _greedy(held_out, lessons.truth, folds)
    if not names:
        why = "; ".join(f"{row.name}: {row.note}" for row in table)
        raise ConfigError(f"No head could be compared. {why}", "Give more seconds, or name the panel.")
    table.sort(key=lambda row: (np.isnan(row.nll), row.nll))
    chosen = tuple(row.model_copy(update={"chosen": row.name in names}) for row in table)
    by_name = {spec.name: spec for spec in candidates}
    said = f"Of {len(table)} heads compared on {len(lessons)} training images, {len(names)} form the panel: "
    left_out = tuple(f"{row.name} was not compared: {row.note}" for row in table if row.note)
    return Chosen(tuple(by_name[name] for name in names), chosen, (said + ", ".join(names) + ".", *left_out))


def _judge(
    spec: HeadSpec, lessons: Lessons, folds: NDArray[np.intp], end: float, clock: Callable[[], float]
) -> tuple[Candidate, Floats | None]:
    """Cross-fit one head; no probabilities where it cannot be fitted or would take too long."""
    kind = str(getattr(spec, "kind", ""))
    logits = np.empty((len(lessons), lessons.n_labels))
    numbers, start = np.unique(folds), clock()
    for done, fold in enumerate(numbers):
        # Without this fold's cases one more fit, on all of them, will be due.
        left = len(numbers) - done + 1
        due = (clock() - start) / done * left if done else 0.0
        if clock() + due > end:
            why = f"it would take {clock() - start + due:.0f} s" if done else "the time was over"
            return Candidate(name=spec.name, kind=kind, seconds=clock() - start, note=f"{why}."), None
        try:
            head = spec.fit(lessons.part(folds != fold))
        except ConfigError as error:
            return Candidate(name=spec.name, kind=kind, seconds=clock() - start, note=error.what), None
        logits[folds == fold] = head.logits(lessons.vectors[folds == fold])
    took = clock() - start
    probs = _calibrated(logits, lessons, folds)
    each = np.arange(len(lessons))
    right = probs.argmax(axis=1) == lessons.truth
    return Candidate(
        name=spec.name,
        kind=kind,
        n=len(lessons),
        accuracy=float(right.mean()),
        nll=float(-np.log(np.maximum(probs[each, lessons.truth], 1e-12)).mean()),
        ece=ece(probs.max(axis=1), right),
        seconds=took,
    ), probs


def _calibrated(logits: Floats, lessons: Lessons, folds: NDArray[np.intp]) -> Floats:
    return fit_calibrator(log_distribution(logits, "logit"), lessons.truth, folds, "logit")[1]


def _greedy(held_out: dict[str, Floats], truth: NDArray[np.intp], folds: NDArray[np.intp]) -> list[str]:
    """Names of the heads that join the words, in the order in which they do."""
    chosen: list[str] = []
    waiting = [name for name in held_out if name != WORDS]
    best = float("inf")

    def nll(names: Sequence[str]) -> float:
        opinions = Opinions.uncalibrated(names, np.stack([held_out[name] for name in names]))
        return fit_fusion("pool", opinions, truth, folds).fusion.nll

    while waiting and len(chosen) < MOST_HEADS:
        losses = {name: nll([WORDS, *chosen, name]) for name in waiting}
        first = min(losses, key=lambda name: losses[name])
        if losses[first] > best * (1 - LEAST_GAIN):
            break
        best = losses[first]
        chosen.append(first)
        waiting.remove(first)
    return chosen
