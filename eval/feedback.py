"""Feedback: a run's verdicts and the truths that became known, into the ledger of living track records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

from pydantic import ValidationError

from secondlook.agents.case import Frozen
from secondlook.agents.encoder import OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.prediction import Failure, Outcome, Prediction
from secondlook.eval.run_folder import MANIFEST, VERDICTS, Manifest
from secondlook.eval.tally import Row, read_rows
from secondlook.eval.truths import read_truths
from secondlook.orchestrator.adapted import adapted_parts
from secondlook.orchestrator.drift import Alarm
from secondlook.orchestrator.fitted import load_model, load_seen
from secondlook.orchestrator.hold import Unproven, Watch, living_records, present_bindings
from secondlook.orchestrator.language import parts_of
from secondlook.orchestrator.ledger import LONGEST_TEXT, TRACK_FILE, Entry, LedgerWriter, Scope, Signs, read_ledger
from secondlook.orchestrator.trust import FINAL, SYSTEM, LivingRecords, Memory, Sample, Standing
from secondlook.orchestrator.verdict import LookTrail, Opinion

NO_ALARM = "There was no alarm to acknowledge: nothing was written about it, and watching goes on."
WANTED = ("trusted", "unproven", "drift")
"""Reasons of cases that the gate accepts, or would but for a hold."""


class Feedback(Frozen):
    """What a model's ledger says after feedback, or without any."""

    n: int = 0
    """Cases of the run, without those that the model was fitted on."""
    known: int = 0
    """Of these, with a known truth."""
    accepted: int = 0
    """Cases that the gate accepts, or would but for a hold."""
    accepted_known: int = 0
    seen: int = 0
    """Cases that the model was fitted on: left out."""
    written: int = 0
    """Lines that were new."""
    entries: int
    """Of the whole ledger, those under other bindings included."""
    standings: tuple[Standing, ...]
    unproven: tuple[Unproven, ...]
    alarms: tuple[Alarm, ...]
    notes: tuple[str, ...] = ()
    """What is still unknown, in sentences."""


@dataclass(frozen=True)
class Known:
    """A run's cases, read once: where they are, what is true of them, what the gate wanted."""

    places: dict[str, str | None]
    keys: dict[str, str]
    """By id, what a case is called in the ledger: the digest of its image, or its id without one."""
    truths: dict[str, str]
    wanted: set[str]
    groups: dict[str, str | None]


def open_feedback(
    model_folder: Path,
    *,
    ledger: Path | None = None,
    run: Path | None = None,
    truths: Path | None = None,
    acknowledge: str | None = None,
    memory: Memory | None = None,
) -> Feedback:
    """Take feedback into a model's ledger, and say how things stand.

    Parameters
    ----------
    model_folder : Path
    ledger : Path, optional
        By default `track.jsonl` in the model folder; made where it is missing.
    run : Path, optional
        A run folder of this model.
    truths : Path, optional
        A CSV of truths that became known; see `secondlook.eval.truths.read_truths`. An evaluation holds its own.
    acknowledge : str, optional
        Who looked into the alarms; the detectors begin anew, after the feedback. Without an alarm nothing changes.
    memory : Memory, optional
        Of the standings.

    Returns
    -------
    Feedback

    Raises
    ------
    ConfigError
        When a file is not what it should be, or the run was judged by another model or other parts of it.
    """
    model, arrays = load_model(model_folder)
    bindings = present_bindings(
        model_folder,
        model,
        arrays,
        OpenClipEncoder(model.config.encoder).digest,
        parts_of(model.config.language.placed(model_folder), model.task)
        | adapted_parts(model.config.adapters, model_folder),
    )
    path = ledger or model_folder / TRACK_FILE
    if acknowledge is not None and len(acknowledge) > LONGEST_TEXT:
        raise ConfigError(f"--acknowledge has {len(acknowledge):,} characters.", f"At most {LONGEST_TEXT:,} are kept.")
    if run is None and acknowledge is None:
        return _summary(Watch(model, bindings, living_records(model, bindings, read_ledger(path))), memory)
    known = None if run is None else _read_run(run, truths, Watch(model, bindings, living_records(model, bindings, ())))
    with LedgerWriter(path) as writer:
        records = living_records(model, bindings, read_ledger(path), writer)
        found = Counts() if run is None or known is None else _take(run, known, records, load_seen(model_folder))
        needless = acknowledge is not None and not Watch(model, bindings, records).alarms
        if acknowledge is not None and not needless:
            records.acknowledge(acknowledge)
    return _summary(Watch(model, bindings, records), memory, found, [NO_ALARM] if needless else [])


