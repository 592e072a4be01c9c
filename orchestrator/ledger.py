"""The ledger: what was said of which case and what turned out to be true, one JSON line after another."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError

from secondlook.agents.case import Frozen
from secondlook.agents.errors import ConfigError

TRACK_FILE = "track.jsonl"
"""The ledger's name inside a model folder."""
LONGEST_LINE = 65_536
"""Bytes; what is longer was not written by this program."""
LARGEST_FILE = 2**30
"""Bytes: about five million lines."""
Scope = Literal["all", "accepted", "review"]
"""What the cases with a known truth stand for.

- ``all``: all cases of their run, each with its weight
- ``accepted``: only those that the gate accepts; they are easier
- ``review``: only those that the gate sent to review; they are harder, so no rate of all cases follows
"""
LONGEST_TEXT = 4096
"""Characters of a name or a remark."""
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Share = Annotated[float, Field(ge=0, le=1)]


class Signs(Frozen):
    """What can be watched without the truth, at a case's first look."""

    confidence: Share
    """Belief in its top label."""
    agreement: Share
    """Mean probability that the agents who answered give that label."""


class Entry(Frozen):
    """What one agent said of one case at one look, and the truth where it is known."""

    kind: Literal["entry"] = "entry"
    case: Text
    agent: Text
    look: Annotated[int, Field(ge=0)]
    binding: Text
    """Digest of what the agent was made of when it said so."""
    group: Text | None = None
    label: Text | None = None
    """None where the agent failed."""
    confidence: Share | None = None
    truth: Text | None = None
    scope: Scope = "all"
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Cases of the run that this one stands for, relative to the others with a known truth; their mean is 1."""
    accepted: bool | None = None
    """Of the system: whether the gate accepted it, or would have but for a hold."""
    signs: Signs | None = None
    """Of the system."""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What there is one entry of: case, agent, look and binding."""
        return self.case, self.agent, self.look, self.binding

    @property
    def wrong(self) -> bool:
        """True where the truth is known and was not said; a failure says nothing, which is not right."""
        return self.truth is not None and self.label != self.truth


class Acknowledgement(Frozen):
    """Somebody has looked into the alarms: the detectors begin anew after this line."""

    kind: Literal["acknowledgement"] = "acknowledgement"
    by: Text
    """Who, or what was done."""


Line = Entry | Acknowledgement
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


def read_ledger(path: Path) -> Iterator[Line]:
    """Read a ledger line by line; a last line without its end was torn by a kill, and is left out.

    Yields
    ------
    Entry or Acknowledgement
        In the order of writing; nothing where there is no file.

    Raises
    ------
    ConfigError
        When it cannot be read or a whole line is not one of a ledger.
    """
    if not path.exists():
        return
    remedy = "Remove that line, or give another --ledger."
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path} is larger than {LARGEST_FILE >> 20} MiB.", "Give another --ledger.")
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE):
                number += 1
                if not line.endswith(b"\n"):
                    if len(line) == LONGEST_LINE:
                        raise ConfigError(f"{path}, line {number} is longer than {LONGEST_LINE} bytes.", remedy)
                    return
                try:
                    yield _LINE.validate_json(line)
                except ValidationError as error:
                    what = error.errors(include_input=False, include_url=False)[0]
                    said = " ".join([".".join(map(str, what["loc"])), what["msg"]]).strip()
                    raise ConfigError(f"{path}, line {number} is not a line of a ledger: {said}.", remedy) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Give another --ledger.") from error


class LedgerWriter:
    """A ledger open for appending, by one process at a time; each line is written whole and handed to the system.

    Parameters
    ----------
    path : Path
        Made where it is missing; a torn last line is cut off.

    Raises
    ------
    ConfigError
        When it cannot be written, or another process writes to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror}.", "Choose another --ledger.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _mend(self._file.fileno())
        except BlockingIOError as error:
            self._file.close()
            raise ConfigError(f"Another process is writing to {path}.", "Wait for it.") from error
        except OSError as error:
            self._file.close()
            raise ConfigError(f"{path} cannot be written: {error.strerror}.", "Choose another --ledger.") from error

    def append(self, line: Line) -> None:
        """Write one line.

        Raises
        ------
        ConfigError
            When the disk is full, or the line is longer than a reader would take.
        """
        text = line.model_dump_json(exclude_none=True).encode() + b"\n"
        if len(text) > LONGEST_LINE:
            raise ConfigError(f"A line of {self.path} would be longer than {LONGEST_LINE} bytes.", "Shorten the names.")
        rest = memoryview(text)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be written: {error.strerror}.", "Put that right, then give the same command again."
            ) from error

    def close(self) -> None:
        """Close the file and let others write."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def carried(old: Path, new: Path) -> Iterator[None]:
    """Copy a ledger, where there is one, and let nobody write to the old one while the new one takes its place."""
    if not old.is_file():
        yield
        return
    with old.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shutil.copyfile(old, new)
        yield


def _mend(descriptor: int) -> None:
    """Cut off what stands after the last end of a line; a torn line is at most as long as a line may be."""
    size = os.fstat(descriptor).st_size
    start = max(0, size - LONGEST_LINE)
    tail = os.pread(descriptor, size - start, start)
    end = tail.rfind(b"\n") + 1
    if end < len(tail) and (end or start == 0):
        os.ftruncate(descriptor, start + end)
