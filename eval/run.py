"""Runs: a fitted model over images, labelled or not, into a run folder."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from secondlook.agents.case import Case
from secondlook.agents.errors import ConfigError
from secondlook.eval.dataset import LabelledCase, digests_of
from secondlook.eval.progress import Progress, silent, tracked
from secondlook.eval.run_folder import Manifest, RunFolder
from secondlook.orchestrator.fitted import load_seen
from secondlook.orchestrator.pipeline import Pipeline


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes
    ----------
    kind : str
        `triage` or `evaluate`.
    data : str
        Where the cases come from, for the manifest.
    model : Path
        The model folder.
    out : Path
        The run folder.
    options : dict
        What else makes this run another one than a similar one.
    """

    kind: str
    data: str
    model: Path
    out: Path
    options: dict[str, object]


class Pace(NamedTuple):
    """How fast a run went, this time."""

    images: int
    """Cases judged now; resumed ones were judged before."""
    seconds: float
    encoded: int
    """Encoder inputs, views included; 0 where everything was cached."""


def open_run(plan: Plan, pipeline: Pipeline, notes: Sequence[str] = ()) -> RunFolder:
    """Open the run folder of a plan, new or interrupted."""
    model, watch = pipeline.model, pipeline.watch
    # Verdicts of what was measured and of what has changed since do not belong into one run.
    changed = {} if watch is None or watch.changed is None else {"changed": watch.changed}
    holds = () if watch is None else ((look, watch.at(look)) for look in range(1, pipeline.nodes.looks + 1))
    held = [f"What look {look} would accept goes to review: {hold.why}" for look, hold in holds if hold is not None]
    return RunFolder(
        plan.out,
        Manifest(
            kind=plan.kind,
            data=plan.data,
            model=model.digest,
            model_path=str(plan.model),
            encoder=f"{model.config.encoder.model} ({model.encoder_digest})",
            options={**plan.options, **changed},
            version=version("secondlook"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            notes=(*model.notes, *notes, *held),
        ),
    )


def judge_into(
    run: RunFolder,
    pipeline: Pipeline,
    cases: Iterable[Case],
    total: int | None,
    *,
    truths: dict[str, str] | None = None,
    progress: Progress = silent,
) -> Pace:
    """Judge the cases that the run does not hold yet, and append their verdicts in order.

    Parameters
    ----------
    run : RunFolder
    pipeline : Pipeline
    cases : iterable of Case
        Read as needed, so any number of them.
    total : int or None
        How many there are, for progress.
    truths : dict of str to str, optional
        Truth by case id; it is written beside the verdict, and the pipeline never sees it.
    progress : Progress
    """
    start, encoded, judged = time.perf_counter(), pipeline.embedder.encoded, 0
    left = (case for case in cases if case.id not in run.done)
    remaining = None if total is None else max(0, total - len(run.done))
    for verdict in tracked(pipeline.stream(left), "judging", remaining, progress):
        run.append(verdict, truths.get(verdict.id) if truths else None)
        judged += 1
    return Pace(judged, time.perf_counter() - start, pipeline.embedder.encoded - encoded)


class Unseen(NamedTuple):
    """Cases that may be scored, and what to say of the others."""

    cases: list[LabelledCase]
    notes: list[str]


def refuse_seen(cases: Sequence[LabelledCase], model_folder: Path, *, allow: bool, leave_out: bool) -> Unseen:
    """Refuse to score images that the model was fitted on, or leave them out.

    Parameters
    ----------
    cases : sequence of LabelledCase
    model_folder : Path
    allow : bool
        Score them all the same, with a note that stamps the report.
    leave_out : bool
        Score the others, with a note; for data without splits, of which `fit` kept a part unused.

    Raises
    ------
    ConfigError
        When there are such images and they may neither be scored nor left out, or nothing would be left.
    """
    seen = load_seen(model_folder)
    known = {name for name, digest in digests_of(cases).items() if digest in seen}
    of_all = f"{len(known)} of {len(cases)} images were used to fit the model"
    if not known:
        return Unseen(list(cases), [])
    if allow:
        return Unseen(list(cases), [f"{of_all}: these figures are too good."])
    if leave_out and len(known) < len(cases):
        return Unseen([row for row in cases if row.case.id not in known], [f"{of_all} and were left out."])
    raise ConfigError(
        f"{len(known)} of {len(cases)} images were used to fit {model_folder}, {min(known)} among them: "
        "figures on them would be too good.",
        "Evaluate on other images (--split test), or add --allow-seen to do it all the same.",
    )