class Counts(NamedTuple):
    """What a run brought."""

    n: int = 0
    known: int = 0
    accepted: int = 0
    accepted_known: int = 0
    seen: int = 0
    written: int = 0


def _read_run(run: Path, truths: Path | None, watch: Watch) -> Known:
    """Read who is in a run and what is true; the verdicts themselves are read again when they are taken."""
    model = watch.model
    places: dict[str, str | None] = {}
    known = Known(places, {}, {}, set(), {})
    for row in read_rows(run / VERDICTS):
        if row.model != model.digest:
            raise ConfigError(
                f"{run} was judged by the model {row.model}, this one is {model.digest}.",
                "Give the model that judged it, or judge the images again.",
            )
        if row.id in places:
            raise ConfigError(f"{run} holds two verdicts of {row.id}.", "Judge the images again into another folder.")
        places[row.id], known.keys[row.id], known.groups[row.id] = row.path, row.digest or row.id, row.group
        if row.reason in WANTED:
            known.wanted.add(row.id)
        if row.truth is not None:
            known.truths[row.id] = row.truth
    _same_parts(run, watch.changed)
    if truths is not None:
        known.truths.update(read_truths(truths, places, model.task.labels))
    told: dict[str, str] = {}
    for case, truth in known.truths.items():
        if told.setdefault(known.keys[case], truth) != truth:
            raise ConfigError(f"{case} and another case are one image, but have different truths.", "Correct one.")
    return known


