"""The run folder: verdicts as append-only lines; a kill loses the cases in flight and nothing else."""

from __future__ import annotations

import csv
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from secondlook.agents.case import Frozen
from secondlook.agents.errors import ConfigError
from secondlook.eval.tally import Row, read_rows
from secondlook.orchestrator.verdict import Verdict

VERDICTS, MANIFEST, METRICS, TABLE, LOCK = "verdicts.jsonl", "manifest.json", "metrics.json", "verdicts.csv", ".lock"
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet takes for the start of a formula, or skips before one."""
COLUMNS = ("id", "path", "group", "label", "confidence", "action", "reason", "trust", "typicality", "prediction_set")


class Manifest(Frozen):
    """What a run was made with; another one may not write into the same folder."""

    kind: str
    """`triage` or `evaluate`."""
    data: str
    model: str
    """Digest of the model."""
    model_path: str
    encoder: str
    options: dict[str, Any]
    version: str
    created: str
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[Any, ...]:
        """What must agree for a run to be resumed."""
        return self.kind, self.data, self.model, json.dumps(self.options, sort_keys=True)


class RunFolder:
    """An open run folder; one process at a time writes to it.

    Parameters
    ----------
    folder : Path
        Made where it is missing; a run that was interrupted is resumed.
    manifest : Manifest

    Raises
    ------
    ConfigError
        When it cannot be written, holds another run, or another process writes to it.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        try:
            _refuse_foreign(folder)
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / LOCK).open("a")
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written: {error.strerror}.", "Choose a writable --out.") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError(
                f"Another process is writing to {folder}.", "Wait for it, or choose another --out."
            ) from error
        try:
            self.manifest = self._agree(manifest)
            self.done = self._mend()
            # Unbuffered: after a failed write nothing is left over that closing would try to write again.
            self._file = (folder / VERDICTS).open("ab", buffering=0)
        except OSError as error:
            self._lock.close()
            raise ConfigError(f"{folder} cannot be written: {error.strerror}.", "Choose a writable --out.") from error
        except BaseException:
            self._lock.close()
            raise

    def _agree(self, manifest: Manifest) -> Manifest:
        path = self.folder / MANIFEST
        if not path.exists():
            write_whole(path, manifest.model_dump_json(indent=1))
            return manifest
        try:
            found = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read.", "Choose another --out.") from error
        if found.identity != manifest.identity:
            raise ConfigError(
                f"{self.folder} holds another run: {found.kind} of {found.data} with model {found.model}; now "
                f"{_difference(found, manifest)}.",
                "Choose another --out, or delete that folder.",
            )
        return found

    def _mend(self) -> set[str]:
        """Cut off a last line that a kill left unfinished; return the ids that are done."""
        path = self.folder / VERDICTS
        if not path.exists():
            return set()
        if not path.is_file():
            raise ConfigError(f"{path} is not a file.", "Choose another --out.")
        done: set[str] = set()
        good = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                # Without its end the line is torn, even where what is there happens to be whole.
                if not line.endswith(b"\n"):
                    break
                try:
                    done.add(str(json.loads(line)["id"]))
                except (ValueError, KeyError, TypeError) as error:
                    raise ConfigError(
                        f"{path}, line {number} is not a verdict.", "Remove that line, or choose another --out."
                    ) from error
                good += len(line)
        if good < path.stat().st_size:
            os.truncate(path, good)
        return done

    def append(self, verdict: Verdict, truth: str | None = None) -> None:
        """Write one case, whole, and hand it to the operating system.

        Raises
        ------
        ConfigError
            When the disk is full, or the folder is gone.
        """
        line = verdict.model_dump(mode="json")
        if truth is not None:
            line["truth"] = truth
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"
        # File names that are not UTF-8 are quoted in messages; half a character cannot be written.
        rest = memoryview(text.encode("utf-8", "replace"))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise ConfigError(
                f"{self.folder / VERDICTS} cannot be written: {error.strerror}.",
                "Put that right; the same command then goes on where it stopped.",
            ) from error

    def rows(self) -> Iterator[Row]:
        """Read the verdicts written so far, one at a time."""
        return read_rows(self.folder / VERDICTS)

    def write_table(self) -> Path:
        """Write verdicts.csv; text that a spreadsheet would take for a formula is quoted."""
        path = self.folder / TABLE
        partial = path.with_name(f"{TABLE}.partial")
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*COLUMNS, "truth"])
            for row in self.rows():
                values = row.model_dump(include={*COLUMNS, "truth"})
                values["prediction_set"] = "|".join(row.prediction_set)
                writer.writerow([cell(values[name]) for name in (*COLUMNS, "truth")])
        partial.replace(path)
        return path

    def close(self) -> None:
        """Close the files and let others write."""
        self._file.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the new one, never half."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _refuse_foreign(folder: Path) -> None:
    """Leave a folder alone that holds other things than a run; what a kill can leave of a run is one."""
    own = {LOCK, f"{MANIFEST}.partial"}
    if folder.is_dir() and not (folder / MANIFEST).exists() and any(p.name not in own for p in folder.iterdir()):
        raise ConfigError(f"{folder} exists and is not a run folder.", "Choose another --out.")


def _difference(found: Manifest, now: Manifest) -> str:
    """Say what keeps a run from being resumed."""
    for name in ("kind", "data", "model"):
        if getattr(found, name) != getattr(now, name):
            return f"the {name} is {getattr(now, name)}"
    other = [name for name in {**found.options, **now.options} if found.options.get(name) != now.options.get(name)]
    return f"{' and '.join(other)} differ" if len(other) > 1 else f"{other[0]} differs"


def cell(value: object) -> object:
    """Quote text that a spreadsheet would take for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in FORMULA else value
