"""`secondlook replay`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from secondlook.console import progress
from secondlook.options import Json


def replay(
    answers: Annotated[
        Path,
        typer.Argument(metavar="ANSWERS.csv", help="Recorded answers: case,agent,look,label,confidence,probs,..."),
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POLICY",
            help="One to judge, repeatable: best-agent, neighbour-vote, majority, mean, confidence-weighted, cooked, "
            "pool, confusion, stacked, joint-confusion, auto, cheap-first. All that the answers allow by default.",
        ),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, max=50, help="Parts; each is judged by a fit on the rest.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, max=1000, help="How often the parts are dealt anew.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the parts.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for replay.json and a CSV by case.")] = None,
    as_json: Json = False,
) -> None:
    """Judge policies on recorded answers, without calling a model.

    ANSWERS.csv holds one row for each case, agent and look: case,agent,look,label,confidence,probs,seconds,usd, and the
    true label in a column truth or in rows of the agent truth. See docs/replay.md.

    Example: `secondlook replay ANSWERS.csv --policy confusion --policy cheap-first --out REPLAY`
    """
    from secondlook.eval.policy import policies_for
    from secondlook.eval.recorded_answers import read_answers
    from secondlook.eval.replay import replay as run_replay
    from secondlook.eval.replay_figures import figures
    from secondlook.replay_table import make_folder, print_replay, write_replay

    recorded = read_answers(answers)
    policies = policies_for(recorded.columns, policy or [])
    if out:
        make_folder(out)
    with progress(quiet=as_json) as report:
        found = run_replay(recorded, policies, folds=folds, repeats=repeats, seed=seed, progress=report)
    computed = figures(found)
    if out:
        write_replay(out, found, computed)
    if as_json:
        print(json.dumps(computed, allow_nan=False))
        return
    print_replay(computed)
    if out:
        print(f"\nWritten to {out}: replay.json, cases.csv")
