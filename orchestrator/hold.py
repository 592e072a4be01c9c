"""Holds: why nothing may be accepted for the time being, by what the ledger says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Frozen
from secondlook.orchestrator.binding import bind, changed_parts, short
from secondlook.orchestrator.drift import ALPHA, Alarm, unit_means, watch_errors, watch_ranks
from secondlook.orchestrator.fitted import INDEX_FOLDER, Arrays, Model
from secondlook.orchestrator.gate import units_needed
from secondlook.orchestrator.judgement import Hold
from secondlook.orchestrator.ledger import TRACK_FILE, Entry, LedgerWriter, Line, read_ledger
from secondlook.orchestrator.loss import Loss
from secondlook.orchestrator.trust import SYSTEM, LivingRecords
from secondlook.orchestrator.yardstick import ErrorRate
from secondlook.retrieval.index import index_digest

Floats = NDArray[np.float64]


class Unproven(Frozen):
    """A column that is no longer what was measured, and how far it is from being trusted again."""

    column: str
    changed: tuple[str, ...]
    """Which parts: encoder, prompt, arrays, index, calibrator."""
    n: int
    """Units with a known truth under the new binding."""
    needed: int
    """Units that the gate's promise takes at the least."""
    wrong: float
    """Errors among the n."""
    recorded: float
    """The error rate it was measured with."""
    p_value: float
    """Of as many errors or more at the recorded rate; below delta it has become worse."""

    @property
    def why(self) -> str:
        """In words, with the numbers."""
        parts = " and ".join(self.changed) or "binding"
        has = "have" if len(self.changed) > 1 else "has"
        told = f"the {parts} of {self.column} {has} changed since it was measured"
        if self.n < self.needed:
            return f"{told}: {self.n} of at least {self.needed} cases or groups with a known truth are there."
        return (
            f"{told}: {self.wrong:.3g} errors in {self.n} are more than the recorded {self.recorded:.1%} explains "
            f"(p = {self.p_value:.2g})."
        )


@dataclass(frozen=True)
class Watch:
    """A model, what it is made of now, and what its ledger says.

    Attributes
    ----------
    model : Model
    bindings : mapping of str to str
        Present binding of each column; see `secondlook.orchestrator.binding.bind`.
    records : LivingRecords
        Read once; a ledger that grows afterwards changes nothing here.
    alpha : float
        One over the mean number of cases between false alarms, of all detectors together.
    """

    model: Model
    bindings: Mapping[str, str]
    records: LivingRecords
    alpha: float = ALPHA

    @property
    def changed(self) -> str | None:
        """Digest of what the model is made of now where that is not what was measured; else None."""
        measured = self.model.bindings
        return self.records.bindings[SYSTEM] if measured and dict(self.bindings) != measured else None

    @property
    def needed(self) -> int:
        """Units with a known truth that the gate's promise takes, without an error, at the least."""
        return units_needed(self.model.gate.target_risk, self.model.gate.delta)

    @cached_property
    def unproven(self) -> tuple[Unproven, ...]:
        """Columns whose binding differs from the one they were measured with, until their trust is earned again.

        That takes as many units with a known truth as the promise takes without an error, and an error rate that is not
        significantly above the recorded one: one-sided exact binomial test at delta. A unit is a group, or a case
        without one; its share wrong counts as it is, their sum rounded up.
        """
        found = []
        for name, now in self.bindings.items():
            before = self.model.bindings.get(name)
            if before is None or before == now:
                continue
            tried = self._tried(name, changed_parts(before, now))
            if tried.n < tried.needed or not tried.p_value >= self.model.gate.delta:
                found.append(tried)
        return tuple(found)

    def _tried(self, name: str, changed: tuple[str, ...]) -> Unproven:
        from scipy.special import bdtrc

        losses = _losses(self.records.entries(name, scope="all"))
        record = self.model.yardstick.errors.get(name, ErrorRate(wrong=0, n=0))
        n, wrong = len(losses), float(losses.sum())
        at_least = math.ceil(min(wrong, n) - 1e-9)
        return Unproven(
            column=name,
            changed=changed,
            n=n,
            needed=self.needed,
            wrong=wrong,
            recorded=record.expected,
            p_value=float(bdtrc(at_least - 1, n, record.expected)) if at_least else 1.0,
        )

    @cached_property
    def alarms(self) -> tuple[Alarm, ...]:
        """What has moved since the last acknowledgement.

        Watched are the error rate of every agent at its first look, where it is asked about every case; the promise on
        what the system accepts; and, without any truth, belief and agreement at the first look. Each detector has its
        share of alpha.
        """
        names = [name for name in self.model.fusions[min(self.model.fusions)].agents if name in self.bindings]
        threshold = (len(names) + 3) / self.alpha
        found = [self._agent_alarm(name, threshold) for name in names]
        found += [self._promise_alarm(threshold)]
        found += [self._sign_alarm(sign, threshold) for sign in ("confidence", "agreement")]
        return tuple(alarm for alarm in found if alarm is not None)

    def _agent_alarm(self, name: str, threshold: float) -> Alarm | None:
        record = self.model.yardstick.errors.get(name)
        losses = _losses(self.records.entries(name, scope="all", since_seen=True))
        if record is None or not len(losses) or not 0 < record.limit < 1:
            return None
        known = f"at most {record.limit:.1%} by its record of {record.n}"
        return self._error_alarm(f"the error rate of {name}", losses, record.rate, record.limit, known, threshold)

    def _promise_alarm(self, threshold: float) -> Alarm | None:
        gate = self.model.gate
        labels = self.model.task.labels
        verdicts = self.records.entries(SYSTEM, since_seen=True)
        rows = [e for e in verdicts if e.accepted and e.truth in labels and e.label in labels]
        what = "the error rate" if gate.loss == "error" else "the mean cost"
        losses = unit_means(self._costs(rows), np.ones(len(rows)), [e.group for e in rows])
        known = f"at most {gate.target_risk:.1%} was promised"
        return self._error_alarm(
            f"{what} of accepted cases", losses, gate.accepted_error, gate.target_risk, known, threshold
        )

    def _costs(self, rows: list[Entry]) -> Floats:
        """Losses as the gate counts them, of shape (N,)."""
        place = {label: k for k, label in enumerate(self.model.task.labels)}
        truth = np.array([place[str(e.truth)] for e in rows], dtype=np.intp)
        said = np.array([place[str(e.label)] for e in rows], dtype=np.intp)
        loss = Loss(costs=self.model.task.costs)
        return np.asarray(loss.of(said, truth), dtype=np.float64) if rows else np.empty(0)

    def _error_alarm(
        self, what: str, losses: Floats, before: float, limit: float, known: str, threshold: float
    ) -> Alarm | None:
        seen = watch_errors(losses, limit, threshold)
        if seen.at is None:
            return None
        after = float(losses[seen.since :].mean())
        n = len(losses) - seen.since
        recorded = "an unknown rate" if math.isnan(before) else f"{before:.1%}"
        why = f"{what} moved from {recorded} ({known}) to {after:.1%} over the last {n} with a known truth"
        return Alarm(what=what, before=before, after=after, n=n, why=f"{why}; {self._chance}")

    def _sign_alarm(self, sign: str, threshold: float) -> Alarm | None:
        reference: tuple[float, ...] = getattr(self.model.yardstick, sign)
        rows = [e for e in self.records.entries(SYSTEM, since_seen=True) if e.signs]
        if not reference or not rows:
            return None
        values = np.array([getattr(e.signs, sign) for e in rows])
        units = unit_means(values, np.ones(len(rows)), [e.group for e in rows])
        # Ties are broken by the same draws every time, so that reading a ledger again finds the same.
        seen = watch_ranks(units, reference, threshold, np.random.default_rng(0))
        if seen.at is None:
            return None
        before, after, n = float(np.median(reference)), float(np.median(units[seen.since :])), len(units) - seen.since
        what = f"the {sign} at the first look"
        why = f"{what} moved from a median of {before:.3f} on {len(reference)} held-out cases to {after:.3f}"
        return Alarm(what=what, before=before, after=after, n=n, why=f"{why} over the last {n}; {self._chance}")

    @property
    def _chance(self) -> str:
        return f"chance alone raises an alarm once in {1 / self.alpha:,.0f} cases at the most."

    def at(self, look: int) -> Hold | None:
        """Why nothing is accepted at a look; None where there is no reason."""
        used = set(self.model.fusions[look].agents) if look in self.model.fusions else set(self.bindings)
        for found in self.unproven:
            if found.column in used:
                return Hold("unproven", found.why)
        for alarm in self.alarms:
            return Hold("drift", alarm.why)
        return None


