"""Whether what is promised holds on simulated panels: no worse than the best agent, risk, coverage, calibration.

Each panel (see `drawn_panel.py`) is calibrated, fused, given trust, a threshold and prediction sets by what `fit` calls
with its defaults, and judged on many new cases. The other policies of fusion are fitted beside the chosen one. Exits
with 1 when a figure is missed.

    OMP_NUM_THREADS=1 python benchmarks/simulated_panels.py [--panels 200] [--seed 0] [--policy pool] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np
from drawn_panel import LEAST_PER_LABEL, SIZES, Drawn, DrawnPanel, PanelLaw, draw_law, names, outcomes
from numpy.typing import NDArray

from secondlook.agents.calibration import log_distribution
from secondlook.agents.folds import grouped_folds
from secondlook.eval.embedded import Embedded
from secondlook.eval.held_out import Answers, calibrate_all
from secondlook.eval.look_fit import LookFit, fit_look, opinions_of
from secondlook.eval.reliability import ece
from secondlook.orchestrator.config import Config
from secondlook.orchestrator.gate import Gate, choose_threshold, group_losses
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.policies import PolicyName, choose, fit_all
from secondlook.orchestrator.prediction_set import fit_prediction_sets
from secondlook.orchestrator.trust_model import features

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
WORSE = 0.01
"""How much less often than the best agent a belief may be right."""
NOT_WORSE = 0.95
"""In what share of panels it must be no worse than that."""
MEDIAN_ECE = 0.03
MANY = 300
"""Calibration cases at which the median ECE is judged."""


@dataclass(frozen=True)
class Row:
    """What was measured on one panel."""

    seed: int
    number: int
    n: int
    n_labels: int
    group_size: int
    agents: tuple[str, ...]
    copies: int
    shared: float
    best: float
    """Accuracy of the best agent in hindsight, on the new cases; a failure counts as wrong."""
    fused_by: str
    accuracy: dict[str, float]
    """By policy."""
    ece: dict[str, float]
    """Of the beliefs, by policy."""
    ece_fused: float
    """Of the chosen policy's."""
    floor: float
    """Mean ECE of the chosen policy's confidences, were each exactly the probability of being right."""
    ece_trust: float
    ece_agents: tuple[float, ...]
    ece_said: tuple[float, ...]
    """Before calibration."""
    floor_agents: tuple[float, ...]
    luck_agents: tuple[float, ...]
    """|accuracy on the calibration cases - on the new ones|: what no calibrator can know."""
    threshold: float | None
    accepted: float
    """Share of new cases."""
    error: float
    """Mean over groups of the share of accepted cases that are wrong; nan where none is accepted."""
    error_of_cases: float
    coverage: float
    set_size: float
    seconds: float

    @property
    def grouped(self) -> bool:
        """Whether several calibration cases make one group."""
        return self.group_size > 1


