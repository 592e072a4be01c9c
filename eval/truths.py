"""Truths that became known after a run: a CSV of cases and labels, as reviewers write it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from secondlook.agents.errors import ConfigError

MOST_BYTES = 256 * 2**20
"""Of a truth file; a larger one is something else."""
NAMED = 3
"""Offenders that a message names."""


def read_truths(path: Path, places: Mapping[str, str | None], labels: Sequence[str]) -> dict[str, str]:
    """Read the truths of a run's cases.

    The column of the truth is `truth`, or `label` where there is none: in a copy of verdicts.csv, `label` is what the
    model said. A case is named by its `id`, or by its `path`, absolute or from the place of the CSV. Rows without a
    truth are of cases that nobody has decided yet, and are passed over.

    Parameters
    ----------
    path : Path
        The CSV, UTF-8, its first line naming the columns.
    places : mapping of str to str or None
        Path of every case of the run, by id.
    labels : sequence of str
        The task's labels.

    Returns
    -------
    dict of str to str
        Truth by case id.

    Raises
    ------
    ConfigError
        When the file cannot be read, lacks a column, names unknown cases or labels, or one case twice.
    """
    rows = _read(path)
    ids = _by_path(places) if "id" not in rows[0][1] else {}
    truths: dict[str, str] = {}
    unknown: list[str] = []
    for number, row in rows:
        name = row.get("id") or row.get("path") or ""
        truth = row["truth" if "truth" in row else "label"]
        if not truth:
            continue
        case = _case(name, places) if "id" in row else _by_name(name, path, ids)
        if case is None:
            unknown.append(f"{name or 'one without a name'} (line {number})")
            continue
        if truth not in labels:
            raise ConfigError(
                f"{path}, line {number}: {truth!r} is no label of the model.",
                f"The labels are {', '.join(labels)}; leave it empty for what is none of them.",
            )
        if case in truths:
            raise ConfigError(f"{path}, line {number}: there is another row for {case}.", "Keep one row a case.")
        truths[case] = truth
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        raise ConfigError(
            f"{path} names cases that are not in the run: {', '.join(unknown[:NAMED])}{more}.",
            "Give the run that judged them; ids are those of its verdicts.csv.",
        )
    return truths


def _read(path: Path) -> list[tuple[int, dict[str, str]]]:
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.", "Give a CSV with the columns id,label or path,label.")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path} is larger than {MOST_BYTES >> 20} MB.", "Give only cases and labels.")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            found = []
            for row in reader:
                if any(cell.strip() for cell in row):
                    # A short row has empty cells at its end.
                    cells = [cell.strip() for cell in row] + [""] * (len(header) - len(row))
                    found.append((reader.line_num, dict(zip(header, cells, strict=False))))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}).", "Save it as CSV UTF-8.") from error
    except csv.Error as error:
        raise ConfigError(
            f"{path} cannot be read as CSV: {error}.", "Close quotes, and save it as CSV UTF-8."
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Put that right, or give another.") from error
    missing = [" or ".join(names) for names in (("id", "path"), ("truth", "label")) if not set(names) & set(header)]
    if missing or not found:
        what = f"has no column {' and no column '.join(missing)}" if missing else "holds no row"
        raise ConfigError(f"{path} {what}.", "The first line names the columns: id,label or path,label.")
    if twice := {name for name in header if name and header.count(name) > 1}:
        raise ConfigError(f"{path} has two columns {min(twice)}.", "Name each column once.")
    return found


def _case(name: str, places: Mapping[str, str | None]) -> str | None:
    """Id of a case; verdicts.csv puts a quote before what a spreadsheet would take for a formula."""
    return next((known for known in (name, name.removeprefix("'")) if known in places), None)


def _by_path(places: Mapping[str, str | None]) -> dict[str, str]:
    return {str(Path(place).resolve()): case for case, place in places.items() if place is not None}


def _by_name(name: str, csv_path: Path, ids: Mapping[str, str]) -> str | None:
    tries: Iterable[Path] = (base / name.removeprefix("'") for base in (Path(), csv_path.parent))
    return next((ids[place] for p in tries if (place := str(p.resolve())) in ids), None) if name else None
