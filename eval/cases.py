"""Reading datasets and folders: files become cases, and no image is opened.

A dataset is one of

- a folder per label: ``DATA/LABEL/**/*.jpg``
- a folder per split, each with a folder per label: ``DATA/train/LABEL/**``, ``calibration`` (or ``cal``, ``val``),
  ``tune``, ``test``
- a CSV with the columns path and label, and optionally group, split, caption and boxes (see `secondlook.eval.boxes`);
  relative paths start at the CSV's folder and must stay in it, absolute ones may lead anywhere
- a folder that holds such a CSV called ``index.csv``, which then wins

Files whose names start with a dot are ignored, as are files that are not called as images are.
"""

# os.path answers False where pathlib raises (a name too long, a folder one may not enter), and is quick.
# ruff: noqa: PTH100, PTH110, PTH112, PTH113, PTH118

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from secondlook.agents.case import Box, Case
from secondlook.agents.errors import ConfigError
from secondlook.agents.photo import Photo
from secondlook.eval.boxes import read_boxes
from secondlook.eval.dataset import (
    Dataset,
    LabelledCase,
    check_counts,
    check_disjoint,
    check_groups,
    digest_of_split,
    digests_of,
)
from secondlook.eval.splits import split_by_group, with_digests

__all__ = [
    "Dataset",
    "LabelledCase",
    "check_counts",
    "check_disjoint",
    "digest_of_split",
    "digests_of",
    "list_images",
    "read_dataset",
    "readable",
    "split_by_group",
    "with_digests",
]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
"""How an image file may end, in upper or lower case."""
SPLITS = {
    "train": "train",
    "calibration": "calibration",
    "cal": "calibration",
    "val": "calibration",
    "valid": "calibration",
    "validation": "calibration",
    "tune": "tune",
    "test": "test",
}
"""Names a folder or a CSV may call a split, and what the split is."""
_FORMS = (
    "Give a folder with one sub-folder of images per label (or train/, calibration/ and test/ of such folders), "
    "or a CSV with the columns path,label and optionally group,split."
)
MOST_CAPTION = 2_000
"""Characters of a caption that are kept."""


class _Row(NamedTuple):
    id: str
    path: Path
    label: str
    group: str | None
    split: str | None
    boxes: tuple[Box, ...] = ()
    caption: str = ""


def read_dataset(data: str | Path, *, labels: Sequence[str] | None = None) -> Dataset:
    """Read a dataset in any of the forms above.

    Parameters
    ----------
    data : str or Path
        The folder or the CSV.
    labels : sequence of str, optional
        The labels of the task, in its order; any other is an error. By default those found, sorted.

    Returns
    -------
    Dataset
        An id is the path below the folder, with forward slashes (an absolute path for files elsewhere).

    Raises
    ------
    ConfigError
        Names what is wrong in the data and what to do about it.
    """
    data = Path(data)
    if not os.path.exists(data):
        raise ConfigError(f"There is no {data}.", _FORMS)
    if data.is_dir():
        index = data / "index.csv"
        root, rows = data, _csv_rows(index) if index.is_file() else _folder_rows(data)
    elif data.suffix.lower() == ".csv":
        root, rows = data.parent, _csv_rows(data)
    else:
        raise ConfigError(f"{data} is neither a folder nor a CSV.", _FORMS)
    known = tuple(labels) if labels is not None else tuple(sorted({row.label for row in rows}))
    _check_labels(data, rows, known, given=labels is not None)
    cases = tuple(
        LabelledCase(
            case=Case(id=row.id, photo=Photo(row.path), group=row.group, boxes=row.boxes),
            truth=row.label,
            split=row.split,
            caption=row.caption,
        )
        for row in rows
    )
    check_groups(cases)
    return Dataset(root=root, labels=known, cases=cases)


def list_images(source: str | Path | Sequence[str | Path]) -> list[Case]:
    """List images without labels, to be judged.

    Parameters
    ----------
    source : str, Path or sequence of these
        A folder (searched through, sorted by path), an image, or several of either; a file met twice is listed once.

    Returns
    -------
    list of Case
        The id is the path below the folder; where several sources are given, with the source before it.

    Raises
    ------
    ConfigError
        For a missing file or folder, or a folder without images.
    """
    if isinstance(source, str | Path):
        found = _images_of(source)
    else:
        found = {name: photo for one in source for name, photo in _images_of(one, Path(one).as_posix()).items()}
    once = {photo.path: Case(id=name, photo=photo) for name, photo in reversed(found.items())}
    if not once:
        raise ConfigError("There are no images to judge: the list is empty.", "Give at least one image or folder.")
    return list(reversed(once.values()))


def _images_of(source: str | Path, prefix: str = "") -> dict[str, Photo]:
    folder = Path(source)
    if not os.path.isdir(folder):
        return {readable(prefix or folder.name): Photo.of(source)}
    above = (prefix,) if prefix else ()
    found = {readable("/".join((*above, *parts))): Photo(folder.joinpath(*parts)) for parts in sorted(_walk(folder))}
    if not found:
        raise ConfigError(f"There are no images in {folder}.", f"Images end in {' '.join(SUFFIXES)}.")
    return found


