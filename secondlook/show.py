"""Models and metrics as tables for a terminal."""

from __future__ import annotations

import json
import math

from rich.console import Console
from rich.table import Table

from secondlook.orchestrator.fitted import Model
from secondlook.orchestrator.gate import units_needed
from secondlook.orchestrator.pool import Pool
from secondlook.orchestrator.track_record import Measure
from secondlook.tables import plain, print_line, print_whole, wide_console

TIGHTER = (0.02, 0.01)
MOST_PAIRS = 15
"""Pairs of agents that are listed; all of them are in model.json."""
MOST_SCORES = 5
"""Combinations of stranger scores that are listed; likewise."""
Metrics = dict[str, float | int | str | None]


def print_model(model: Model, console: Console | None = None) -> None:
    """Print what a fit learned."""
    console = console or wide_console()
    splits = ", ".join(f"{name} {s.n} images / {s.n_groups} groups" for name, s in model.splits.items())
    print_line(console, f"{len(model.task.labels)} labels: {', '.join(model.task.labels)}")
    print_line(console, f"Fitted on {splits}. Encoder {model.config.encoder.model}. Model {model.digest}.")
    if model.candidates:
        print_whole(console, _candidates(model))
    print_whole(console, _records(model))
    print_whole(console, _weights(model))
    if model.alternatives:
        print_whole(console, _alternatives(model))
    if model.shared_errors:
        print_whole(console, _shared_errors(model))
    if model.strangers.table:
        print_whole(console, _strangers(model))
    for line in (*_promise(model), *(f"- {note}" for note in model.notes)):
        print_line(console, line)


def model_json(model: Model) -> str:
    """Return a model as one JSON object, its digest first; what is undefined is null."""
    return json.dumps({"digest": model.digest, **json.loads(model.model_dump_json())}, allow_nan=False)


def _records(model: Model) -> Table:
    table = Table(title="Track records, on held-out cases, cross-fitted (95 % intervals)", title_justify="left")
    for name in ("agent", "look", "n", "accuracy", "ECE", "before", "OCR", "CCC", "NLL", "calibrator"):
        table.add_column(name, justify="left" if name in ("agent", "calibrator") else "right")
    for r in model.records:
        ece, before = f"{r.ece.value:.3f}", f"{r.ece_raw:.3f}"
        row = (r.look, r.n, _with_interval(r.accuracy), ece, before, f"{r.overconfidence.value:.3f}")
        table.add_row(plain(r.agent), *map(str, row), f"{r.correlation.value:.2f}", f"{r.nll:.3f}", r.calibrator)
    return table


def _weights(model: Model) -> Table:
    table = Table(title="Fusion", title_justify="left")
    for name in ("look", "decides", "held-out NLL", "weights"):
        table.add_column(name)
    for look, fusion in model.fusions.items():
        best = fusion.agent_nll.get(fusion.best_agent, math.nan)
        versus = f"{_digits(fusion.nll)} (best agent {_digits(best)})"
        weights = fusion.weights if isinstance(fusion, Pool) else ()
        said = ", ".join(f"{a} {w:.2f}" for a, w in zip(fusion.agents, weights, strict=False))
        table.add_row(str(look), plain(fusion.fused_by), versus, plain(said))
    return table


def _alternatives(model: Model) -> Table:
    """Of the last look, the lowest held-out NLL first."""
    table = Table(title="Ways to fuse, by held-out NLL (`fit --fusion NAME` takes another)", title_justify="left")
    table.add_column("policy")
    table.add_column("held-out NLL", justify="right")
    table.add_column("decides")
    for name, fusion in sorted(model.alternatives.items(), key=lambda item: (math.isnan(item[1].nll), item[1].nll)):
        table.add_row(plain(name), _digits(fusion.nll), plain(fusion.fused_by))
    return table


