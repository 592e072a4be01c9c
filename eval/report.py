"""The report of a run: one page that needs nothing but itself, written case by case."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from secondlook.agents.errors import ConfigError
from secondlook.eval.charts import reliability_chart, risk_chart
from secondlook.eval.tally import FLAGS, OVERCONFIDENT, Row, Tally, read_rows

Pictures = Callable[[str], bytes | None]
"""Case digest or neighbour path -> a small JPEG, or None where there is none."""

FOLDER = Path(__file__).parent

CHUNK = 100
"""Cases a data block holds; the page splits a block when it shows one of its cases."""

MAX_NEIGHBOUR_PICTURES = 3000
"""Distinct neighbours whose picture is kept in the page; later ones are shown by name."""

MAX_PICTURE_BYTES = 64 * 1024
"""A larger picture is left out."""

MATRIX_LABELS = 12
"""Up to this many names the confusions are shown as a matrix, above as a list."""

MAX_TEXT = 2000
"""Characters shown of one value of the manifest."""

REVIEWS = {
    "low_trust": "trust stayed below what the target risk demands",
    "stranger": "resembles nothing the model was fitted on",
    "no_threshold": "no threshold can promise the target risk",
    "no_outcome": "no agent could answer",
    "trusted": "trusted, yet sent to review",
}

ALTERNATIVES = {
    "neighbour_vote": "neighbour vote",
    "majority": "majority of the agents",
    "mean": "mean of the agents",
}


class Figure(NamedTuple):
    """A measured number and the ends of its interval; None where undefined."""

    value: float
    lo: float | None = None
    hi: float | None = None


class Standing(NamedTuple):
    """One row of the comparison: how often right when this decides."""

    name: str
    kind: str
    """``system``, ``rule``, ``agent`` or ``bound``."""
    figure: Figure
    gain: float
    """Accuracy above the system's."""
    note: str = ""
    ece: float | None = None


class Metrics(NamedTuple):
    """What metrics.json holds: finite numbers, and texts."""

    numbers: dict[str, float]
    texts: dict[str, str]

    def figure(self, key: str) -> Figure | None:
        """Look up a number with its interval; None where it is missing or undefined."""
        if key not in self.numbers:
            return None
        return Figure(self.numbers[key], self.numbers.get(f"{key}/lo"), self.numbers.get(f"{key}/hi"))

    def names(self, prefix: str, *suffixes: str) -> list[str]:
        """List the NAMEs of the keys ``prefix/NAME/suffix``, in their order."""
        form = re.compile(rf"{prefix}/(.+)/(?:{'|'.join(suffixes)})")
        return list(dict.fromkeys(m[1] for key in self.numbers if (m := form.fullmatch(key))))


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
        for piece in template.generate(**_context(run, tally), blocks=_blocks(run, tally, pictures)):
            file.write(piece)
    draft.replace(page)
    return page


