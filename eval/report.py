"""The report of a run: one page that needs nothing but itself, written case by case."""

from __future__ import annotations

import base64
import hashlib
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from secondlook.eval.case_blocks import Pictures, blocks, meta, script
from secondlook.eval.charts import reliability_chart, risk_chart
from secondlook.eval.gauges import gauges
from secondlook.eval.measured import Figure, Measured, read_measured, read_object
from secondlook.eval.sentences import sentences
from secondlook.eval.standings import comparison, standings, strip
from secondlook.eval.tally import Tally, read_rows
from secondlook.eval.wrong_together import wrong_together

FOLDER = Path(__file__).parent

MATRIX_LABELS = 12
"""Up to this many names the confusions are shown as a matrix, above as a list."""

MAX_TEXT = 2000
"""Characters shown of one value of the manifest."""

REVIEWS = {
    "low_trust": "trust stayed below what the target risk demands",
    "stranger": "resembles nothing the model was fitted on",
    "no_threshold": "no threshold can promise the target risk",
    "incomplete": "an agent could not be reached, and the promise was measured with it",
    "no_outcome": "no agent could answer",
    "budget": "the budget did not allow the look they needed",
    "unproven": "something has changed since its trust was measured",
    "drift": "what is measured has moved away from what the model was fitted on",
    "trusted": "trusted, yet sent to review",
}

KINDS = {"triage": "triage", "evaluate": "evaluation", "ood": "images of something else"}
"""Kinds of run, as the manifest names them."""

NO_ANSWER = "no answer"

FEW = 12
"""Above this many rows, the comparison folds away the agents and what knows the truth."""

LISTED = 50
"""Confusions that are listed where there are too many labels for a matrix."""


def write_report(run: Path, pictures: Pictures) -> Path:
    """Write report.html into a run folder.

    Memory does not grow with the run but for 9 bytes a labelled case: verdicts are read twice, once to count and once
    to write them into the page.

    Parameters
    ----------
    run : Path
        Holds verdicts.jsonl, and where known metrics.json and manifest.json.
    pictures : callable
        Given a case's digest or a neighbour's path, returns a small JPEG or None; asked while writing.

    Returns
    -------
    Path
        The page; it replaces an earlier one only when it is whole.

    Raises
    ------
    ConfigError
        If a file of the run is missing or is not what it should be.
    """
    tally = Tally()
    for _ in read_rows(run / "verdicts.jsonl", tally):
        pass
    template = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.j2")
    page, draft = run / "report.html", run / "report.html.part"
    with draft.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
        for piece in template.generate(**_context(run, tally), blocks=blocks(run / "verdicts.jsonl", tally, pictures)):
            file.write(piece)
    draft.replace(page)
    return page


def _context(run: Path, tally: Tally) -> dict[str, Any]:
    """Gather everything the template shows beside the cases."""
    measured, manifest = read_measured(run / "metrics.json"), read_object(run / "manifest.json")
    css, js = ((FOLDER / name).read_text("utf-8") for name in ("report.css", "report.js"))
    target = measured.numbers.get("sel/target_risk")
    error = measured.figure("sel/accepted_error") or _share(tally.accepted_wrong, tally.accepted_labelled)
    cost = measured.figure("sel/accepted_cost")
    risk = cost or error
    accuracy = measured.figure("acc/top1") or _share(tally.right, tally.labelled)
    ranked = standings(measured, accuracy)
    data = manifest.get("data")
    return {
        "t": tally,
        "kind": KINDS.get(str(manifest.get("kind")), "evaluation" if tally.labelled else "triage"),
        "title": (Path(data).name if isinstance(data, str) else "") or run.resolve().name,
        "css": Markup(css),
        "js": Markup(js),
        "css_hash": _sha256(css),
        "js_hash": _sha256(js),
        "meta": script(meta(tally)),
        "target": target,
        "error": error,
        "cost": cost,
        "missed": target is not None and risk is not None and risk.value > target,
        "accuracy": accuracy,
        "sentences": sentences(tally, measured, risk, target, of_cost=cost is not None),
        "reviews": [{"n": n, "text": REVIEWS[reason]} for reason, n in tally.reasons.most_common()],
        "ranked": ranked,
        "few": len(ranked) <= FEW,
        "beaten": any(s.better for s in ranked if s.kind != "bound"),
        "comparison": comparison(ranked, measured.texts.get("base/best_agent_name")),
        "strip": strip(ranked),
        "shared": wrong_together(measured),
        "gauges": gauges(measured),
        "reliability": reliability_chart(tally),
        "risk": risk_chart(tally, None if cost else target),
        "confusion": _confusion(tally),
        "found": _found(tally),
        "strangers": _strangers(run, measured),
        "numbers": _numbers(measured),
    } | _made(manifest)


