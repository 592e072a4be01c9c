"""Fit: a labelled data set to a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from secondlook import prompts
from secondlook.agents.case import Case, Task
from secondlook.agents.clip_head import fit_linear_head
from secondlook.agents.clip_zero_shot import text_classifier
from secondlook.agents.embedder import Embedder
from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.encoder import Device, OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.folds import grouped_folds
from secondlook.agents.typicality import Typicality, fit_stranger_scores
from secondlook.eval.cases import read_dataset
from secondlook.eval.dataset import Dataset, LabelledCase, check_counts, check_disjoint, digest_of_split
from secondlook.eval.held_out import Answers, ask_blocking, calibrate_all, second_look_cases
from secondlook.eval.progress import Progress, silent
from secondlook.eval.record import track_record
from secondlook.eval.splits import split_by_group, with_digests
from secondlook.orchestrator.build import raw_panels
from secondlook.orchestrator.config import Config
from secondlook.orchestrator.fitted import INDEX_FOLDER, Arrays, Model, Split, fresh_folder, save_model
from secondlook.orchestrator.fusion import Fitted, fit_pool
from secondlook.orchestrator.gate import Gate, LookData, accept_in_order, choose_threshold, conformal_limit
from secondlook.orchestrator.track_record import FlipLedger
from secondlook.orchestrator.trust import Trust, features, fit_trust
from secondlook.retrieval.index import build_index
from secondlook.retrieval.search import Searcher
from secondlook.retrieval.store import Item

Floats = NDArray[np.float64]
CHUNK = 256
"""Cases embedded between two reports of progress."""
MOST_UNREADABLE_NAMED = 3
PACKAGED_DESCRIPTIONS = "apple_leaf.yaml"


@dataclass(frozen=True)
class Embedded:
    """A split that could be read, with its arrays.

    Attributes
    ----------
    cases : tuple of N Case
    vectors : ndarray of shape (N, D)
    truth : ndarray of shape (N,)
    groups : tuple of N str
        A case without a group is its own.
    """

    cases: tuple[Case, ...]
    vectors: NDArray[np.float32]
    truth: NDArray[np.intp]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class LookFit:
    """Pool and trust of one look, with their cross-fitted output on the calibration cases."""

    fitted: Fitted
    trust: Trust
    data: LookData
    labels: NDArray[np.intp]
    """Top label of each cross-fitted belief, of shape (N,)."""


def read_task(labels: Sequence[str], descriptions: Path | None) -> Task:
    """Make the task of a data set's labels, with descriptions from a YAML file.

    Parameters
    ----------
    labels : sequence of str
    descriptions : Path, optional
        YAML with `labels`, a list of descriptions per label, and optionally `negatives`. Without one, the packaged
        descriptions are taken where they know every label, else each label is described by its name.

    Raises
    ------
    ConfigError
        When the file is missing, is not such YAML, or names other labels.
    """
    try:
        found = yaml.safe_load(prompts.load(descriptions or PACKAGED_DESCRIPTIONS).text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The descriptions {descriptions} cannot be read: {error}", "Give a YAML file.") from error
    known = found.get("labels") if isinstance(found, dict) else None
    if not isinstance(known, dict) or not all(isinstance(v, list) for v in known.values()):
        raise ConfigError(f"{descriptions} has no `labels:` with a list per label.", "See prompts/apple_leaf.yaml.")
    if descriptions is None and not set(labels) <= set(known):
        return Task(labels=tuple(labels))
    phrases = {str(label): tuple(map(str, texts)) for label, texts in known.items() if descriptions or label in labels}
    return Task(labels=tuple(labels), phrases=phrases, negatives=tuple(map(str, found.get("negatives") or ())))


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


def embed_split(name: str, cases: Sequence[LabelledCase], task: Task, embedder: Embedder, progress: Progress) -> tuple[Embedded, list[str]]:
    """Embed a split; images that cannot be read are left out and named in the notes."""
    vectors: list[NDArray[np.float32]] = []
    kept: list[LabelledCase] = []
    errors: list[str] = []
    progress(f"reading {name}", 0, len(cases))
    for start in range(0, len(cases), CHUNK):
        part = cases[start : start + CHUNK]
        photos = [row.case.photo for row in part]
        embedder.prepare(photos)
        found = embedder.embed(photos)
        for row, vector, error in zip(part, found.vectors, found.errors, strict=True):
            if error is None:
                kept.append(row)
                vectors.append(vector)
            else:
                errors.append(error)
            row.case.photo.release()
        progress(f"reading {name}", start + len(part), len(cases))
    if not kept:
        raise ConfigError(f"No image of the {name} split can be read: {errors[0]}", "Check the folder.")
    notes = []
    if errors:
        named = "; ".join(errors[:MOST_UNREADABLE_NAMED])
        notes.append(f"{len(errors)} of {len(cases)} {name} images could not be read and were left out: {named}")
    index = {label: k for k, label in enumerate(task.labels)}
    return Embedded(
        cases=tuple(row.case for row in kept),
        vectors=np.stack(vectors),
        truth=np.array([index[row.truth] for row in kept], dtype=np.intp),
        groups=tuple(row.case.group or row.case.id for row in kept),
    ), notes


def fit_look(answers: Sequence[Answers], split: Embedded, typicality: Floats, folds: NDArray[np.intp] | None) -> LookFit:
    """Fit pool and trust on calibrated answers, everything cross-fitted."""
    probs = np.stack([a.probs for a in answers])
    fitted = fit_pool(tuple(a.column for a in answers), probs, split.truth, folds)
    labels = fitted.beliefs.argmax(axis=1)
    right = labels == split.truth
    trust, held_out = fit_trust(features(fitted.beliefs, probs, typicality), right, folds)
    return LookFit(fitted, trust, LookData(held_out, ~right), labels)


def count_flips(first: LookFit, second: LookFit, gate: Gate, typicality: Floats, truth: NDArray[np.intp]) -> FlipLedger:
    """What second looks would do to the labels of the cases that would be looked at again."""
    strangers = gate.strangers(typicality)
    threshold = gate.threshold if gate.threshold is not None else float("inf")
    accepted, _ = accept_in_order([first.data], threshold, strangers)
    asked = ~accepted & ~strangers
    before, after = first.labels[asked] == truth[asked], second.labels[asked] == truth[asked]
    changed = first.labels[asked] != second.labels[asked]
    return FlipLedger(
        asked=int(asked.sum()),
        fixed=int((~before & after).sum()),
        broken=int((before & ~after).sum()),
        changed_between_wrongs=int((~before & ~after & changed).sum()),
    )


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
    dataset = read_dataset(data)
    train_cases, calibration_cases, notes = choose_splits(dataset, config.seed)
    task = read_task(dataset.labels, descriptions)
    check_counts(train_cases, 2, "train", task.labels)
    check_counts(calibration_cases, 5, "calibration", task.labels)
    with fresh_folder(out) as folder:
        embedder = Embedder(OpenClipEncoder(config.encoder, device), cache, batch_size=64)
        train, lost = embed_split("train", train_cases, task, embedder, progress)
        calibration, lost_too = embed_split("calibration", calibration_cases, task, embedder, progress)
        splits = {"train": train, "calibration": calibration}
        check_disjoint({name: _labelled(split, task) for name, split in splits.items()})
        model, arrays = _fit_all(folder, task, config, embedder, splits, [*notes, *lost, *lost_too], progress)
        seen = {case.photo.digest for split in splits.values() for case in split.cases}
        save_model(folder, model, arrays, seen)
    return model


def _labelled(split: Embedded, task: Task) -> list[LabelledCase]:
    return [LabelledCase(case=case, truth=task.labels[y]) for case, y in zip(split.cases, split.truth, strict=True)]


def _fit_all(
    folder: Path,
    task: Task,
    config: Config,
    embedder: Embedder,
    splits: dict[str, Embedded],
    notes: list[str],
    progress: Progress,
) -> tuple[Model, Arrays]:
    rng = np.random.default_rng(config.seed)
    train, calibration = splits["train"], splits["calibration"]
    templates = prompts.load(config.templates)
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
        Item(id=c.id, label=task.labels[y], group=c.group, path=str(c.photo.path), digest=c.photo.digest)
        for c, y in zip(train.cases, train.truth, strict=True)
    ]
    folds = grouped_folds(calibration.truth, calibration.groups, rng)
    with build_index(folder / INDEX_FOLDER, items, train.vectors, embedder.encoder.digest, rng=rng) as index:
        searcher = Searcher(index, config.neighbours)
        panels = raw_panels(embedder, classifier, head, task)
        step("asking the first panel")
        first_said = ask_blocking(panels[1], calibration.cases)
        step("asking the second panel")
        again = second_look_cases(calibration.cases, embedder, searcher, config.views)
        second_said = ask_blocking(panels[2], again)
    step("calibrating")
    k = len(task.labels)
    first = calibrate_all(first_said, calibration.truth, folds, k)
    second = calibrate_all(second_said, calibration.truth, folds, k)
    looks = {1: fit_look(first, calibration, typicality, folds)}
    looks[2] = fit_look([*first, *second], calibration, typicality, folds)
    step("choosing the threshold")
    gate, ledger, use_second = _choose_gate(config, looks, typicality, calibration)
    last = looks[2 if use_second else 1]
    limit = conformal_limit(last.fitted.beliefs, calibration.truth, config.set_level)
    gate = gate.model_copy(update={"set_level": config.set_level, "set_limit": limit})
    records = tuple(
        track_record(
            a.agent, a.look, a.probs, a.raw, calibration.truth, calibration.groups, task.labels, a.calibrator, rng
        )
        for a in (*first, *second)
    )
    calibrators: dict[str, dict[int, object]] = {}
    for a in (*first, *second):
        calibrators.setdefault(a.agent, {})[a.look] = a.calibrator
    model = Model(
        task=task,
        config=config,
        encoder_digest=embedder.encoder.digest,
        prompt_sha256=templates.sha256,
        splits={name: _split(split, task) for name, split in splits.items()},
        calibrators=calibrators,  # type: ignore[arg-type]
        pools={look: found.fitted.pool for look, found in looks.items()},
        trusts={look: found.trust for look, found in looks.items()},
        gate=gate,
        second_look=use_second,
        ledger=ledger,
        records=records,
        notes=tuple([*notes, *_decisions(config, looks, gate, ledger, use_second)]),
        versions={name: version(name) for name in ("secondlook", "torch", "open_clip_torch", "chromadb")},
    )
    return model, Arrays(classifier, head, strangers, typical)


def _choose_gate(
    config: Config, looks: dict[int, LookFit], typicality: Floats, split: Embedded
) -> tuple[Gate, FlipLedger, bool]:
    empty = Gate(target_risk=config.target_risk, delta=config.delta, stranger_limit=config.stranger_limit)
    alone = choose_threshold(empty, [looks[1].data], typicality, split.groups)
    ledger = count_flips(looks[1], looks[2], alone, typicality, split.truth)
    if not config.second_look or ledger.net <= 0:
        return alone, ledger, False
    return choose_threshold(empty, [looks[1].data, looks[2].data], typicality, split.groups), ledger, True


def _decisions(
    config: Config, looks: dict[int, LookFit], gate: Gate, ledger: FlipLedger, use_second: bool
) -> list[str]:
    said = []
    for look, found in looks.items():
        pool = found.fitted.pool
        if not pool.pooled:
            said.append(f"Look {look}: the pool was not better than {pool.best_agent} on held-out cases, which decides.")
    flips = f"on {ledger.asked} held-out cases it fixed {ledger.fixed} labels and broke {ledger.broken}"
    if use_second:
        said.append(f"The second look is on: {flips}.")
    elif config.second_look:
        said.append(f"The second look is switched off: {flips}, no net gain.")
    else:
        said.append("The second look is off by configuration.")
    if gate.threshold is None:
        said.append(
            f"No threshold can promise an error under {gate.target_risk:.0%} with probability {1 - gate.delta:.0%}: "
            f"even without a single error {gate.needed} groups with an accepted case would be needed. "
            "Everything goes to review."
        )
    return said


def _split(split: Embedded, task: Task) -> Split:
    return Split(n=len(split.cases), n_groups=len(set(split.groups)), digest=digest_of_split(_labelled(split, task)))