def measure(seed: int, number: int, policy: PolicyName = "pool", n_new: int = 10_000, beside: bool = True) -> Row:
    """Draw a panel, fit everything on its calibration cases and judge new ones.

    Parameters
    ----------
    seed, number : int
        Together they say which panel.
    policy : str
        The one that decides.
    n_new : int
        New cases.
    beside : bool
        Whether all other policies are fitted too.
    """
    start = time.perf_counter()
    rng = np.random.default_rng([seed, number])
    law = draw_law(number, rng)
    panel = DrawnPanel(law, rng)
    cases, new = panel.draw(law.n, rng, LEAST_PER_LABEL), panel.draw(n_new, rng)
    folds = grouped_folds(cases.truth, cases.groups, rng)
    answers = calibrate_all(outcomes(law, cases), cases.truth, folds, len(law.prior))
    look = fit_look(answers, _split(cases), cases.typicality, folds, policy)
    gate = _gate(look, cases, folds)

    opinions = asked(law, answers, new)
    belief = look.fitted.fusion.fuse(opinions)
    beliefs = {policy: belief}
    if beside:
        others = fit_all(opinions_of(answers), cases.truth, folds)
        others["auto"] = choose(others)
        beliefs |= {name: found.fusion.fuse(opinions) for name, found in others.items() if name not in beliefs}
    right = right_of(belief, new.truth)
    trust = look.trust.of(features(belief, opinions.probs, new.typicality))
    taken = gate.accepts(trust, new.typicality)
    unit = np.unique(np.asarray(new.groups), return_inverse=True)[1]
    sets = gate.sets.of(belief)
    calibrated = [gap(p, new.truth, rng) for p in opinions.probs]
    fused = {name: gap(p, new.truth, rng) for name, p in beliefs.items()}
    return Row(
        seed=seed,
        number=number,
        n=law.n,
        n_labels=len(law.prior),
        group_size=law.group_size,
        agents=names(law),
        copies=sum(agent.copies is not None for agent in law.agents),
        shared=law.shared,
        best=max(float(right_of(p, new.truth).mean()) for p in opinions.said),
        fused_by=look.fitted.fusion.fused_by,
        accuracy={name: float(right_of(p, new.truth).mean()) for name, p in beliefs.items()},
        ece={name: found.ece for name, found in fused.items()},
        ece_fused=fused[policy].ece,
        floor=fused[policy].floor,
        ece_trust=ece(trust, right),
        ece_agents=tuple(found.ece for found in calibrated),
        ece_said=tuple(gap(p, new.truth, rng).ece for p in opinions.said),
        floor_agents=tuple(found.floor for found in calibrated),
        luck_agents=tuple(
            abs(float(right_of(a.raw, cases.truth)[here].mean() - right_of(p, new.truth)[there].mean()))
            for a, p in zip(answers, opinions.said, strict=True)
            for here, there in [(~np.isnan(a.raw[:, 0]), ~np.isnan(p[:, 0]))]
        ),
        threshold=gate.threshold,
        accepted=float(taken.mean()),
        error=_mean(group_losses(unit, taken, np.where(taken, ~right, 0.0))),
        error_of_cases=_mean((~right)[taken].astype(np.float64)),
        coverage=float(sets[np.arange(n_new), new.truth].mean()),
        set_size=float(sets.sum(axis=1).mean()),
        seconds=time.perf_counter() - start,
    )


def _split(cases: Drawn) -> Embedded:
    return Embedded((), np.zeros((len(cases.truth), 0), np.float32), cases.truth, cases.groups)


def _gate(look: LookFit, cases: Drawn, folds: NDArray[np.intp] | None) -> Gate:
    """Choose threshold and prediction sets for runs of one look, as `fit` does."""
    config = Config()
    gate = Gate(target_risk=config.target_risk, delta=config.delta, stranger_limit=config.stranger_limit)
    if folds is not None:
        gate = choose_threshold(gate, [look.data], cases.typicality, cases.groups)
    sets = fit_prediction_sets(config.set_method, look.fitted.beliefs, cases.truth, config.set_level)
    return gate.model_copy(update={"sets": sets})


def asked(law: PanelLaw, answers: Sequence[Answers], drawn: Drawn) -> Opinions:
    """Calibrate what the agents say of new cases, as `Calibrated` does answer by answer."""
    said, probs = [], []
    for agent, answer, scores in zip(law.agents, answers, drawn.scores, strict=True):
        ok = ~np.isnan(scores[:, 0])
        raw, calibrated = np.full(scores.shape, np.nan), np.full(scores.shape, np.nan)
        if ok.any():
            log_q = log_distribution(scores[ok], agent.kind)
            raw[ok], calibrated[ok] = np.exp(log_q), answer.calibrator.apply(log_q)
        said.append(raw)
        probs.append(calibrated)
    return Opinions(tuple(answer.column for answer in answers), np.stack(probs), np.stack(said))


def right_of(belief: Floats, truth: NDArray[np.intp]) -> Bools:
    """Whether the top label is the truth, of shape (N,); no answer is not right."""
    return np.asarray(~np.isnan(belief).any(axis=1) & (np.nan_to_num(belief).argmax(axis=1) == truth))


class Gap(NamedTuple):
    """ECE, and what it would be on average were every confidence the probability of being right."""

    ece: float
    floor: float


def gap(belief: Floats, truth: NDArray[np.intp], rng: np.random.Generator) -> Gap:
    """Measure the ECE of the answers among beliefs of shape (N, K)."""
    known = ~np.isnan(belief).any(axis=1)
    top = belief[known].max(axis=1, initial=0.0)
    floors = [ece(top, rng.random(len(top)) < top) for _ in range(3)]
    return Gap(ece(top, right_of(belief, truth)[known]), float(np.mean(floors)))


