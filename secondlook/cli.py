"""The command line. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from secondlook.commands import Commands
from secondlook.console import progress

if TYPE_CHECKING:
    from secondlook.agents.embedding_cache import EmbeddingCache

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

Model = Annotated[Path, typer.Option("--model", "-m", help="Model folder that `fit` wrote.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Run folder to write; the same command again resumes.")]
DeviceName = Literal["auto", "cpu", "cuda"]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, max=4096, help="Images judged together.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Do not read or keep embeddings on disk.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Do not write report.html.")]
NoSecond = Annotated[bool, typer.Option("--no-second-look", help="Decide after the first look.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]


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


@app.command()
def fit(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder per label, or a CSV: path,label,group,split.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    encoder: Annotated[
        str, typer.Option(help="leaf-tiny, an OpenCLIP model name, or a folder with open_clip_config.json.")
    ] = "leaf-tiny",
    pretrained: Annotated[
        str | None, typer.Option(help="For a model name: OpenCLIP's tag, or a checkpoint file.")
    ] = None,
    descriptions: Annotated[
        Path | None, typer.Option(help="YAML: labels: {label: [descriptions]}, negatives: [what the images are not].")
    ] = None,
    templates: Annotated[str, typer.Option(help="File of prompts, one a line, {} for the description.")] = (
        "clip_templates.txt"
    ),
    target_risk: Annotated[float, typer.Option(help="Error rate among accepted images not to be exceeded.")] = 0.05,
    delta: Annotated[float, typer.Option(help="Chance that this promise fails.")] = 0.1,
    stranger_limit: Annotated[float, typer.Option(help="Share of own images sent to review as unusual.")] = 0.08,
    neighbours: Annotated[int, typer.Option("--neighbours", "-k", help="Similar images a second look is shown.")] = 10,
    second_look: Annotated[bool, typer.Option(help="Look again where trust is low, if that helps.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of splits and folds.")] = 0,
    device: DeviceOption = "auto",
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Learn from labelled images: heads and index on train, everything that decides on calibration.

    DATA without splits is split by group (leaf, patient, part), 60/20/20. Photographs of one thing must share a group,
    or every figure will be too good.
    """
    from pydantic import ValidationError

    from secondlook.agents.encoder import EMBEDDED, EncoderSpec
    from secondlook.agents.errors import ConfigError
    from secondlook.eval.fit import fit as run_fit
    from secondlook.orchestrator.config import Config

    try:
        config = Config(
            encoder=EncoderSpec(
                model=encoder if encoder == EMBEDDED else _absolute(encoder),
                pretrained=pretrained and _absolute(pretrained),
            ),
            templates=_absolute(templates),
            neighbours=neighbours,
            target_risk=target_risk,
            delta=delta,
            stranger_limit=stranger_limit,
            second_look=second_look,
            seed=seed,
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"{name}: {first['msg']}, got {first['input']}.", "See secondlook fit --help.") from error
    with _cache(no_cache) as cache, progress(quiet=as_json) as report:
        model = run_fit(
            data, out, config=config, descriptions=descriptions, device=_device(device), cache=cache, progress=report
        )
    from secondlook.show import model_json, print_model

    if as_json:
        print(model_json(model))
    else:
        print_model(model)
        print(f"\nWritten to {out}. Next: secondlook evaluate DATA --model {out} --out RUN")


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
    no_report: NoReport = False,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Judge unlabelled images: a label, its probability, and whether to accept it or ask a human.

    Writes verdicts.jsonl (one line a case, with the whole trail), verdicts.csv and report.html into RUN.
    """
    from secondlook.eval.evaluate import triage as run_triage

    with _cache(no_cache) as cache, progress(quiet=as_json) as report:
        found = run_triage(
            images,
            model,
            out,
            cache=cache,
            device=_device(device),
            batch_size=batch_size,
            second_look=not no_second_look,
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
    ood: Annotated[list[Path] | None, typer.Option(help="Folder of images of something else; repeatable.")] = None,
    allow_seen: Annotated[bool, typer.Option("--allow-seen", help="Score images the model was fitted on.")] = False,
    device: DeviceOption = "auto",
    batch_size: BatchSize = 64,
    no_second_look: NoSecond = False,
    no_report: NoReport = False,
    figures: Annotated[bool, typer.Option("--figures", help="Draw RUN/figures/*.svg and *.png for papers.")] = False,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Judge labelled images and measure everything, beside the plain alternatives.

    The truth is written beside each verdict and never shown to an agent.
    """
    from secondlook.eval.evaluate import evaluate as run_evaluate

    with _cache(no_cache) as cache, progress(quiet=as_json) as report:
        found = run_evaluate(
            data,
            model,
            out,
            cache=cache,
            split=split,
            ood=ood or [],
            allow_seen=allow_seen,
            device=_device(device),
            batch_size=batch_size,
            second_look=not no_second_look,
            report=not no_report,
            figures=figures,
            progress=report,
        )
    _print_metrics(found.metrics, found.report, as_json)


@app.command()
def show(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder.")],
    as_json: Json = False,
) -> None:
    """Show what a model folder knows: track records, weights, threshold, and what a tighter one would need."""
    from secondlook.orchestrator.fitted import load_model
    from secondlook.show import model_json, print_model

    found, _ = load_model(model)
    if as_json:
        print(model_json(found))
    else:
        print_model(found)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed, which devices there are, and where things are kept."""
    from secondlook.doctor import examine

    found = examine()
    if as_json:
        print(json.dumps(found, allow_nan=False))
    else:
        for name, value in found.items():
            print(f"{name:<22} {value}")


@contextmanager
def _cache(no_cache: bool) -> Iterator[EmbeddingCache]:
    """Open the user's cache, or one that is deleted afterwards: a report needs its thumbnails either way."""
    from tempfile import TemporaryDirectory

    from secondlook.agents.embedding_cache import EmbeddingCache

    if not no_cache:
        with EmbeddingCache.default() as cache:
            yield cache
        return
    with TemporaryDirectory(prefix="secondlook-") as folder, EmbeddingCache(Path(folder)) as cache:
        yield cache


def _absolute(name: str) -> str:
    """Keep a file or folder by its whole path, so that the model works from elsewhere too; else the name."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def _device(name: str) -> DeviceName:
    from secondlook.agents.errors import ConfigError

    match name:
        case "auto" | "cpu" | "cuda":
            return name
    raise ConfigError(f"There is no device {name!r}.", "Use --device auto, cpu or cuda.")


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
