"""Fit: a labelled data set to a model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.answer_cache import AnswerCache
from secondlook.agents.case import Task
from secondlook.agents.clip_zero_shot import TextClassifier, text_classifier
from secondlook.agents.cost import Account
from secondlook.agents.embedder import Embedder
from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.encoder import Device, OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.folds import grouped_folds
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Outcome
from secondlook.agents.stranger_scores import fit_stranger_scores
from secondlook.agents.threads import one_thread
from secondlook.agents.typicality import Typicality
from secondlook.eval.adapters import fit_adapters
from secondlook.eval.cases import read_dataset, readable
from secondlook.eval.dataset import Dataset, LabelledCase, check_counts, check_disjoint, digest_of_split
from secondlook.eval.decide import decide
from secondlook.eval.embedded import Embedded, embed_split
from secondlook.eval.encoders import fit_encoders
from secondlook.eval.held_out import ask_blocking, hear_all
from secondlook.eval.learn import Learned, learn, lessons_of
from secondlook.eval.progress import Progress, silent
from secondlook.eval.shown import shown_records
from secondlook.eval.splits import split_by_group, with_digests
from secondlook.eval.stranger_fit import choose_stranger_scores, embed_strangers
from secondlook.eval.task_file import read_task, read_templates
from secondlook.orchestrator.adapted import ENCODERS, adapted_members, adapted_parts
from secondlook.orchestrator.binding import bind
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
from secondlook.orchestrator.language import ADAPTERS, Language, Means, judge_of, members, parts_of
from secondlook.orchestrator.ledger import TRACK_FILE
from secondlook.orchestrator.panels import raw_panels
from secondlook.orchestrator.shown_record import ShownRecord, records_by_fold
from secondlook.orchestrator.stranger_choice import StrangerChoice
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
    strangers: Sequence[Photo] = (),
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
    strangers : sequence of Photo, optional
        Pictures of what the model is not for: what finds strangers is chosen on them too.
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
        seen = {case.photo.digest for split in splits.values() for case in split.cases}
        given = None
        if strangers:
            progress("reading strangers", 0, len(strangers))
            given, digests, lost = embed_strangers(strangers, embedder, seen)
            notes += lost
            seen |= digests  # what was chosen on them would be judged too well by them
        with ExitStack() as opened:
            kept = cache.path.parent if cache else Path(opened.enter_context(TemporaryDirectory(prefix="secondlook-")))
            answers = None
            if cache is not None and config.language != Language():
                answers = opened.enter_context(AnswerCache(kept))
            train = splits["train"]
            notes += fit_adapters(config.language, task, train, folder, kept / ADAPTERS, device, progress)
            notes += fit_encoders(config, task, train, tuple(templates.lines), folder, device, progress)
            means = Means(Account(config.budget), answers, device)
            model, arrays = _fit_all(folder, task, config, templates, embedder, splits, given, notes, progress, means)
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
    known = {MODEL_FILE, ARRAYS_FILE, SEEN_FILE, INDEX_FOLDER, TRACK_FILE, ADAPTERS, ENCODERS}
    if out.is_dir() and (foreign := sorted(path.name for path in out.iterdir() if path.name not in known)):
        raise ConfigError(f"{out} exists and is not a model folder: it holds {foreign[0]}.", "Choose another --out.")
    return out


def _labelled(split: Embedded, task: Task) -> list[LabelledCase]:
    return [LabelledCase(case=case, truth=task.labels[y]) for case, y in zip(split.cases, split.truth, strict=True)]


@dataclass(frozen=True)
class _Asked:
    """What was learned from train, and what the agents then say of the calibration cases."""

    arrays: Arrays
    typicality: Floats
    folds: NDArray[np.intp] | None
    said: dict[int, dict[str, list[Outcome]]]
    """By look and column."""
    shown: tuple[ShownRecord, ...]
    """What a judge is shown of the agents, on all calibration cases."""


def _fit_all(
    folder: Path,
    task: Task,
    config: Config,
    templates: Prompt,
    embedder: Embedder,
    splits: dict[str, Embedded],
    given: NDArray[np.float32] | None,
    notes: list[str],
    progress: Progress,
    means: Means,
) -> tuple[Model, Arrays]:
    rng = np.random.default_rng(config.seed)
    train, calibration = splits["train"], splits["calibration"]
    steps = iter(range(1, 8))

    def step(what: str) -> None:
        progress(what, next(steps), 7)

    classifier = text_classifier(embedder.encoder, task, templates.lines)
    lessons = lessons_of(train, task, classifier, embedder.encoder, tuple(templates.lines), config.seed)
    learned = learn(config, lessons, lambda what: progress(what, 0, 7))
    config = learned.config
    step("choosing what finds strangers")
    with one_thread():
        choice = choose_stranger_scores(train, calibration, task.labels, classifier, given, config.seed)
    asked = _ask_all(folder, task, learned, choice, classifier, embedder, splits, rng, step, means)
    with one_thread():
        decided = decide(config, task, asked.said, calibration, asked.typicality, asked.folds, rng, step)
    model = Model(
        task=task,
        config=config,
        encoder_digest=embedder.encoder.digest,
        prompt_sha256=templates.sha256,
        splits={name: _split(split, task) for name, split in splits.items()},
        bindings=bind(
            decided.calibrators,
            encoder=embedder.encoder.digest,
            prompt=templates.sha256,
            arrays=asked.arrays.digest,
            index=index_digest(folder / INDEX_FOLDER),
            language=parts_of(config.language.placed(folder), task, means.device)
            | adapted_parts(config.adapters, folder),
        ),
        shown=asked.shown,
        notes=(*notes, *learned.notes, *decided.notes),
        versions={name: version(name) for name in ("secondlook", "torch", "open_clip_torch", "chromadb")},
        calibrators=decided.calibrators,
        fusions=decided.fusions,
        alternatives=decided.alternatives,
        trusts=decided.trusts,
        gate=decided.gate,
        first_gate=decided.first_gate,
        second_look=decided.second_look,
        shared_errors=decided.shared_errors,
        ledger=decided.flips,
        records=decided.records,
        candidates=learned.candidates,
        strangers=choice,
        yardstick=decided.yardstick,
    )
    return model, asked.arrays


def _ask_all(
    folder: Path,
    task: Task,
    learned: Learned,
    choice: StrangerChoice,
    classifier: TextClassifier,
    embedder: Embedder,
    splits: dict[str, Embedded],
    rng: np.random.Generator,
    step: Callable[[str], None],
    means: Means,
) -> _Asked:
    train, calibration = splits["train"], splits["calibration"]
    config = learned.config
    language = config.language.placed(folder)
    step("measuring what is unusual")
    strangers = fit_stranger_scores(train.vectors, train.truth, classifier, train.groups, choice.scores, config.seed)
    scores = strangers.of(calibration.vectors)
    typical = Typicality.fit(scores)
    step("building the index")
    items = [
        Item(id=c.id, label=task.labels[y], group=c.group, path=readable(str(c.photo.path)), digest=c.photo.digest)
        for c, y in zip(train.cases, train.truth, strict=True)
    ]
    folds = grouped_folds(calibration.truth, calibration.groups, rng)
    with (
        ExitStack() as opened,
        build_index(folder / INDEX_FOLDER, items, train.vectors, embedder.encoder.digest, rng=rng) as index,
    ):
        searcher = Searcher(index, config.neighbours)
        adapted = adapted_members(config.adapters, folder, opened, embedder.cache, means.device)
        others = (*adapted, *members(language, task, means))
        panels = raw_panels(embedder, classifier, learned.heads, task, others, learned.box_prompts)
        cases, labels = calibration.cases, task.labels
        step("asking the first panel")
        first = ask_blocking(panels[1], cases)
        shown: tuple[ShownRecord, ...] = ()
        judge = None
        if language.judge is not None:
            measure = shown_records(first, calibration.truth, labels)
            shown = measure(np.ones(len(cases), dtype=np.bool_))
            judge = judge_of(language, task, means, records_by_fold(cases, folds, measure))
            first |= ask_blocking([judge] if judge else [], hear_all(cases, first, labels))
        step("asking the second panel")
        second = ask_blocking(
            panels[2],
            hear_all(cases, first, labels),
            lambda part: with_evidence(part, embedder, searcher, config.views),
            judge,
            labels,
        )
    arrays = Arrays(classifier, learned.heads, strangers, typical)
    return _Asked(arrays, typical.of(scores), folds, {1: first, 2: second}, shown)


def _split(split: Embedded, task: Task) -> Split:
    return Split(n=len(split.cases), n_groups=len(set(split.groups)), digest=digest_of_split(_labelled(split, task)))