class Law(NamedTuple):
    """One figure, and what it must be."""

    name: str
    value: float
    target: str
    n: int
    noise: float
    """Standard error: of a share the binomial one at its target, of a mean the one measured."""
    met: bool


def gains(rows: Sequence[Row], policy: str) -> Floats:
    """Accuracy over the best agent's, by panel."""
    return np.array([row.accuracy[policy] - row.best for row in rows])


def laws(rows: Sequence[Row], policy: str) -> list[Law]:
    """Judge the panels: all together, and those of single cases and of groups apart."""
    single, grouped = [row for row in rows if not row.grouped], [row for row in rows if row.grouped]
    found = []
    for part, which in ((rows, "all"), (single, "single cases"), (grouped, "groups")):
        found += [*_accuracy(part, policy, which), *_calibration(part, which)]
    for part, which in ((single, "single cases"), (grouped, "groups")):
        found += [_risk(part, which), _coverage(part, which)]
    return found


def _accuracy(rows: Sequence[Row], policy: str, which: str) -> list[Law]:
    gain, n = gains(rows, policy), len(rows)
    kept, mean = _mean(gain >= -WORSE), _mean(gain)
    noise = math.sqrt(NOT_WORSE * (1 - NOT_WORSE) / n) if n else math.nan
    name = f"accuracy >= best agent's - {WORSE}, share of panels, {which}"
    return [
        Law(name, kept, f">= {NOT_WORSE}", n, noise, not kept < NOT_WORSE),
        Law(f"accuracy over the best agent's, mean, {which}", mean, "> 0", n, _error(gain), not mean <= 0),
    ]


def _calibration(rows: Sequence[Row], which: str) -> list[Law]:
    many, found = [row for row in rows if row.n == MANY], []
    for name, values in (
        ("agents", [value for row in many for value in row.ece_agents]),
        ("beliefs", [row.ece_fused for row in many]),
    ):
        known = np.array([value for value in values if not math.isnan(value)])
        median = float(np.median(known)) if len(known) else math.nan
        noise = math.sqrt(math.pi / 2) * _error(known)  # of a median, were the values normal
        what = f"median ECE of {name}, {MANY} cases, {which}"
        found.append(Law(what, median, f"< {MEDIAN_ECE}", len(known), noise, not median >= MEDIAN_ECE))
    return found


def _risk(rows: Sequence[Row], which: str) -> Law:
    """Share of accepting panels whose error exceeds the target: delta at most, within the noise of so few panels."""
    from scipy.stats import binom

    config = Config()
    errors = np.array([row.error for row in rows if row.accepted])
    over, n = int((errors > config.target_risk).sum()), len(errors)
    most = int(binom.ppf(0.975, n, config.delta)) if n else 0
    name = f"share of accepting panels with error > {config.target_risk}, {which}"
    noise = math.sqrt(config.delta * (1 - config.delta) / n) if n else math.nan
    return Law(name, over / n if n else math.nan, f"<= {config.delta}, at most {most} panels", n, noise, over <= most)


def _coverage(rows: Sequence[Row], which: str) -> Law:
    level, found = Config().set_level, np.array([row.coverage for row in rows])
    noise, name = _error(found), f"mean coverage of prediction sets, {which}"
    value = _mean(found)
    return Law(name, value, f">= {level}", len(rows), noise, not value < level - 2 * noise)


def _mean(values: Floats | Bools) -> float:
    return float(values.mean()) if len(values) else math.nan