def _context(run: Path, tally: Tally) -> dict[str, Any]:
    """Gather everything the template shows above the cases."""
    metrics, manifest = _metrics(run / "metrics.json"), _json(run / "manifest.json")
    css, js = ((FOLDER / name).read_text("utf-8") for name in ("report.css", "report.js"))
    target = (metrics.figure("sel/target_risk") or Figure(math.nan)).value
    target = None if math.isnan(target) else target
    error = metrics.figure("sel/accepted_error") or _share(tally.accepted_wrong, tally.accepted_labelled)
    accuracy = metrics.figure("acc/top1") or _share(tally.right, tally.labelled)
    baselines = _standings(metrics, accuracy)
    notes = manifest.pop("notes", None) or []
    data = manifest.get("data")
    return {
        "t": tally,
        "title": Path(data).name if isinstance(data, str) and Path(data).name else run.resolve().name,
        "created": manifest.get("created"),
        "css": Markup(css),
        "js": Markup(js),
        "css_hash": _sha256(css),
        "js_hash": _sha256(js),
        "meta": _script(_meta(tally)),
        "target": target,
        "error": error,
        "missed": target is not None and error is not None and error.value > target,
        "accuracy": accuracy,
        "ece": metrics.figure("cal/ece"),
        "sentences": _sentences(tally, metrics, error, target),
        "reviews": [{"n": n, "text": REVIEWS[reason]} for reason, n in tally.reasons.most_common()],
        "baselines": baselines,
        "beaten": any(b.gain > 0 for b in baselines if b.kind != "bound"),
        "comparison": _comparison(baselines, metrics.texts.get("base/best_agent_name")),
        "strip": _strip(baselines),
        "reliability": reliability_chart(tally),
        "risk": risk_chart(tally, target),
        "confusion": _confusion(tally),
        "strangers": [
            {
                "name": name,
                "review": metrics.figure(f"ood/{name}/review_share"),
                "auroc": metrics.figure(f"ood/{name}/auroc"),
            }
            for name in metrics.names("ood", "review_share", "auroc")
        ],
        "notes": [str(note)[:MAX_TEXT] for note in (notes if isinstance(notes, list) else [notes])],
        "manifest": [(key, _plain(value)[:MAX_TEXT]) for key, value in manifest.items()],
        "numbers": [
            (
                key,
                f"{value:.6g}",
                " to ".join(f"{end:.4g}" for end in (metrics.figure(key) or ())[1:] if end is not None),
            )
            for key, value in metrics.numbers.items()
            if not key.endswith(("/lo", "/hi"))
        ],
    }


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}.", "Run the same command again.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is not a JSON object.", "Run the same command again.")
    return value


def _metrics(path: Path) -> Metrics:
    raw = _json(path)
    numbers = {k: float(v) for k, v in raw.items() if isinstance(v, int | float) and math.isfinite(v)}
    return Metrics(numbers, {k: v for k, v in raw.items() if isinstance(v, str)})


def _share(part: int, whole: int) -> Figure | None:
    return Figure(part / whole) if whole else None


