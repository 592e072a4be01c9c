"""Triage and evaluation: the two kinds of run, from a model folder to a report."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from secondlook.agents.case import Case
from secondlook.agents.cost import Cost
from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.encoder import Device, Encoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.prediction import Outcome
from secondlook.eval.cases import list_images, read_dataset, readable
from secondlook.eval.dataset import LabelledCase, digests_of
from secondlook.eval.figures import write_figures
from secondlook.eval.held_out import poll
from secondlook.eval.measured import Metrics
from secondlook.eval.pictures import Pictures
from secondlook.eval.progress import Progress, silent
from secondlook.eval.report import write_report
from secondlook.eval.run import Pace, Plan, judge_into, open_run, refuse_seen
from secondlook.eval.run_folder import METRICS, RunFolder, write_whole
from secondlook.eval.summary import score, summarise, summarise_strangers
from secondlook.orchestrator.build import load_pipeline
from secondlook.orchestrator.panel import stack
from secondlook.orchestrator.pipeline import Pipeline

POLLED = 256
"""Cases polled at once."""
FIGURES = "figures"
"""Folder of the static figures in a run folder."""


class Triaged(NamedTuple):
    """What a triage run came to."""

    n: int
    accepted: int
    reasons: dict[str, int]
    """Cases in review, by reason."""
    pace: Pace
    report: Path | None


class Evaluated(NamedTuple):
    """What an evaluation came to."""

    metrics: Metrics
    report: Path | None


def triage(
    images: Path,
    model: Path,
    out: Path,
    *,
    cache: EmbeddingCache,
    device: Device = "auto",
    batch_size: int = 64,
    second_look: bool = True,
    ledger: Path | None = None,
    report: bool = True,
    encoder: Encoder | None = None,
    progress: Progress = silent,
) -> Triaged:
    """Judge every image of a folder, or one image, into a run folder.

    Parameters
    ----------
    images, model, out : Path
    cache : EmbeddingCache
        Also holds the report's thumbnails.
    device, batch_size, second_look, ledger, encoder
        See `secondlook.orchestrator.build.load_pipeline`.
    report : bool
        Whether to write report.html.
    progress : Progress

    Raises
    ------
    ConfigError
        When there is nothing to judge, or a folder is not what it should be.
    """
    cases = list_images(images)
    options: dict[str, object] = {"second_look": second_look}
    plan = Plan("triage", readable(str(images.resolve())), model, out, options)
    with (
        load_pipeline(
            model,
            device=device,
            cache=cache,
            batch_size=batch_size,
            thumbnails=report,
            second_look=second_look,
            encoder=encoder,
            ledger=ledger,
        ) as pipeline,
        open_run(plan, pipeline) as run,
    ):
        pace = judge_into(run, pipeline, cases, len(cases), progress=progress)
        counts = Counter((row.action, row.reason) for row in run.rows())
        page = _finish(run, cache, report)
    accepted = sum(n for (action, _), n in counts.items() if action == "accept")
    reasons = {str(reason): n for (action, reason), n in counts.items() if action == "review"}
    return Triaged(sum(counts.values()), accepted, reasons, pace, page)


def evaluate(
    data: Path,
    model: Path,
    out: Path,
    *,
    cache: EmbeddingCache,
    split: str | None = None,
    ood: Sequence[Path] = (),
    allow_seen: bool = False,
    device: Device = "auto",
    batch_size: int = 64,
    second_look: bool = True,
    ledger: Path | None = None,
    report: bool = True,
    figures: bool = False,
    progress: Progress = silent,
) -> Evaluated:
    """Judge labelled cases and measure everything about it.

    Parameters
    ----------
    data, model, out : Path
    cache : EmbeddingCache
    split : str, optional
        Which split of the data set; `test` where it has one, else all of it.
    ood : sequence of Path
        Folders of images that are not of the task; they should end in review.
    allow_seen : bool
        Score images that the model was fitted on, and stamp the report.
    figures : bool
        Whether to draw RUN/figures; see `secondlook.eval.figures.write_figures`.
    device, batch_size, second_look, ledger, report, progress
        See `triage`.
    """
    with load_pipeline(
        model,
        device=device,
        cache=cache,
        batch_size=batch_size,
        thumbnails=report,
        second_look=second_look,
        ledger=ledger,
    ) as pipeline:
        labelled = labelled_cases(data, pipeline.model.task.labels, split)
        whole = all(row.split is None for row in labelled)
        rows, notes = refuse_seen(labelled, model, allow=allow_seen, leave_out=whole)
        strangers = stranger_cases(ood)
        options: dict[str, object] = {"second_look": second_look, "split": split, "images": _digest_of(rows)}
        with open_run(Plan("evaluate", readable(str(data.resolve())), model, out, options), pipeline, notes) as run:
            truths = {row.case.id: row.truth for row in rows}
            pace = judge_into(run, pipeline, [r.case for r in rows], len(rows), truths=truths, progress=progress)
            metrics = measure(run, pipeline, rows, progress)
            metrics["time/images_per_s"] = pace.images / pace.seconds if pace.images else None
            metrics["time/encoded"] = pace.encoded
            inside = [row.typicality for row in run.rows() if row.typicality is not None]
            for name, (folder, cases) in strangers.items():
                plan = Plan("ood", readable(str(folder)), model, out / "ood" / name, {"second_look": second_look})
                found = _judge_strangers(plan, pipeline, cases, inside, cache, report, progress)
                metrics |= {f"ood/{name}/{figure}": value for figure, value in found.items()}
            write_whole(out / METRICS, json.dumps(metrics, indent=1, allow_nan=False))
            if figures:
                write_figures(out, out / FIGURES)
            return Evaluated(metrics, _finish(run, cache, report))


def labelled_cases(data: Path, labels: Sequence[str], split: str | None) -> list[LabelledCase]:
    """Read the labelled cases of a split; without a name, of `test` where there is one, else all."""
    dataset = read_dataset(data, labels=labels)
    if split is None and "test" in dataset.splits:
        split = "test"
    rows = list(dataset.split(split) if split else dataset.cases)
    if not rows:
        raise ConfigError(f"{data} holds no case to evaluate.", "Give another folder or --split.")
    return rows


def stranger_cases(folders: Sequence[Path]) -> dict[str, tuple[Path, list[Case]]]:
    """List the images of folders of something else, by the name that their figures get.

    Raises
    ------
    ConfigError
        When one is missing or empty, or two have the same name.
    """
    found: dict[str, tuple[Path, list[Case]]] = {}
    for folder in folders:
        cases, name = list_images(folder), readable(folder.resolve().name)
        if not name or name in found:
            raise ConfigError(
                f"--ood {folder}: its figures need a name of their own" + (f", {name!r} is taken." if name else "."),
                "Rename the folder, or give each folder once.",
            )
        found[name] = folder.resolve(), cases
    return found


def _digest_of(rows: Sequence[LabelledCase]) -> str:
    """Name the cases with their truths: figures of a run that was resumed with others would be of neither."""
    digests = digests_of(rows)
    lines = sorted(f"{row.case.id}\t{row.truth}\t{row.case.group}\t{digests.get(row.case.id)}" for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def measure(run: RunFolder, pipeline: Pipeline, rows: Sequence[LabelledCase], progress: Progress) -> Metrics:
    """Compute the figures of a finished run, every agent polled about every case for the comparison."""
    model = pipeline.model
    columns = model.fusions[max(model.fusions)].agents
    by_id = {row.case.id: row.case for row in rows}
    scored, cases = score(run.rows()), [by_id[row.id] for row in run.rows()]
    outcomes: dict[str, list[Outcome]] = {}
    for start in range(0, len(cases), POLLED):
        part: list[Case] = cases[start : start + POLLED]
        for name, found in poll(pipeline.nodes, part).items():
            outcomes.setdefault(name, []).extend(found)
        for case in part:
            case.photo.release()
        progress("comparing", min(start + POLLED, len(cases)), len(cases))
    rng = np.random.default_rng(model.config.seed)
    figures = summarise(scored, model, stack(outcomes, columns, len(model.task.labels)), rng)
    return figures | cost_figures([row.cost for row in run.rows()])


def cost_figures(costs: Sequence[Cost]) -> Metrics:
    """Say what language models took, each image on average; empty where none was asked."""
    spent = sum(costs, Cost())
    if spent == Cost():
        return {}
    kinds = ("vlm_calls", "llm_calls", "seconds", "usd")
    return {f"cost/{kind}_per_image": getattr(spent, kind) / len(costs) for kind in kinds}


def _judge_strangers(
    plan: Plan,
    pipeline: Pipeline,
    cases: Sequence[Case],
    inside: Sequence[float],
    cache: EmbeddingCache,
    report: bool,
    progress: Progress,
) -> Metrics:
    with open_run(plan, pipeline) as run:
        judge_into(run, pipeline, cases, len(cases), progress=progress)
        judged = list(run.rows())
        _finish(run, cache, report)
    outside = [row.typicality for row in judged if row.typicality is not None]
    reviewed = sum(row.action == "review" for row in judged if row.typicality is not None)
    return summarise_strangers(inside, outside, reviewed)


def _finish(run: RunFolder, cache: EmbeddingCache, report: bool) -> Path | None:
    run.write_table()
    return write_report(run.folder, Pictures(cache)) if report else None
