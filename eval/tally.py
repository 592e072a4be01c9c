"""A run's verdicts read back line by line, and what can be counted in one pass over them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from secondlook.agents.errors import ConfigError
from secondlook.orchestrator.verdict import Verdict

OVERCONFIDENT = 0.8
"""Confidence from which a wrong label counts as confident and wrong: the tau of `secondlook.eval.reliability.ocr`."""


class Row(Verdict):
    """One line of verdicts.jsonl: a verdict, with the truth where the run was labelled."""

    truth: str | None = None

    @property
    def wrong(self) -> bool:
        """True where the truth is known and the label is not it; no answer is not right."""
        return self.truth is not None and self.label != self.truth

    @property
    def flags(self) -> int:
        """The sum of the values of `FLAGS` that hold for this case."""
        sure = self.confidence is not None and self.confidence >= OVERCONFIDENT
        holds = (
            self.action == "accept",
            self.action == "review",
            self.wrong,
            sure,
            len(self.looks) > 1,
            self.reason == "stranger",
        )
        return sum(bit for bit, held in zip(FLAGS.values(), holds, strict=True) if held)


FLAGS = {"accepted": 1, "review": 2, "wrong": 4, "confident": 8, "second": 16, "stranger": 32}
"""One bit for each property that cases are filtered by."""


@dataclass
class Tally:
    """Counts over a run; beside them it holds 9 bytes for each labelled case, for the curves."""

    n: int = 0
    labels: tuple[str, ...] = ()
    model: str = ""
    torn: bool = False
    """True where the last line was cut off, as when a run is stopped while writing."""
    right: int = 0
    labelled: int = 0
    accepted: int = 0
    accepted_labelled: int = 0
    accepted_wrong: int = 0
    fixed: int = 0
    """Cases that the later look put right."""
    broken: int = 0
    """Cases that the first look had right and the later one has not."""
    thresholds: dict[int, float | None] = field(default_factory=dict)
    """Least trust to accept at each look, as the last case that had it says; None where nothing is accepted."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Of the cases sent to review."""
    cells: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    """Cases by truth and label; the truth is None in unlabelled runs."""
    accepted_as: Counter[str | None] = field(default_factory=Counter)
    """Accepted cases by label."""
    flags: Counter[int] = field(default_factory=Counter)
    """Cases by `Row.flags`."""
    trust: array[float] = field(default_factory=lambda: array("f"))
    """Of the labelled cases; -1 where there is none."""
    confidence: array[float] = field(default_factory=lambda: array("f"))
    """Of the labelled cases; nan where there is none."""
    correct: bytearray = field(default_factory=bytearray)
    """Of the labelled cases: 1 where right."""

    def add(self, row: Row) -> None:
        """Count one case."""
        self.n += 1
        self.labels, self.model = row.labels, row.model
        self.thresholds |= {look.look: look.threshold for look in row.looks}
        accepted = row.action == "accept"
        self.accepted += accepted
        if accepted:
            self.accepted_as[row.label] += 1
        else:
            self.reasons[row.reason] += 1
        self.cells[row.truth, row.label] += 1
        self.flags[row.flags] += 1
        if row.truth is None:
            return
        self.labelled += 1
        self.right += not row.wrong
        self.accepted_labelled += accepted
        self.accepted_wrong += accepted and row.wrong
        self.trust.append(-1.0 if row.trust is None else row.trust)
        self.confidence.append(float("nan") if row.confidence is None else row.confidence)
        self.correct.append(not row.wrong)
        if len(row.looks) > 1 and row.first_label is not None:
            before = row.first_label == row.truth
            self.fixed += not before and not row.wrong
            self.broken += before and row.wrong

    @property
    def names(self) -> list[str]:
        """The task's labels, then whatever else stands as truth or label."""
        others = {name for cell in self.cells for name in cell if name is not None} - set(self.labels)
        return [*self.labels, *sorted(others)]

    def having(self, mask: int) -> int:
        """Count the cases that have all flags of a mask."""
        return sum(n for flags, n in self.flags.items() if flags & mask == mask)


def read_rows(path: Path, tally: Tally | None = None) -> Iterator[Row]:
    """Read verdicts one at a time, without holding more than one.

    Parameters
    ----------
    path : Path
        A run's verdicts.jsonl.
    tally : Tally, optional
        Counts every row as it passes, and learns whether the last line was torn.

    Yields
    ------
    Row
        In the order of the file. A last line without its end of line that cannot be read is left out.

    Raises
    ------
    ConfigError
        If the file is missing, a line is not a verdict, or the verdicts are of different tasks.
    """
    if not path.is_file():
        raise ConfigError(f"{path.parent} holds no verdicts.jsonl.", "Give the folder that `--out` named for the run.")
    labels = None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = Row.model_validate_json(line)
            except ValidationError as error:
                if not line.endswith(b"\n"):
                    if tally:
                        tally.torn = True
                    return
                what = error.errors(include_input=False, include_url=False)[0]
                place = ".".join(map(str, what["loc"]))
                raise ConfigError(
                    f"{path}, line {number} is not a verdict: {place} {what['msg']}", "Run the same command again."
                ) from None
            labels = labels or row.labels
            if row.labels != labels:
                raise ConfigError(
                    f"{path}, line {number} has the labels {list(row.labels)}, the lines above {list(labels)}.",
                    "Write the verdicts of another task to a folder of their own.",
                )
            if tally:
                tally.add(row)
            yield row