def _plain(value: object) -> str:
    """Write a JSON value as text: one line for each key, commas between items."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "–" if value is None else str(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + "\u202f%"


def _sentences(tally: Tally, metrics: Metrics, error: Figure | None, target: float | None) -> list[str]:
    """Say in words what the large numbers mean."""
    said = []
    if error and target is not None:
        within = f"The measured error is within the target of {_percent(target)}"
        if error.value > target:
            missed = f"{_percent(error.value)} of what it accepted is wrong, not at most {_percent(target)}"
            said.append(f"The gate missed its target: {missed}.")
        elif error.hi is not None and error.hi > target:
            said.append(f"{within}, but its interval reaches above it: it takes more cases to be sure.")
        else:
            said.append(f"{within}.")
    second, sure = tally.having(FLAGS["second"]), tally.having(FLAGS["wrong"] | FLAGS["confident"])
    if second:
        became = f"; that put {tally.fixed:,} right and {tally.broken:,} wrong" if tally.labelled else ""
        said.append(f"{_counted(second, 'image')} ({_percent(second / tally.n)}) had a second look{became}.")
    elif tally.n:
        said.append("No image had a second look.")
    if tally.labelled:
        said.append(
            f"{_counted(sure, 'label')} with a confidence of {_percent(OVERCONFIDENT)} or more turned out wrong."
        )
    if speed := metrics.figure("time/images_per_s"):
        said.append(f"Judged at {speed.value:.3g} images a second.")
    return said


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}" if n else f"No {noun}"


def _standings(metrics: Metrics, system: Figure | None) -> list[Standing]:
    """List the alternatives below the system; none where nothing was measured beside it."""
    if system is None:
        return []
    found = []

    def add(name: str, kind: str, key: str, note: str = "", ece: float | None = None) -> None:
        if figure := metrics.figure(key):
            found.append(Standing(name, kind, figure, figure.value - system.value, note, ece))

    best = metrics.texts.get("base/best_agent_name", "")
    add("best agent alone", "rule", "base/best_agent", best, metrics.numbers.get(f"agents/{best}/ece"))
    for key, name in ALTERNATIVES.items():
        add(name, "rule", f"base/{key}")
    add("oracle", "bound", "base/oracle", "right if any agent is")
    whole = metrics.numbers.get("n")
    for name in metrics.names("agents", "acc"):
        n = metrics.numbers.get(f"agents/{name}/n", whole)
        note = "agent" if n is None or n == whole else f"agent, on {n:,.0f} images"
        add(name, "agent", f"agents/{name}/acc", note, metrics.numbers.get(f"agents/{name}/ece"))
    ours = Standing("secondlook", "system", system, 0.0, "this system", metrics.numbers.get("cal/ece"))
    return [ours, *found] if found else []


def _comparison(standings: list[Standing], best_agent: str | None) -> str:
    """Say plainly whether anything did better than the system."""
    rivals = [s for s in standings if s.kind == "rule" or (s.kind == "agent" and s.name != best_agent)]
    rivals.sort(key=lambda s: -s.gain)
    better = ", ".join(f"{s.name} (by {100 * s.gain:.1f} points)" for s in rivals if s.gain > 0)
    if better:
        more = f"More often right on these images: {better}. Where intervals overlap this may be chance."
        return f"The system is not the best here. {more}"
    if not rivals:
        return ""
    first = rivals[0]
    place = "was right as often" if first.gain == 0 else f"came closest, {-100 * first.gain:.1f} points behind"
    return f"No alternative was right more often on these images; {first.name} {place}."


def _strip(standings: list[Standing]) -> Callable[[float], float]:
    """Place accuracies on a strip 160 wide that begins below the lowest of them."""
    ends = [e for s in standings for e in (s.figure.value, s.figure.lo) if e is not None]
    low = max(0.0, min(ends, default=0.0) - 0.02)
    return lambda share: round(2 + 156 * (share - low) / (1 - low), 1) if low < 1 else 158.0


def _names(tally: Tally) -> list[str]:
    """List the task's labels, then whatever else stands as truth or label."""
    others = {name for cell in tally.cells for name in cell if name is not None} - set(tally.labels)
    return [*tally.labels, *sorted(others)]


def _confusion(tally: Tally) -> dict[str, Any] | None:
    """Lay out truth against verdict, each cell a link to its cases."""
    if not tally.n:
        return None

    def href(truth: str | None, label: str | None) -> str:
        return "#" + urlencode(({} if truth is None else {"truth": truth}) | {"label": label or ""})

    cells = {cell: n for cell, n in tally.cells.items() if (cell[0] is not None) == bool(tally.labelled)}
    names = _names(tally)
    if not tally.labelled or len(names) > MATRIX_LABELS:
        wrong = sorted(
            ((n, t, p) for (t, p), n in cells.items() if t is None or t != p), key=lambda c: (-c[0], str(c[1:]))
        )
        pairs = [
            {"n": n, "href": href(t, p), "text": (f"{t} taken for " if t is not None else "") + (p or "no answer")}
            for n, t, p in wrong[:50]
        ]
        return {"matrix": False, "pairs": pairs, "more": max(0, len(wrong) - 50)}
    columns: list[str | None] = [*(c for c in names if c in tally.labels or any(p == c for _, p in cells))]
    if any(p is None for _, p in cells):
        columns.append(None)
    rows = []
    for truth in (name for name in names if any(t == name for t, _ in cells)):
        total = sum(n for (t, _), n in cells.items() if t == truth)
        line = []
        for label in columns:
            n = cells.get((truth, label), 0)
            line.append(
                {
                    "n": n,
                    "href": href(truth, label),
                    "label": label or "no answer",
                    "kind": "right" if truth == label else "wrong",
                    "shade": math.ceil(5 * n / total),
                }
            )
        rows.append({"name": truth, "cells": line})
    return {"matrix": True, "columns": [c or "no answer" for c in columns], "rows": rows}