def _error(values: Floats) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def tables(rows: Sequence[Row], policy: str) -> str:
    """Say it in tables: the laws, by calibration cases, by policy, and the panels behind the best agent."""
    lines = [f"{len(rows)} panels, policy {policy}", "", f"{'':4} {'value':>7} {'+-':>6} {'n':>5}  target"]
    for law in laws(rows, policy):
        met = "ok" if law.met else "MISS"
        lines.append(f"{met:4} {law.value:7.4f} {law.noise:6.4f} {law.n:5}  {law.target}: {law.name}")
    by_size: dict[int, dict[str, float]] = {}
    for n in SIZES:
        if part := [row for row in rows if row.n == n]:
            by_size[n] = _medians(part) | _shares(part, policy)
    lines += [
        "",
        "by calibration cases; medians; floor: the ECE were each confidence exact; luck: |accuracy here - there|",
        "",
    ]
    lines += [f"{'':16} " + " ".join(f"{n:>7}" for n in by_size)]
    for name in next(iter(by_size.values())):
        lines.append(f"{name:16} " + " ".join(f"{found[name]:7.4g}" for found in by_size.values()))
    lines += ["", f"{'policy':20} {'n':>4} {'gain':>7} {'not worse':>9} {'ECE':>6}"]
    for name in dict.fromkeys(name for row in rows for name in row.accuracy):
        part = [row for row in rows if name in row.accuracy]
        gain = gains(part, name)
        median = np.nanmedian([row.ece[name] for row in part])
        lines.append(f"{name:20} {len(part):4} {gain.mean():+7.4f} {np.mean(gain >= -WORSE):9.3f} {median:6.4f}")
    lines += ["", f"panels where {policy} is worse than the best agent by more than {WORSE}", ""]
    for row, lost in zip(rows, gains(rows, policy), strict=True):
        if lost < -WORSE:
            groups = f"in groups of {row.group_size}" if row.grouped else "single"
            said = f"{row.number}: {lost:+.3f} of {row.best:.3f}, {row.n} cases {groups}, {row.n_labels} labels, "
            lines.append(f"{said}{row.copies} copies, shared {row.shared:.2f}, {row.fused_by}; {' '.join(row.agents)}")
    return "\n".join(lines)


def _medians(rows: Sequence[Row]) -> dict[str, float]:
    values = {
        "ECE said": [value for row in rows for value in row.ece_said],
        "ECE agents": [value for row in rows for value in row.ece_agents],
        "  floor": [value for row in rows for value in row.floor_agents],
        "  luck": [value for row in rows for value in row.luck_agents],
        "ECE beliefs": [row.ece_fused for row in rows],
        "  floor of it": [row.floor for row in rows],
        "ECE trust": [row.ece_trust for row in rows],
        "size of sets": [row.set_size for row in rows],
    }
    return {name: float(np.nanmedian(found)) for name, found in values.items()}


def _shares(rows: Sequence[Row], policy: str) -> dict[str, float]:
    gain = gains(rows, policy)
    return {
        "panels": len(rows),
        "mean gain": float(gain.mean()),
        "worse": int((gain < -WORSE).sum()),
        "  in groups": sum(row.grouped for row, lost in zip(rows, gain, strict=True) if lost < -WORSE),
        "accepting": sum(row.accepted > 0 for row in rows),
        "accepted": float(np.mean([row.accepted for row in rows])),
        "over the target": sum(row.error > Config().target_risk for row in rows),
        "coverage": float(np.mean([row.coverage for row in rows])),
        "least coverage": min(row.coverage for row in rows),
    }


def main() -> int:
    """Measure, print, and tell by the exit status whether every figure was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panels", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first panel")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", choices=get_args(PolicyName), default="pool", help="the one that decides")
    parser.add_argument("--new", type=int, default=10_000, help="cases on which each panel is judged")
    parser.add_argument("--alone", action="store_true", help="fit no other policy beside it")
    parser.add_argument("--json", action="store_true", help="print laws and rows as JSON")
    args = parser.parse_args()
    rows, start = [], time.monotonic()
    for done, number in enumerate(range(args.first, args.first + args.panels), 1):
        rows.append(measure(args.seed, number, args.policy, args.new, not args.alone))
        spent = time.monotonic() - start
        if done % 10 == 0:
            left = spent / done * (args.panels - done)
            print(
                f"{done} of {args.panels} panels, {spent:.0f} s, about {left:.0f} s left", file=sys.stderr, flush=True
            )
    found = laws(rows, args.policy)
    if args.json:
        kept = {"policy": args.policy, "laws": [law._asdict() for law in found], "rows": [vars(row) for row in rows]}
        print(json.dumps(_no_nan(kept)))
    else:
        print(tables(rows, args.policy))
    return int(not all(law.met for law in found))


def _no_nan(value: object) -> object:
    """Write what is undefined as null."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {key: _no_nan(entry) for key, entry in value.items()}
    return [_no_nan(entry) for entry in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    sys.exit(main())