def _made(manifest: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest as text."""
    notes = manifest.pop("notes", None) or []
    return {
        "created": _moment(manifest.get("created")),
        "notes": [str(note)[:MAX_TEXT] for note in (notes if isinstance(notes, list) else [notes])],
        "manifest": [(key.replace("_", " "), _plain(value)[:MAX_TEXT]) for key, value in manifest.items()],
    }


def _moment(created: object) -> str | None:
    """Write a time of ISO 8601 to the minute; anything else as it is."""
    try:
        return datetime.fromisoformat(str(created)).astimezone(UTC).strftime("%-d %B %Y, %H:%M UTC")
    except ValueError:
        return None if created is None else str(created)


def _numbers(measured: Measured) -> list[tuple[str, str, str]]:
    """List every number by key, value and interval."""
    rows = []
    for key, value in measured.numbers.items():
        if not key.endswith(("/lo", "/hi")):
            ends = [measured.numbers.get(f"{key}/{end}") for end in ("lo", "hi")]
            rows.append((key, f"{value:.6g}", " to ".join(f"{end:.4g}" for end in ends if end is not None)))
    return rows


def _strangers(run: Path, measured: Measured) -> list[dict[str, Any]]:
    """List the sets of images that are not of the task, each with its own page where it has one."""
    return [
        {
            "name": name,
            "href": f"ood/{quote(name)}/report.html" if (run / "ood" / name / "report.html").is_file() else None,
            "review": measured.figure(f"ood/{name}/review_share"),
            "n": measured.numbers.get(f"ood/{name}/n"),
            "figures": [measured.figure(f"ood/{name}/{key}") for key in ("auroc", "aupr", "fpr95")],
        }
        for name in measured.names("ood", "review_share", "auroc")
    ]


def _share(part: int, whole: int) -> Figure | None:
    return Figure(part / whole) if whole else None


def _plain(value: object) -> str:
    """Write a JSON value as text: one line for each key, commas between items."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "–" if value is None else str(value)


def _href(truth: str | None, label: str | None) -> str:
    """Address the cases of a cell; an empty label stands for no answer."""
    return "#" + urlencode(({} if truth is None else {"truth": truth}) | {"label": label or ""})


def _found(tally: Tally) -> list[dict[str, Any]]:
    """Count an unlabelled run's labels, most frequent first; nothing for a labelled run."""
    if tally.labelled:
        return []
    return [
        {"name": label or NO_ANSWER, "n": n, "accepted": tally.accepted_as[label], "href": _href(None, label)}
        for (_, label), n in tally.cells.most_common()
    ]


def _confusion(tally: Tally) -> dict[str, Any] | None:
    """Lay out truth against verdict, as a matrix or for many labels as a list, each entry a link to its cases."""
    cells = {(truth, label): n for (truth, label), n in tally.cells.items() if truth is not None}
    if not cells:
        return None
    if len(tally.names) > MATRIX_LABELS:
        wrong = sorted(((n, t, p) for (t, p), n in cells.items() if t != p), key=lambda c: (-c[0], c[1], c[2] or ""))
        pairs = [
            {"n": n, "href": _href(t, p), "text": f"{t} taken for {p}" if p else f"{t}: {NO_ANSWER}"}
            for n, t, p in wrong[:LISTED]
        ]
        return {"matrix": False, "pairs": pairs, "more": max(0, len(wrong) - LISTED)}
    said, true = {label for _, label in cells}, {truth for truth, _ in cells}
    columns: list[str | None] = [name for name in tally.names if name in tally.labels or name in said]
    columns += [None] if None in said else []
    rows = []
    for truth in (name for name in tally.names if name in true):
        total = sum(n for (t, _), n in cells.items() if t == truth)
        row = [
            {
                "n": (n := cells.get((truth, label), 0)),
                "href": _href(truth, label),
                "label": label or NO_ANSWER,
                "kind": "right" if truth == label else "wrong",
                "shade": math.ceil(5 * n / total),
            }
            for label in columns
        ]
        rows.append({"name": truth, "cells": row})
    return {"matrix": True, "columns": [c or NO_ANSWER for c in columns], "rows": rows}


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
