"""What is decided on the calibration cases: calibrators, fusion, trust, gate, and whether to look twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.calibration import Calibrator
from secondlook.agents.case import Task
from secondlook.agents.prediction import Outcome, Prediction
from secondlook.eval.embedded import Embedded
from secondlook.eval.gate_fit import choose_gates
from secondlook.eval.held_out import calibrate_all
from secondlook.eval.look_fit import LookFit, fit_look, opinions_of, shared_errors
from secondlook.eval.record import confidence_notes, track_records
from secondlook.eval.yardstick import measure_yardstick
from secondlook.orchestrator.config import Config
from secondlook.orchestrator.gate import Gate, units_needed
from secondlook.orchestrator.loss import Loss
from secondlook.orchestrator.policies import AnyFusion, available, fit_all
from secondlook.orchestrator.shared_errors import SharedErrors
from secondlook.orchestrator.track_record import FlipLedger, TrackRecord
from secondlook.orchestrator.trust_model import Trust
from secondlook.orchestrator.yardstick import Yardstick

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Decided:
    """The part of a model that rests on the calibration cases; see `secondlook.orchestrator.fitted.Model`."""

    calibrators: dict[str, dict[int, Calibrator]]
    fusions: dict[int, AnyFusion]
    alternatives: dict[str, AnyFusion]
    trusts: dict[int, Trust]
    gate: Gate
    first_gate: Gate | None
    second_look: bool
    shared_errors: tuple[SharedErrors, ...]
    flips: FlipLedger
    records: tuple[TrackRecord, ...]
    notes: tuple[str, ...]
    yardstick: Yardstick


def decide(
    config: Config,
    task: Task,
    said: dict[int, dict[str, list[Outcome]]],
    calibration: Embedded,
    typicality: Floats,
    folds: NDArray[np.intp] | None,
    rng: np.random.Generator,
    step: Callable[[str], None],
) -> Decided:
    """Fit everything that decides, cross-fitted.

    Parameters
    ----------
    config : Config
    task : Task
    said : dict
        Uncalibrated outcomes on the N calibration cases, by look and column.
    calibration : Embedded
    typicality : ndarray of shape (N,)
    folds : ndarray of shape (N,) or None
        None where nothing can be held out: no threshold is then promised.
    rng : numpy.random.Generator
        Draws the bootstrap samples of the track records.
    step : callable
        Told what begins.
    """
    step("calibrating")
    k, truth, groups = len(task.labels), calibration.truth, calibration.groups
    first, second = (calibrate_all(said[look], truth, folds, k) for look in (1, 2))
    loss = Loss(costs=task.costs)
    looks = {
        1: fit_look(first, calibration, typicality, folds, config.fusion, loss),
        2: fit_look([*first, *second], calibration, typicality, folds, config.fusion, loss),
    }
    opinions = opinions_of([*first, *second])
    step("choosing the threshold")
    sent = np.array([any(_asks_again(o) for o in row) for row in zip(*said[1].values(), strict=True)])
    gates, flips = choose_gates(config, looks, typicality, calibration, folds, loss, sent)
    use_second = config.second_look and flips.saved > 0
    gate = gates[2 if use_second else 1]
    records = track_records((*first, *second), truth, groups, task.labels, rng)
    calibrators: dict[str, dict[int, Calibrator]] = {}
    for a in (*first, *second):
        calibrators.setdefault(a.agent, {})[a.look] = a.calibrator
    again = sent | ~gates[2].accepts(looks[1].data.trust, typicality, last=False)
    return Decided(
        calibrators=calibrators,
        fusions={look: cast("AnyFusion", found.fitted.fusion) for look, found in looks.items()},
        alternatives={n: cast("AnyFusion", found.fusion) for n, found in fit_all(opinions, truth, folds).items()},
        trusts={look: found.trust for look, found in looks.items()},
        gate=gate,
        first_gate=gates[1] if use_second else None,
        second_look=use_second,
        shared_errors=shared_errors(opinions, truth),
        flips=flips,
        records=records,
        notes=(
            *_warnings(calibration, config, folds),
            *confidence_notes(records),
            *_decisions(config, looks, gate, flips, use_second, len(set(groups))),
        ),
        yardstick=measure_yardstick(
            opinions_of(first), opinions_of(second), looks[1].fitted.beliefs, truth, groups, again, rng
        ),
    )


def _asks_again(outcome: Outcome) -> bool:
    return isinstance(outcome, Prediction) and outcome.again


def _warnings(split: Embedded, config: Config, folds: NDArray[np.intp] | None) -> list[str]:
    """Say where the calibration split is too small for what it should decide."""
    said = []
    if folds is None:
        said.append("A label has one calibration group only: nothing can be held out, so no threshold is promised.")
    least = 2 / (1 + len(split.cases))  # a stranger beyond every own image may tie with the most unusual of them
    if config.stranger_limit and least > config.stranger_limit:
        said.append(
            f"{len(split.cases)} calibration images are too few to recognise strangers at {config.stranger_limit:.1%}."
        )
    return said


def _decisions(
    config: Config, looks: dict[int, LookFit], gate: Gate, ledger: FlipLedger, use_second: bool, n_groups: int
) -> list[str]:
    said = []
    for look, found in looks.items():
        fusion, n_labels = found.fitted.fusion, found.fitted.beliefs.shape[1]
        if config.fusion == "auto":
            said.append(f"Look {look}: of all ways to fuse, the lowest held-out NLL had: {fusion.fused_by}.")
        elif fusion.kind != config.fusion:
            asked = config.fusion.replace("_", " ")
            said.append(
                f"Look {look}: {asked} was not better than {fusion.best_agent} on held-out cases, which decides."
                if config.fusion in available(fusion.agents, n_labels)
                else f"Look {look}: {asked} cannot be fitted here; {fusion.best_agent} decides."
            )
    flips = f"on {ledger.asked} held-out cases it fixed {ledger.fixed} labels and broke {ledger.broken}"
    if gate.loss == "cost":
        flips += f", which saved {ledger.saved:.3g} times the largest cost"
    if use_second:
        said.append(f"The second look is on: {flips}.")
    elif config.second_look:
        said.append(f"The second look is switched off: {flips}, no net gain.")
    else:
        said.append("The second look is off by configuration.")
    if gate.threshold is None:
        needed = units_needed(gate.target_risk, gate.delta)
        why = (
            f"that takes {needed} groups with an accepted case even without a single error, and there are {n_groups}"
            if n_groups < needed
            else f"of {n_groups} groups too few hold a case of enough trust, or too many of those are wrong"
        )
        said.append(
            f"No threshold can promise {gate.promise} with probability {1 - gate.delta:.0%}: {why}. "
            "Everything goes to review."
        )
    return said
