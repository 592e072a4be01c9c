"""Recorded answers as rows: the long format, and tables with one row a case and columns for every agent.

The long format is a CSV with the columns

    case,agent,look,label,confidence,probs,seconds,usd

and optionally ``truth``, ``group``, ``kind`` (vlm, llm, vote, head) and ``calls``. Rows of the agent ``truth`` hold the
true labels where no column does; rows of the agent ``published`` hold an answer to compare with. A wide table is known
by its columns ``Category`` (the truth) and ``NAME_confidence``; see `WIDE`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from secondlook.agents.errors import ConfigError

MAX_BYTES = 64 * 2**20
MAX_ROWS = 1_000_000
MAX_TEXT = {"case": 500, "agent": 100, "label": 200, "truth": 200, "group": 500, "probs": 50_000}
"""Longest text of each column, in characters."""
LOOKS = {"": 1, "1": 1, "1.0": 1, "2": 2, "2.0": 2}
"""How a look may be written."""
MOST = 1e9
"""Largest number of seconds, USD or calls of one answer."""

Kind = Literal["vlm", "llm", "vote", "head"]
"""What gave an answer.

- ``vlm``: a model that was called with the image; an answer is one call
- ``llm``: a model that was called with text only; an answer is one call
- ``vote``: the labels of similar images; no model is called
- ``head``: a classifier on an embedding; no model is called
"""
Probs = dict[str, float] | tuple[float, ...]
"""Shares by label, or in the order of the sorted labels."""

TRUTH, PUBLISHED, VOTE = "truth", "published", "neighbour-vote"
"""Names of agents that are none, and what a vote is called."""
LONG = ("case", "agent", "label")
"""Columns without which a table is no long one."""
WIDE = {"RAG": VOTE, "Orchestrator": PUBLISHED}
"""What columns of a wide table are called here. `X_1` is X's first look where there is one, and X then its second."""
_QUOTED = "Save it as a CSV with commas; quote values that hold commas, quotes or line breaks; write .9, not 0,9."
_FORMS = (
    "Give a CSV with the columns case,agent,look,label,confidence,probs,seconds,usd, and the true label in a column "
    "truth or in rows of the agent truth."
)


@dataclass(frozen=True)
class AnswerRow:
    """What one agent said of one case at one look; None where nothing is written."""

    line: int
    case: str
    agent: str
    look: int
    label: str
    """Empty where the agent gave none."""
    confidence: float | None = None
    probs: Probs | None = None
    seconds: float | None = None
    usd: float | None = None
    kind: Kind | None = None
    calls: float | None = None
    """Model calls behind the answer; by its kind where None."""


@dataclass(frozen=True)
class AnswerRows:
    """All rows of a file, and what it says of its cases."""

    name: str
    """Of the file."""
    rows: list[AnswerRow] = field(default_factory=list)
    truth: dict[str, str] = field(default_factory=dict)
    """By case."""
    groups: dict[str, str] = field(default_factory=dict)


def read_rows(path: Path) -> AnswerRows:
    """Read a file of recorded answers.

    Raises
    ------
    ConfigError
        For a file that cannot be read as such answers; names the line.
    """
    found = AnswerRows(path.name)
    lines = _records(path)
    header = next(lines, None)
    if header is None:
        raise ConfigError(f"{path} is empty.", _FORMS)
    names = [name.strip() for name in header[1]]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path} has two columns {twice[0][:80]!r}.", "Name every column once.")
    long, wide = set(LONG) <= set(names), _wide_agents(names)
    if not long and not wide:
        commas = "Put commas between the columns. " if len(names) == 1 and {";", "\t", "|"} & set(names[0]) else ""
        raise ConfigError(f"{path} has the columns {', '.join(names)[:200]}: no recorded answers.", commas + _FORMS)
    if not long and (unfit := [name for name in wide if not name or "@" in name]):
        raise ConfigError(f"{path} has a column {unfit[0]!r} for an agent.", "Name agents by a word without an @.")
    for line, values in lines:
        if not any(value.strip() for value in values):
            continue
        if len(values) != len(names):
            raise ConfigError(f"{path}, line {line}: {len(values)} values for {len(names)} columns.", _QUOTED)
        cells = _Cells(path, line, {name: value.strip() for name, value in zip(names, values, strict=True)})
        if long:
            _take_long(cells, found)
        else:
            _take_wide(cells, wide, found)
        if len(found.rows) > MAX_ROWS:
            raise ConfigError(f"{path} holds more than {MAX_ROWS:,} answers.", "Give a part of them.")
    return found


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines with their numbers, from a file that is small enough and text."""
    if not path.is_file():
        raise ConfigError(f"{path} is not a file." if path.exists() else f"There is no file {path}.", _FORMS)
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES // 2**20} MiB.", "Give a part of the cases.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}).", "Save it as a CSV in UTF-8.") from None
    reader, line = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for values in reader:
            if values:
                yield line, values
            line = reader.line_num + 1
    except csv.Error as error:
        raise ConfigError(f"{path}, the row that begins in line {line}: {error}.", _QUOTED) from None


class _Cells:
    """One line's values, read with messages that name the line."""

    def __init__(self, path: Path, line: int, values: Mapping[str, str]) -> None:
        self._path, self.line, self._values = path, line, values

    @property
    def names(self) -> list[str]:
        return list(self._values)

    def wrong(self, what: str, remedy: str) -> ConfigError:
        return ConfigError(f"{self._path}, line {self.line}: {what}", remedy)

    def text(self, name: str, most: str = "") -> str:
        value = self._values.get(name, "")
        if len(value) > MAX_TEXT[most or name]:
            raise self.wrong(f"{name} has {len(value):,} characters.", f"At most {MAX_TEXT[most or name]:,} are read.")
        # One letter may be written as one sign or as two: a label is the same either way.
        return unicodedata.normalize("NFC", value)

    def number(self, name: str) -> float | None:
        """Read an amount of 0 or more; None where nothing is written."""
        value = self._values.get(name, "")
        if not value:
            return None
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number <= MOST:
            raise self.wrong(f"{name} is {value[:40]!r}.", f"Give a number from 0 to {MOST:,.0f}, or nothing.")
        return number

    def share(self, name: str) -> float | None:
        """Read a confidence: .95 and 95% are the same; 95 alone could mean anything and is refused."""
        value = self._values.get(name, "")
        if not value:
            return None
        try:
            share = float(value[:-1]) / 100 if value.endswith("%") else float(value)
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1:
            raise self.wrong(f"{name} is {value[:40]!r}.", "Give a share from 0 to 1, or a percentage such as 95%.")
        return share

    def probs(self, name: str) -> Probs | None:
        value = self.text(name, "probs")
        if not value:
            return None
        try:
            found = json.loads(value, object_pairs_hook=_object, parse_constant=_refuse)
            probs = _shares(found)
        except (ValueError, TypeError, KeyError, RecursionError):
            remedy = 'Give JSON: {"rust": 0.7, "scab": 0.3}, or an array in the order of the sorted labels.'
            raise self.wrong(f"{name} is {value[:60]!r}.", remedy) from None
        total = math.fsum(probs.values() if isinstance(probs, dict) else probs)
        if abs(total - 1) > ROUNDING:
            raise self.wrong(f"{name} add up to {total:.4g}, not to 1.", "Give a distribution over the labels.")
        return probs