def readable(name: str) -> str:
    r"""Write a file name as text that any file can hold: bytes that are no UTF-8 as \udcff and the like."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _walk(folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield the parts of every image's path below the folder."""
    start = len(folder.parts)
    for here, folders, files in os.walk(folder, onerror=_unlisted):
        folders[:] = [name for name in folders if not name.startswith(".")]
        above = Path(here).parts[start:]
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield (*above, name)


def _unlisted(error: OSError) -> None:
    raise ConfigError(f"{error.filename} cannot be listed: {error.strerror}.", "Make it readable.") from error


def _folder_rows(root: Path) -> list[_Row]:
    found = sorted(_walk(root))
    if not found:
        raise ConfigError(f"There are no images in {root}.", _FORMS)
    folders = {parts[0] for parts in found if len(parts) > 1}
    as_split = {name for name in folders if name.lower() in SPLITS}
    # Labels may be called valid and invalid: only these names show that splits are meant where others stand beside.
    if as_split != folders and not as_split & {"train", "test", "calibration"}:
        as_split = set()
    if as_split and as_split != folders:
        raise ConfigError(
            f"{root} holds splits ({', '.join(sorted(as_split))}) beside folders that are none "
            f"({', '.join(sorted(folders - as_split))}).",
            "Keep either one folder per split or one folder per label.",
        )
    depth = 1 if as_split else 0
    stray = ["/".join(parts) for parts in found if len(parts) < depth + 2]
    if stray:
        raise ConfigError(
            f"{_some(stray)} in {root} stand{'s' if len(stray) == 1 else ''} outside the folders of the labels.",
            _FORMS,
        )
    return [
        _Row(
            id=readable("/".join(parts)),
            path=root.joinpath(*parts),
            label=parts[depth],
            group=None,
            split=SPLITS[parts[0].lower()] if as_split else None,
        )
        for parts in found
    ]


def _csv_rows(path: Path) -> list[_Row]:
    lines = _csv_lines(path)
    rows = [_row(path, number, line) for number, line in lines]
    folder = os.path.abspath(path.parent)
    twice = [name for name, n in Counter(os.path.join(folder, row.id) for row in rows).items() if n > 1]
    if twice:
        raise ConfigError(f"{path} lists {_some(twice)} more than once.", "Keep one row for each image.")
    missing = [row.id for row in rows if not os.path.isfile(row.path)]
    if missing:
        raise ConfigError(
            f"{path} lists {len(missing)} of {len(rows)} files that do not exist: {_some(missing)}.",
            f"Relative paths start at {folder}.",
        )
    without = [row.id for row in rows if row.split is None]
    if without and len(without) < len(rows):
        raise ConfigError(
            f"{path} gives a split for some images and none for {len(without)}: {_some(without)}.",
            "Fill the split column everywhere, or leave it out.",
        )
    return rows


def _csv_lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip().lower() for name in next(reader, [])]
            found = [(reader.line_num, dict(zip(header, map(str.strip, row), strict=False))) for row in reader if row]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}).", "Save it as CSV UTF-8.") from error
    except (csv.Error, OSError) as error:
        raise ConfigError(f"{path} cannot be read as CSV: {error}.", "Save it as CSV UTF-8.") from error
    missing = [name for name in ("path", "label") if name not in header]
    if header and missing:
        raise ConfigError(
            f"{path} has no column {' and no column '.join(missing)}; its columns are: {', '.join(header)}.",
            "The first line names the columns, with commas between: path,label and optionally group,split.",
        )
    if not found:
        raise ConfigError(f"{path} holds no images.", "Give one line for each image, below path,label,group,split.")
    return found


def _row(csv_path: Path, number: int, line: dict[str, str]) -> _Row:
    where = f"{csv_path}, line {number}"
    for name in ("path", "label"):
        if not line.get(name):
            raise ConfigError(f"{where}: the {name} is empty.", "Fill it in, or remove the line.")
    given = Path(line["path"])
    inside = Path(os.path.normpath(given))
    if not given.is_absolute() and inside.parts[:1] == ("..",):
        raise ConfigError(
            f"{where}: the path {line['path']!r} leads out of the folder of the CSV.",
            "Give an absolute path, or put the CSV above the images.",
        )
    split = line.get("split", "").lower()
    if split and split not in SPLITS:
        raise ConfigError(f"{where}: there is no split {line['split']!r}.", f"The splits are {', '.join(SPLITS)}.")
    return _Row(
        id=inside.as_posix(),
        path=csv_path.parent / inside,
        label=line["label"],
        group=line.get("group") or None,
        split=SPLITS.get(split),
        boxes=read_boxes(line.get("boxes", ""), where),
        caption=line.get("caption", "")[:MOST_CAPTION],
    )


def _check_labels(data: Path, rows: list[_Row], known: tuple[str, ...], *, given: bool) -> None:
    strangers = Counter(row.label for row in rows if row.label not in known)
    if strangers:
        raise ConfigError(
            f"{data} holds labels that are not of the task: {_some(sorted(strangers))}.",
            f"The labels are {', '.join(known)}; rename or remove the others.",
        )
    if len(known) < 2 and not given:
        raise ConfigError(f"{data} holds only one label, {known[0]!r}.", _FORMS)


def _some(names: Sequence[str]) -> str:
    """Name the first three, and say how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