def present_bindings(
    folder: Path,
    model: Model,
    arrays: Arrays,
    encoder: str,
    language: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, str]:
    """Say what a model folder is made of now.

    Read are what acts: the arrays, which the prompts were made into; the manifest of the index; the calibrators. A file
    of prompts that changes after the fit changes nothing of the model, and nothing here.

    Parameters
    ----------
    folder : Path
    model, arrays
        As loaded from it.
    encoder : str
        Digest of the encoder at hand.
    language : mapping, optional
        See `secondlook.orchestrator.language.parts_of`.
    """
    return bind(
        model.calibrators,
        encoder=encoder,
        prompt=model.prompt_sha256,
        arrays=arrays.digest,
        index=index_digest(folder / INDEX_FOLDER),
        language=language,
    )


def living_records(
    model: Model, bindings: Mapping[str, str], lines: Iterable[Line], writer: LedgerWriter | None = None
) -> LivingRecords:
    """Replay a ledger for a model as it is now, with its own held-out error rates as the prior."""
    recorded = {name: 1 - record.rate for name, record in model.yardstick.errors.items()}
    return LivingRecords(model.task.labels, short(bindings, model.digest), recorded, lines, writer)


def open_watch(
    folder: Path,
    model: Model,
    arrays: Arrays,
    encoder: str,
    ledger: Path | None = None,
    language: Mapping[str, Mapping[str, str]] | None = None,
) -> Watch:
    """Read a ledger, by default the one in the model folder, and say what it holds back; see `Watch.at`.

    Raises
    ------
    ConfigError
        When the ledger cannot be read.
    """
    bindings = present_bindings(folder, model, arrays, encoder, language)
    lines = read_ledger(ledger or folder / TRACK_FILE)
    return Watch(model, bindings, living_records(model, bindings, lines))


def _losses(rows: list[Entry]) -> Floats:
    """Weighted share wrong of each unit."""
    wrong = np.array([e.wrong for e in rows], dtype=np.float64)
    return unit_means(wrong, np.array([e.weight for e in rows], dtype=np.float64), [e.group for e in rows])
