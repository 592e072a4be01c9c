"""What a replay found, as a table for a terminal and as files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from secondlook.agents.errors import ConfigError
from secondlook.eval.replay import Replay
from secondlook.eval.replay_figures import averaged, decisions, judged
from secondlook.eval.run_folder import cell, write_whole
from secondlook.tables import plain, print_line, print_whole, wide_console

QUALITY = {
    "ECE": ("cal/ece", ".3f"),
    "NLL": ("cal/nll", ".3f"),
    "OCR": ("cal/ocr", ".3f"),
    "CCC": ("cal/ccc", ".2f"),
    "AURC": ("sel/aurc", ".4f"),
    "VLM": ("cost/vlm_calls_per_image", ".2f"),
    "LLM": ("cost/llm_calls_per_image", ".2f"),
    "s": ("cost/seconds_per_image", ".2f"),
    "USD": ("cost/usd_per_image", ".5f"),
}
"""Headings, what stands below them, and in how many digits."""
RIVALS = {"published": "p published", "neighbour_vote": "p vote"}
Found = dict[str, Any]


def print_replay(found: Found, console: Console | None = None) -> None:
    """Print what `secondlook.eval.replay_figures.figures` computed."""
    console = console or wide_console()
    print_whole(console, _policies(found))
    print_whole(console, _published(found))
    rivals = " and ".join(name.replace("_", " ") for name in _rivals(found))
    lines = [
        "Means over the repeats; the interval is over cases. VLM and LLM: calls per image; s and USD per image.",
        f"p: adjusted for {len(found['policies'])} policies (Holm), against {rivals} on the same cases; a case counts "
        "by the label that most repeats gave it.",
        found["power"]["sentence"],
        *(f"- {note}" for note in found["notes"]),
    ]
    for line in lines if rivals else lines[:1] + lines[2:]:
        print_line(console, line)


def _rivals(found: Found) -> list[str]:
    figures = next(iter(found["policies"].values()))
    return [rival for rival in RIVALS if f"vs/{rival}/p" in figures]


def _policies(found: Found) -> Table:
    groups = "" if found["n_groups"] == found["n"] else f" of {found['n_groups']} groups"
    fitted = f"cross-fitted: {found['folds']} folds, {found['repeats']} repeats"
    table = Table(title=f"Policies on {found['n']} cases{groups}, {fitted}", title_justify="left")
    rivals = _rivals(found)
    table.add_column("policy")
    for name in ("accuracy", "95 %", *QUALITY, *(RIVALS[rival] for rival in rivals)):
        table.add_column(name, justify="right")
    for name, figures in found["policies"].items():
        low, high = _number(figures["acc/top1/lo"], ".3f"), _number(figures["acc/top1/hi"], ".3f")
        table.add_row(
            plain(name),
            _number(figures["acc/top1"], ".4f"),
            f"{low}-{high}",
            *(_number(figures[key], digits) for key, digits in QUALITY.values()),
            *(_number(figures[f"vs/{rival}/p_holm"], ".3g") for rival in rivals),
        )
    return table


def _published(found: Found) -> Table:
    table = Table(title="The answers as recorded", title_justify="left")
    table.add_column("answer")
    names = ("accuracy", "weighted F1", "failed", "VLM", "LLM", "s", "USD")
    for name in names:
        table.add_column(name, justify="right")
    for name, figures in found["published"].items():
        table.add_row(
            plain(name),
            _number(figures["acc/top1"], ".4f"),
            _number(figures["acc/weighted_f1"], ".4f"),
            str(figures["n_failed"]),
            *(_number(figures[QUALITY[key][0]], QUALITY[key][1]) for key in ("VLM", "LLM", "s", "USD")),
        )
    return table


def _number(value: float | None, digits: str) -> str:
    return "-" if value is None else format(value, digits)


def make_folder(folder: Path) -> None:
    """Make the folder that the files go to, before anything is computed for them.

    Raises
    ------
    ConfigError
        When it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}.", "Choose a writable --out.") from error


def write_replay(folder: Path, found: Replay, computed: Found) -> None:
    """Write replay.json, and cases.csv with what each policy made of each case.

    `right` is the share of repeats in which the case was called by its true label, `label` the one that most repeats
    gave it, `confidence` that of the belief averaged over the repeats, and `asked` the mean number of columns asked.
    """
    make_folder(folder)
    write_whole(folder / "replay.json", json.dumps(computed, allow_nan=False, indent=1) + "\n")
    answers = found.answers
    partial = folder / "cases.csv.partial"
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("policy", "case", "group", "truth", "label", "right", "confidence", "asked"))
        for name, decided in found.decided.items():
            right = np.mean([judged(each.beliefs).labels == answers.truth for each in decided], axis=0)
            asked = np.mean([each.asked.sum(axis=0) for each in decided], axis=0)
            labels, confidence = decisions(decided), averaged(decided).probs.max(axis=1)
            for i, case in enumerate(answers.cases):
                label = answers.labels[labels[i]] if labels[i] >= 0 else ""
                texts = (name, case, answers.groups[i], answers.labels[answers.truth[i]], label)
                numbers = (right[i], confidence[i], asked[i])
                writer.writerow([*map(cell, texts), *(f"{number:.6g}" for number in numbers)])
    partial.replace(folder / "cases.csv")