def _meta(tally: Tally) -> dict[str, Any]:
    """Build what the page's script must know before it reads a case."""
    filters = [("all", "all", 0), ("accepted", "accepted", FLAGS["accepted"]), ("review", "review", FLAGS["review"])]
    if tally.labelled:
        filters += [
            ("wrong", "wrong", FLAGS["wrong"]),
            ("accepted-wrong", "accepted and wrong", FLAGS["accepted"] | FLAGS["wrong"]),
            ("sure-wrong", "confident and wrong", FLAGS["confident"] | FLAGS["wrong"]),
        ]
    filters += [("second", "second look", FLAGS["second"]), ("strangers", "strangers", FLAGS["stranger"])]
    return {
        "names": _names(tally),
        "chunk": CHUNK,
        "filters": [{"key": k, "text": text, "mask": mask, "n": tally.having(mask)} for k, text, mask in filters],
    }


def _blocks(run: Path, tally: Tally, pictures: Pictures) -> Iterator[Markup]:
    """Write the cases as data blocks: an index, the details one a line, and the neighbours' pictures new to them."""
    numbers = {name: i for i, name in enumerate(_names(tally))}
    rows = islice(read_rows(run / "verdicts.jsonl"), tally.n)
    shown: dict[str, int | None] = {}
    stored = 0
    while chunk := list(islice(rows, CHUNK)):
        index, details, fresh = [], [], []
        for row in chunk:
            for path in dict.fromkeys(n.path for n in row.evidence if n.path):
                if path not in shown and len(shown) < MAX_NEIGHBOUR_PICTURES:
                    data = _base64(pictures(path))
                    shown[path] = None if data is None else stored + len(fresh)
                    fresh += [] if data is None else [data]
            label, truth = (-1 if name is None else numbers[name] for name in (row.label, row.truth))
            index.append([row.id, label, truth, row.flags, _rounded(row.trust)])
            details.append(_detail(row, _base64(pictures(row.digest)) if row.digest else None, shown))
        yield Markup('<script type="application/json" class="index">{}</script>').format(_script(index))
        yield _lines('class="cases"', details)
        if fresh:
            yield _lines(f'class="pictures" data-first="{stored}"', fresh)
        stored += len(fresh)


def _detail(row: Row, picture: str | None, shown: dict[str, int | None]) -> dict[str, Any]:
    """Reduce a verdict to what the page shows of it."""
    said = {"__all__": {"opinions": {"__all__": {"label", "confidence"}}}}
    left_out: Any = {
        "labels": True,
        "model": True,
        "digest": True,
        "probs": True,
        "reason": True,
        "trust": True,
        "evidence": True,
    }
    kept: dict[str, Any] = _rounded(row.model_dump(mode="json", exclude=left_out | {"looks": said}))
    neighbours = [
        {"id": n.id, "label": n.label, "similarity": _rounded(n.similarity), "picture": shown.get(n.path or "")}
        for n in row.evidence
    ]
    return kept | {"picture": picture, "evidence": neighbours}


def _rounded(value: Any) -> Any:
    """Round every float of a JSON value to four digits; what is not finite becomes None."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return {key: _rounded(item) for key, item in value.items()} if isinstance(value, dict) else value


def _base64(picture: bytes | None) -> str | None:
    return base64.b64encode(picture).decode() if picture and len(picture) <= MAX_PICTURE_BYTES else None


def _script(value: object) -> Markup:
    """Write JSON that can stand in a script element: nothing in it can end the element or open a comment."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _lines(attributes: str, values: list[Any]) -> Markup:
    body = Markup("\n").join(map(_script, values))
    return Markup(f'<script type="application/jsonl" {attributes}>{body}</script>')


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