def _same_parts(run: Path, changed: str | None) -> None:
    """Refuse a run that was judged by other parts than the model has now."""
    try:
        manifest = Manifest.model_validate_json((run / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run / MANIFEST} cannot be read.", "Give the folder that `--out` named.") from error
    if manifest.options.get("changed") != changed:
        raise ConfigError(
            f"Encoder, index, arrays or calibrators of the model have changed since {run} was judged.",
            "Judge the images again with the model as it is.",
        )


def _take(run: Path, known: Known, records: LivingRecords, seen: set[str]) -> Counts:
    """Write what is new, the cases of a group one after another."""
    fitted = {case for case, key in known.keys.items() if key in seen}
    cases = [case for case in known.places if case not in fitted]
    earlier = {case: truth for case in cases if (truth := records.truth_of(known.keys[case])) is not None}
    truths = {case: truth for case, truth in (earlier | known.truths).items() if case not in fitted}
    samples = sampled(cases, truths, known.wanted)
    first_of: dict[str, int] = {}
    order = {case: first_of.setdefault(known.groups[case] or f"case {case}", i) for i, case in enumerate(cases)}
    told: list[tuple[int, Entry, tuple[Opinion, ...]]] = []
    for row in read_rows(run / VERDICTS):
        if row.id in order:
            sample = samples[row.id in known.wanted]
            try:
                entry = _verdict_entry(row, known.keys[row.id], truths.get(row.id), sample, records)
            except ValidationError as error:
                first = error.errors(include_input=False, include_url=False)[0]
                what = f"{run}: {row.id[:80]} cannot be kept: {first['loc'][0]}: {first['msg']}."
                raise ConfigError(what, "Shorten the names, and judge the images again.") from error
            opinions = row.looks[-1].opinions if entry.truth is not None and row.looks else ()
            told.append((order[row.id], entry, opinions))
    written = 0
    for _, entry, opinions in sorted(told, key=lambda row: row[0]):
        written += records.record(entry)
        sample = Sample(entry.scope, entry.weight)
        for said in opinions:
            outcome = _outcome(said)
            written += records.update(
                entry.case, said.agent, said.look, outcome, entry.truth, group=entry.group, sample=sample
            )
    accepted = [case for case in cases if case in known.wanted]
    return Counts(
        len(cases), len(truths), len(accepted), sum(case in truths for case in accepted), len(fitted), written
    )


def sampled(cases: list[str], truths: Mapping[str, str], wanted: set[str]) -> dict[bool, Sample]:
    """Say what the cases with a known truth stand for, by whether the gate wanted them.

    Each stands for as many cases of its kind as there are for each with a known truth, taken as drawn at random from
    its kind. Where no accepted case has one, those in review stand for themselves alone.

    Examples
    --------
    >>> known = {"a": "x", "c": "x", "d": "x"}
    >>> found = sampled(["a", "b", "c", "d"], known, wanted={"a", "b"})
    >>> found[True].weight, found[False].weight
    (1.5, 0.75)
    """
    strata = {kind: [case for case in cases if (case in wanted) == kind] for kind in (True, False)}
    told = {kind: sum(case in truths for case in rows) for kind, rows in strata.items()}
    n, all_told = len(cases), sum(told.values())
    lost = next((kind for kind in strata if strata[kind] and not told[kind]), None)
    if all_told and lost is not None:
        scope: Scope = "review" if lost else "accepted"
        return dict.fromkeys(strata, Sample(scope))
    weight = {kind: len(strata[kind]) / n * all_told / told[kind] if told[kind] else 1.0 for kind in strata}
    return {kind: Sample("all", weight[kind]) for kind in strata}


def _verdict_entry(row: Row, key: str, truth: str | None, sample: Sample, records: LivingRecords) -> Entry:
    return Entry(
        case=key,
        agent=SYSTEM,
        look=FINAL,
        binding=records.bindings[SYSTEM],
        group=row.group,
        label=row.label,
        confidence=None if row.confidence is None else min(1.0, row.confidence),
        truth=truth,
        scope=sample.scope,
        weight=sample.weight,
        accepted=row.reason in WANTED,
        signs=signs_of(row.looks[0]) if row.looks else None,
    )


def signs_of(first: LookTrail) -> Signs | None:
    """Belief in the top label of a first look, and the mean probability that its agents give it."""
    given = [opinion.probs for opinion in first.opinions if opinion.probs is not None]
    if first.probs is None or not given:
        return None
    top = first.probs.index(max(first.probs))
    return Signs(confidence=min(1.0, first.probs[top]), agreement=min(1.0, sum(p[top] for p in given) / len(given)))


def _outcome(opinion: Opinion) -> Outcome:
    if opinion.probs is None:
        return Failure(agent=opinion.agent, look=opinion.look, error=opinion.error or "no answer")
    return Prediction(agent=opinion.agent, look=opinion.look, scale="probability", scores=opinion.probs)


def _summary(watch: Watch, memory: Memory | None, counts: Counts | None = None, notes: Sequence[str] = ()) -> Feedback:
    counts, records = counts or Counts(), watch.records
    agents = [(a, look) for a, looks in watch.model.calibrators.items() for look in looks]
    standings = [
        found
        for agent, look in [(SYSTEM, FINAL), *sorted(agents, key=lambda pair: pair[::-1])]
        for scope in get_args(Scope)
        if (found := records.standing(agent, look, memory or Memory(), scope)).n or scope == "all"
    ]
    return Feedback(
        **counts._asdict(),
        entries=len(records),
        standings=tuple(standings),
        unproven=watch.unproven,
        alarms=watch.alarms,
        notes=(*notes, *_unknown(counts, watch)),
    )


def _unknown(counts: Counts, watch: Watch) -> list[str]:
    """Say what is still unknown, and what would make it known."""
    said = []
    if counts.accepted and not counts.accepted_known:
        said.append(
            f"None of the {counts.accepted} accepted cases has a known truth, so their error rate is unknown. "
            f"Have {min(watch.needed, counts.accepted)} of them checked, drawn at random."
        )
    if counts.n > counts.known:
        said.append(f"The truth of {counts.n - counts.known} of {counts.n} cases is not known.")
    if counts.seen:
        said.append(f"{counts.seen} cases were used to fit the model and are left out.")
    return said
