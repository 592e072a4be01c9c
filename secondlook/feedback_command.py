"""`secondlook feedback`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secondlook.options import Json, Ledger, Model


def feedback(
    model: Model,
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Run folder of this model.")] = None,
    truth: Annotated[
        Path | None,
        typer.Argument(metavar="TRUTH.csv", help="Truths that became known: id,label or path,label."),
    ] = None,
    ledger: Ledger = None,
    acknowledge: Annotated[
        str | None, typer.Option(help="Who looked into the alarms, or what was done; alarms end and watching goes on.")
    ] = None,
    half_life: Annotated[float, typer.Option(min=1, help="Cases after which one counts half in the standings.")] = 500,
    window: Annotated[int | None, typer.Option(min=1, help="Count only the last so many cases.")] = None,
    as_json: Json = False,
) -> None:
    """Tell a model what turned out to be true, and see what its agents are worth by now.

    RUN's verdicts and the labels of TRUTH.csv go into the model's ledger, which triage and evaluate read: what drifts,
    or has changed since it was measured, sends everything to review. An evaluation knows its own truths; without any
    truth, belief and agreement are watched. To know the error among accepted images, have some of them checked too,
    drawn at random. See docs/trust.md.

    Examples: `secondlook feedback RUN -m MODEL` after an evaluation, `secondlook feedback RUN TRUTH.csv -m MODEL` after
    a review, `secondlook feedback -m MODEL` to look.
    """
    from secondlook.agents.errors import ConfigError
    from secondlook.eval.feedback import open_feedback
    from secondlook.orchestrator.trust import Memory
    from secondlook.standing_table import print_feedback

    if acknowledge is not None and not acknowledge.strip():
        raise ConfigError("--acknowledge is empty.", "Say who looked into it, or what was done.")
    found = open_feedback(
        model,
        run=run,
        truths=truth,
        ledger=ledger,
        acknowledge=acknowledge,
        memory=Memory(half_life=half_life, window=window),
    )
    if as_json:
        print(found.model_dump_json())
    else:
        print_feedback(found)
