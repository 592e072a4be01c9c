"""Fit: a labelled data set to a model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.calibration import Calibrator
from secondlook.agents.case import Task
from secondlook.agents.clip_head import fit_linear_head
from secondlook.agents.clip_zero_shot import text_classifier
from secondlook.agents.embedder import Embedder
from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.encoder import Device, OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.folds import grouped_folds
from secondlook.agents.typicality import Typicality, fit_stranger_scores
from secondlook.eval.cases import read_dataset, readable
from secondlook.eval.dataset import Dataset, LabelledCase, check_counts, check_disjoint, digest_of_split
from secondlook.eval.embedded import Embedded, embed_split
from secondlook.eval.gate_fit import choose_gates
from secondlook.eval.held_out import ask_blocking, calibrate_all
from secondlook.eval.look_fit import LookFit, fit_look, opinions_of, shared_errors
from secondlook.eval.progress import Progress, silent
from secondlook.eval.record import confidence_notes, track_records
from secondlook.eval.splits import split_by_group, with_digests
from secondlook.eval.task_file import read_task, read_templates
from secondlook.eval.yardstick import measure_yardstick
from secondlook.orchestrator.binding import bind
from secondlook.orchestrator.build import raw_panels
from secondlook.orchestrator.config import Config
from secondlook.orchestrator.evidence import with_evidence
from secondlook.orchestrator.fitted import (
    ARRAYS_FILE,
    INDEX_FOLDER,
    MODEL_FILE,
    SEEN_FILE,
    Arrays,
    Model,
    Split,
    fresh_folder,
    save_model,
)
from secondlook.orchestrator.gate import Gate, units_needed
from secondlook.orchestrator.ledger import TRACK_FILE
from secondlook.orchestrator.loss import Loss
from secondlook.orchestrator.policies import available, fit_all
from secondlook.orchestrator.track_record import FlipLedger
from secondlook.prompts import Prompt
from secondlook.retrieval.index import build_index, index_digest
from secondlook.retrieval.search import Searcher
from secondlook.retrieval.store import Item

Floats = NDArray[np.float64]
FEWEST = {"train": 2, "calibration": 5}
"""Least number of cases of each label, by split."""


def choose_splits(dataset: Dataset, seed: int) -> tuple[list[LabelledCase], list[LabelledCase], list[str]]:
    """Take the data set's own train and calibration splits, or make them by group, 60/20/20.

    Returns
    -------
    train, calibration : list of LabelledCase
    notes : list of str
        How they came about. A test split is never read.
    """
    if dataset.splits:
        missing = [name for name in ("train", "calibration") if name not in dataset.splits]
        if missing:
            raise ConfigError(
                f"The data set has the splits {sorted(dataset.splits)}, but no {missing[0]!r}.",
                "Name the splits train, calibration and test, or give no split at all and let fit make them.",
            )
        return list(dataset.split("train")), list(dataset.split("calibration")), []
    parts = split_by_group(with_digests(dataset), seed=seed)
    note = f"The data set names no splits: split by group 60/20/20 with seed {seed}; the last fifth was not used."
    return list(parts.split("train")), list(parts.split("calibration")), [note]


def fit(
    data: Path,
    out: Path,
    *,
    config: Config | None = None,
    descriptions: Path | None = None,
    device: Device = "auto",
    cache: EmbeddingCache | None = None,
    progress: Progress = silent,
) -> Model:
    """Fit a model folder.

    Heads and index are fitted on the train split; calibrators, fusion, trust, threshold and track records on the
    calibration split, cross-fitted. A test split is never read.

    Parameters
    ----------
    data : Path
        See `secondlook.eval.cases.read_dataset`.
    out : Path
        The model folder to write; one that is there is replaced when the new one is whole.
    config : Config, optional
    descriptions : Path, optional
        See `read_task`.
    device, cache, progress
        How to compute, what to reuse, whom to tell.

    Raises
    ------
    ConfigError
        For data, options or places that the user can put right.
    """
    config = config or Config()
    templates = read_templates(config.templates)
    dataset = read_dataset(data)
    train_cases, calibration_cases, notes = choose_splits(dataset, config.seed)
    task = read_task(dataset.labels, descriptions)
    rows = {"train": train_cases, "calibration": calibration_cases}
    _check_enough(rows, task)
    with fresh_folder(_only_models(out)) as folder:
        embedder = Embedder(OpenClipEncoder(config.encoder, device), cache, batch_size=64)
        splits = {}
        for name, cases in rows.items():
            splits[name], lost = embed_split(name, cases, task, embedder, progress)
            notes += lost
        labelled = {name: _labelled(split, task) for name, split in splits.items()}
        _check_enough(labelled, task, notes)
        check_disjoint(labelled)
        model, arrays = _fit_all(folder, task, config, templates, embedder, splits, notes, progress)
        seen = {case.photo.digest for split in splits.values() for case in split.cases}
        save_model(folder, model, arrays, seen)
    return model


def _check_enough(rows: Mapping[str, Sequence[LabelledCase]], task: Task, notes: Sequence[str] = ()) -> None:
    try:
        for name, minimum in FEWEST.items():
            check_counts(rows[name], minimum, name, task.labels)
    except ConfigError as error:
        raise ConfigError(" ".join((error.what, *notes)), error.remedy) from error


def _only_models(out: Path) -> Path:
    """Refuse to replace a folder that holds anything but a model, whatever else is called model.json."""
    out = out.resolve()
    known = {MODEL_FILE, ARRAYS_FILE, SEEN_FILE, INDEX_FOLDER, TRACK_FILE}
    if out.is_dir() and (foreign := sorted(path.name for path in out.iterdir() if path.name not in known)):
        raise ConfigError(f"{out} exists and is not a model folder: it holds {foreign[0]}.", "Choose another --out.")
    return out


def _labelled(split: Embedded, task: Task) -> list[LabelledCase]:
    return [LabelledCase(case=case, truth=task.labels[y]) for case, y in zip(split.cases, split.truth, strict=True)]


def _fit_all(
    folder: Path,
    task: Task,
    config: Config,
    templates: Prompt,
    embedder: Embedder,
    splits: dict[str, Embedded],
    notes: list[str],
    progress: Progress,
) -> tuple[Model, Arrays]:
    rng = np.random.default_rng(config.seed)
    train, calibration = splits["train"], splits["calibration"]
    steps = iter(range(1, 7))

    def step(what: str) -> None:
        progress(what, next(steps), 6)

    step("fitting heads")
    classifier = text_classifier(embedder.encoder, task, templates.lines)
    head = fit_linear_head(train.vectors, train.truth, train.groups, len(task.labels), rng)
    strangers = fit_stranger_scores(train.vectors, train.truth, classifier)
    scores = strangers.of(calibration.vectors)
    typical = Typicality.fit(scores)
    typicality = typical.of(scores)
    step("building the index")
    items = [
        Item(id=c.id, label=task.labels[y], group=c.group, path=readable(str(c.photo.path)), digest=c.photo.digest)
        for c, y in zip(train.cases, train.truth, strict=True)
    ]
    folds = grouped_folds(calibration.truth, calibration.groups, rng)
    with build_index(folder / INDEX_FOLDER, items, train.vectors, embedder.encoder.digest, rng=rng) as index:
        searcher = Searcher(index, config.neighbours)
        panels = raw_panels(embedder, classifier, head, task)
        step("asking the first panel")
        first_said = ask_blocking(panels[1], calibration.cases)
        step("asking the second panel")
        second_said = ask_blocking(
            panels[2], calibration.cases, lambda part: with_evidence(part, embedder, searcher, config.views)
        )
    step("calibrating")
    k = len(task.labels)
    first = calibrate_all(first_said, calibration.truth, folds, k)
    second = calibrate_all(second_said, calibration.truth, folds, k)
    loss = Loss(costs=task.costs)
    looks = {1: fit_look(first, calibration, typicality, folds, config.fusion, loss)}
    opinions = opinions_of([*first, *second])
    alternatives = fit_all(opinions, calibration.truth, folds)
    looks[2] = fit_look([*first, *second], calibration, typicality, folds, config.fusion, loss)
    step("choosing the threshold")
    gates, ledger = choose_gates(config, looks, typicality, calibration, folds, loss)
    use_second = config.second_look and ledger.saved > 0
    gate = gates[2 if use_second else 1]
    records = track_records((*first, *second), calibration.truth, calibration.groups, task.labels, rng)
    calibrators: dict[str, dict[int, Calibrator]] = {}
    for a in (*first, *second):
        calibrators.setdefault(a.agent, {})[a.look] = a.calibrator
    arrays = Arrays(classifier, head, strangers, typical)
    model = Model(
        task=task,
        config=config,
        encoder_digest=embedder.encoder.digest,
        prompt_sha256=templates.sha256,
        splits={name: _split(split, task) for name, split in splits.items()},
        calibrators=calibrators,
        fusions={look: found.fitted.fusion for look, found in looks.items()},
        alternatives={name: found.fusion for name, found in alternatives.items()},
        trusts={look: found.trust for look, found in looks.items()},
        gate=gate,
        first_gate=gates[1] if use_second else None,
        second_look=use_second,
        shared_errors=shared_errors(opinions, calibration.truth),
        ledger=ledger,
        records=records,
        notes=(
            *notes,
            *_warnings(calibration, config, folds),
            *confidence_notes(records),
            *_decisions(config, looks, gate, ledger, use_second),
        ),
        bindings=bind(
            calibrators,
            encoder=embedder.encoder.digest,
            prompt=templates.sha256,
            arrays=arrays.digest,
            index=index_digest(folder / INDEX_FOLDER),
        ),
        yardstick=measure_yardstick(
            opinions_of(first),
            opinions_of(second),
            looks[1].fitted.beliefs,
            calibration.truth,
            calibration.groups,
            ~gates[2].accepts(looks[1].data.trust, typicality, last=False),
            rng,
        ),
        versions={name: version(name) for name in ("secondlook", "torch", "open_clip_torch", "chromadb")},
    )
    return model, arrays


def _warnings(split: Embedded, config: Config, folds: NDArray[np.intp] | None) -> list[str]:
    """Say where the calibration split is too small for what it should decide."""
    said = []
    if folds is None:
        said.append("A label has one calibration group only: nothing can be held out, so no threshold is promised.")
    least = 2 / (1 + len(split.cases))  # a stranger beyond every own image may tie with the most unusual of them
    if config.stranger_limit and least > config.stranger_limit:
        said.append(
            f"{len(split.cases)} calibration images are too few to recognise strangers at {config.stranger_limit:.1%}."
        )
    return said


def _decisions(
    config: Config, looks: dict[int, LookFit], gate: Gate, ledger: FlipLedger, use_second: bool
) -> list[str]:
    said = []
    for look, found in looks.items():
        fusion, n_labels = found.fitted.fusion, found.fitted.beliefs.shape[1]
        if config.fusion == "auto":
            said.append(f"Look {look}: of all ways to fuse, the lowest held-out NLL had: {fusion.fused_by}.")
        elif fusion.kind != config.fusion:
            asked = config.fusion.replace("_", " ")
            said.append(
                f"Look {look}: {asked} was not better than {fusion.best_agent} on held-out cases, which decides."
                if config.fusion in available(fusion.agents, n_labels)
                else f"Look {look}: {asked} cannot be fitted here; {fusion.best_agent} decides."
            )
    flips = f"on {ledger.asked} held-out cases it fixed {ledger.fixed} labels and broke {ledger.broken}"
    if gate.loss == "cost":
        flips += f", which saved {ledger.saved:.3g} times the largest cost"
    if use_second:
        said.append(f"The second look is on: {flips}.")
    elif config.second_look:
        said.append(f"The second look is switched off: {flips}, no net gain.")
    else:
        said.append("The second look is off by configuration.")
    if gate.threshold is None:
        said.append(
            f"No threshold can promise {gate.promise} with probability {1 - gate.delta:.0%}: even without a single "
            f"error {units_needed(gate.target_risk, gate.delta)} groups with an accepted case would be needed. "
            "Everything goes to review."
        )
    return said


def _split(split: Embedded, task: Task) -> Split:
    return Split(n=len(split.cases), n_groups=len(set(split.groups)), digest=digest_of_split(_labelled(split, task)))