ROUNDING = 0.02
"""How far from 1 the sum of shares may be: ten shares of two digits. They are divided by their sum."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a label stands twice")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(constant)


def _shares(found: Any) -> Probs:
    """Turn JSON into shares: an object, an array of numbers, or an array of {category, confidence} objects."""
    if isinstance(found, list) and found and all(isinstance(each, dict) for each in found):
        found = _object([(each["category"], each["confidence"]) for each in found])
    values = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(values, list) or not values or not all(type(v) in (int, float) and 0 <= v <= 2 for v in values):
        raise ValueError("no shares")
    if isinstance(found, dict):
        return {unicodedata.normalize("NFC", label.strip()): float(share) for label, share in found.items()}
    return tuple(float(share) for share in values)


def _take_long(cells: _Cells, found: AnswerRows) -> None:
    case, agent, label, kind = cells.text("case"), cells.text("agent"), cells.text("label"), cells.text("kind", "agent")
    if not case or not agent:
        raise cells.wrong("case or agent is empty.", "Name the case and the agent in every row.")
    _once(cells, found.truth, case, "truth", cells.text("truth"))
    _once(cells, found.groups, case, "group", cells.text("group"))
    if agent == TRUTH:
        if not label:
            raise cells.wrong(f"the true label of case {case!r} is empty.", "Leave out cases whose truth is unknown.")
        _once(cells, found.truth, case, "truth", label)
        return
    if "@" in agent:
        raise cells.wrong(f"the agent {agent!r} has an @ in its name.", "Looks have a column of their own: look.")
    look = LOOKS.get(said := cells.text("look", "agent"))
    if look is None:
        raise cells.wrong(f"look is {said!r}.", "Give 1 (without evidence) or 2 (with).")
    if kind and kind not in get_args(Kind):
        raise cells.wrong(f"kind is {kind!r}.", f"The kinds are {', '.join(get_args(Kind))}.")
    found.rows.append(
        AnswerRow(
            line=cells.line,
            case=case,
            agent=agent,
            look=look,
            label=label,
            confidence=cells.share("confidence"),
            probs=cells.probs("probs"),
            seconds=cells.number("seconds"),
            usd=cells.number("usd"),
            kind=cast("Kind", kind) if kind else None,
            calls=cells.number("calls"),
        )
    )


def _once(cells: _Cells, known: dict[str, str], case: str, what: str, value: str) -> None:
    """Remember what a case's rows say of it, which must be the same."""
    if value and known.setdefault(case, value) != value:
        raise cells.wrong(f"the {what} of case {case!r} is {value!r}, and was {known[case]!r} before.", "Give one.")


def _wide_agents(names: list[str]) -> list[str]:
    """Columns of a wide table that hold labels, in its order; none where it is no such table."""
    return [name for name in names if f"{name}_confidence" in names] if "Category" in names else []


def _take_wide(cells: _Cells, columns: list[str], found: AnswerRows) -> None:
    case = cells.text("id", "case") or str(cells.line)
    truth = cells.text("Category", "truth")
    if not truth:
        raise cells.wrong("Category, the true label, is empty.", "Leave out cases whose truth is unknown.")
    _once(cells, found.truth, case, "truth", truth)
    _once(cells, found.groups, case, "group", cells.text("group"))
    for name in columns:
        first = name.endswith("_1") and name[:-2] in columns
        agent = WIDE.get(name, name[:-2] if first else name)
        kinds: dict[str, Kind] = {VOTE: "vote", PUBLISHED: "llm"}
        asked_again = agent == PUBLISHED and any(key.startswith(f"{name}_Re_Evaluation") for key in cells.names)
        found.rows.append(
            AnswerRow(
                line=cells.line,
                case=case,
                agent=agent,
                look=2 if f"{name}_1" in columns else 1,
                label=cells.text(name, "label"),
                confidence=cells.share(f"{name}_confidence"),
                probs=cells.probs(f"{name}_response"),
                seconds=cells.number(f"{name}_time"),
                usd=cells.number(f"{name}_cost"),
                kind=kinds.get(agent, "vlm"),
                # Once to say what is to be looked at again, once to decide.
                calls=2 if asked_again else None,
            )
        )
