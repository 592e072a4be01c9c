"""The command line. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from secondlook.commands import Commands
from secondlook.console import progress
from secondlook.feedback_command import feedback
from secondlook.fit_command import fit
from secondlook.options import (
    BatchSize,
    DeviceOption,
    Json,
    Ledger,
    Model,
    NoCache,
    NoReport,
    NoSecond,
    Out,
    device_of,
    opened_cache,
)
from secondlook.replay_command import replay

app = typer.Typer(
    name="secondlook",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Judge images with several vision agents, and know when not to believe them.

Start with `secondlook demo`: the whole thing on rendered leaves, offline, in about a minute.

With images of your own, sorted into one folder per label:

1. `secondlook fit DATA --out MODEL` learns, calibrates and measures;
2. `secondlook evaluate DATA --model MODEL --out RUN` says how good it is, beside the plain alternatives;
3. `secondlook triage IMAGES --model MODEL --out RUN` judges unlabelled images: accept, or review.
""",
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for images, model and report.")] = Path("demo-run"),
    as_json: Json = False,
) -> None:
    """Render leaves, fit, evaluate and write a report: everything, offline, in about a minute.

    The leaves are drawn, so nothing is downloaded and the truth is known; strangers (pictures of other things) are
    mixed in to see whether they are sent to review.
    """
    from secondlook.demo import run_demo

    with progress(quiet=as_json) as report:
        metrics, page = run_demo(out, report)
    _print_metrics(metrics, page, as_json)


app.command()(fit)


@app.command()
def triage(
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="An image, or a folder of images; subfolders are read too.")
    ],
    model: Model,
    out: Out,
    device: DeviceOption = "auto",
    batch_size: BatchSize = 64,
    no_second_look: NoSecond = False,
    ledger: Ledger = None,
    no_report: NoReport = False,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Judge unlabelled images: a label, its probability, and whether to accept it or ask a human.

    Writes verdicts.jsonl (one line a case, with the whole trail), verdicts.csv and report.html into RUN.

    Example: `secondlook triage new-photos/ --model model/ --out triage/`
    """
    from secondlook.eval.evaluate import triage as run_triage

    with opened_cache(no_cache) as cache, progress(quiet=as_json) as report:
        found = run_triage(
            images,
            model,
            out,
            cache=cache,
            device=device_of(device),
            batch_size=batch_size,
            second_look=not no_second_look,
            ledger=ledger,
            report=not no_report,
            progress=report,
        )
    rate = found.pace.images / found.pace.seconds if found.pace.images else None
    if as_json:
        print(
            json.dumps(
                {
                    "n": found.n,
                    "accepted": found.accepted,
                    "review": found.reasons,
                    "judged_now": found.pace.images,
                    "encoded_now": found.pace.encoded,
                    "seconds": found.pace.seconds,
                    "images_per_s": rate,
                    "out": str(out),
                }
            )
        )
        return
    reasons = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in sorted(found.reasons.items()))
    print(f"{found.n} images: {found.accepted} accepted, {found.n - found.accepted} to review ({reasons or 'none'}).")
    if rate:
        print(f"{found.pace.images} judged now, {rate:.0f} images/s.")
    print(f"Verdicts: {out / 'verdicts.csv'}" + (f"   Report: {found.report}" if found.report else ""))


@app.command()
def evaluate(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Labelled images, in any form that `fit` reads.")],
    model: Model,
    out: Out,
    split: Annotated[str | None, typer.Option(help="Which split; `test` where there is one, else all.")] = None,
    ood: Annotated[
        list[Path] | None, typer.Option(metavar="FOLDER", help="Images of something else; repeatable.")
    ] = None,
    allow_seen: Annotated[bool, typer.Option("--allow-seen", help="Score images the model was fitted on.")] = False,
    device: DeviceOption = "auto",
    batch_size: BatchSize = 64,
    no_second_look: NoSecond = False,
    ledger: Ledger = None,
    no_report: NoReport = False,
    figures: Annotated[bool, typer.Option("--figures", help="Draw RUN/figures/*.svg and *.png for papers.")] = False,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Judge labelled images and measure everything, beside the plain alternatives.

    The truth is written beside each verdict and never shown to an agent.

    Example: `secondlook evaluate photos/ --model model/ --out run/ --ood other-things/ --figures`
    """
    from secondlook.eval.evaluate import evaluate as run_evaluate

    with opened_cache(no_cache) as cache, progress(quiet=as_json) as report:
        found = run_evaluate(
            data,
            model,
            out,
            cache=cache,
            split=split,
            ood=ood or [],
            allow_seen=allow_seen,
            device=device_of(device),
            batch_size=batch_size,
            second_look=not no_second_look,
            ledger=ledger,
            report=not no_report,
            figures=figures,
            progress=report,
        )
    _print_metrics(found.metrics, found.report, as_json)


app.command()(replay)
app.command()(feedback)


@app.command()
def show(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")],
    as_json: Json = False,
) -> None:
    """Show what a model folder knows: track records, weights, threshold, and what a tighter one would need.

    Where feedback has been given, also what the agents are worth by now; `secondlook feedback -m MODEL --json` gives
    that alone.
    """
    from secondlook.orchestrator.fitted import load_model
    from secondlook.orchestrator.ledger import TRACK_FILE
    from secondlook.show import model_json, print_model

    found, _ = load_model(model)
    if as_json:
        print(model_json(found))
    else:
        print_model(found)
        if (model / TRACK_FILE).is_file():
            from secondlook.standing_table import print_ledger

            print_ledger(model)


@app.command()
def doctor(
    agents: Annotated[
        Path | None, typer.Option(help="YAML of language models: is each folder there, does each endpoint answer?")
    ] = None,
    backbones: Annotated[bool, typer.Option("--backbones", help="List what --encoder can load instead.")] = False,
    word: Annotated[
        str | None, typer.Argument(metavar="[WORD]", help="With --backbones: those called like it, and their tags.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is installed, which devices there are, and where things are kept.

    Example: `secondlook doctor --backbones siglip`
    """
    from secondlook.doctor import backbone_lines, examine, examine_agents, examine_backbones

    if backbones:
        listed = examine_backbones(word or "")
        print(listed.model_dump_json() if as_json else "\n".join(backbone_lines(listed, detail=bool(word))))
        return
    if word:
        raise typer.BadParameter(f"{word!r} is for --backbones, which is not given.")
    found = examine()
    if agents:
        found |= examine_agents(agents)
    if as_json:
        print(json.dumps(found, allow_nan=False))
    else:
        for name, value in found.items():
            print(f"{name:<22} {value}")


def _print_metrics(metrics: dict[str, float | int | str | None], page: Path | None, as_json: bool) -> None:
    from secondlook.show import print_metrics

    if as_json:
        print(json.dumps(metrics, allow_nan=False))
        return
    print_metrics(metrics)
    if page:
        print(f"\nReport: {page}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, on the process's own arguments by default; it ends in `SystemExit`."""
    app(arguments, prog_name="secondlook")