def _candidates(model: Model) -> Table:
    """Tabulate what was compared to choose the panel."""
    table = Table(title="Heads compared on training images, by held-out NLL", title_justify="left")
    for name, justify in (("head", "left"), ("n", "right"), ("accuracy", "right"), ("NLL", "right"), ("ECE", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("seconds", justify="right")
    table.add_column("")
    for row in model.candidates:
        figures = (_digits(row.accuracy, 3), _digits(row.nll), _digits(row.ece, 3), f"{row.seconds:.1f}")
        table.add_row(plain(row.name), str(row.n or "-"), *figures, "in the panel" if row.chosen else plain(row.note))
    return table


def _shared_errors(model: Model) -> Table:
    listed = sorted(model.shared_errors, key=lambda pair: -pair.both_wrong)[:MOST_PAIRS]
    cut = f", the {MOST_PAIRS} pairs most often wrong together" if len(model.shared_errors) > MOST_PAIRS else ""
    table = Table(title=f"Errors that agents share, on held-out cases{cut}", title_justify="left")
    table.add_column("agents")
    for name in ("n", "correlation", "both wrong", "agree", "wrong of agreed"):
        table.add_column(name, justify="right")
    for pair in listed:
        figures = (pair.phi, pair.both_wrong, pair.agree, pair.wrong_of_agreed)
        table.add_row(plain(" + ".join(pair.agents)), str(pair.n), *(_digits(figure, 3) for figure in figures))
    return table


def _strangers(model: Model) -> Table:
    """Of what finds strangers, the highest mean first, and what was chosen in any case."""
    choice = model.strangers
    ordered = sorted(choice.table, key=lambda row: (math.isnan(row.mean), -row.mean))
    listed = [row for place, row in enumerate(ordered) if place < MOST_SCORES or row.scores == choice.scores]
    sets = list(listed[0].sets)
    title = f"What finds strangers: AUROC on held-out cases; chosen: {' + '.join(choice.scores)}"
    table = Table(title=title, title_justify="left")
    for name in ("scores", "mean", *(f"{name} (n={listed[0].sets[name].n})" for name in sets)):
        table.add_column(plain(name), justify="left" if name == "scores" else "right")
    for row in listed:
        figures = (row.mean, *(row.sets[name].auroc for name in sets))
        table.add_row(" + ".join(row.scores), *(_digits(figure, 3) for figure in figures))
    return table


def _digits(value: float, digits: int = 4) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _promise(model: Model) -> list[str]:
    gate = model.gate
    sure = f"{1 - gate.delta:.0%}"
    lines = []
    if gate.threshold is None:
        lines.append(f"Gate: nothing is accepted; no threshold promises {gate.promise}.")
    else:
        early = [f"{least:.4f} at look {look}" for look, least in enumerate(gate.thresholds[:-1], 1)]
        least = " and ".join([*early, f"{gate.threshold:.4f}{' at the last' if early else ''}"])
        lines.append(
            f"Gate: accept from a trust of {least}. Among accepted images that holds {gate.promise} with {sure} "
            f"confidence (p = {gate.p_value:.3f}, {gate.n_units} groups; held-out {gate.loss} "
            f"{gate.accepted_error:.2%} at {gate.coverage:.1%} coverage)."
        )
    for target in TIGHTER:
        if target < gate.target_risk:
            lines.append(
                f"A target of {target:.0%} would need {units_needed(target, gate.delta)} calibration groups with an "
                f"accepted image and not one error, more with errors; there are {model.splits['calibration'].n_groups}."
            )
    budget = model.config.budget
    for scope, limits in (("case", budget.per_case), ("run", budget.per_run)):
        if most := [f"{most:g} {kind}" for kind, most in limits.model_dump().items() if most is not None]:
            lines.append(f"Budget of a {scope}: at most {', '.join(most)}; what it does not allow goes to review.")
    flips = model.ledger
    lines.append(
        f"Second look: {'on' if model.second_look else 'off'}. On {flips.asked} held-out cases it fixed {flips.fixed} "
        f"labels and broke {flips.broken}."
    )
    lines.append(
        f"{gate.sets.describe()}; images less typical than {gate.stranger_limit:.1%} of one's own go to review."
    )
    return lines


def print_metrics(metrics: Metrics, console: Console | None = None) -> None:
    """Print the figures of an evaluation: the system, then the alternatives on the same images."""
    console = console or wide_console()
    table = Table(title=f"{metrics['n']} images of {metrics['n_groups']} groups", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        # Pairs of agents and gains, some eighty of them, are for the report and for programs.
        if name.endswith(("/lo", "/hi", "/gain")) or name.startswith("errors/") or name in ("n", "n_groups"):
            continue
        low, high = metrics.get(f"{name}/lo"), metrics.get(f"{name}/hi")
        interval = f"  [{low:.3f}, {high:.3f}]" if isinstance(low, float) and isinstance(high, float) else ""
        table.add_row(plain(name), _number(value) + interval)
    print_whole(console, table)


def _with_interval(m: Measure) -> str:
    return f"{m.value:.3f}" if math.isnan(m.low) else f"{m.value:.3f} [{m.low:.3f}, {m.high:.3f}]"


def _number(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
