"""Cases with their truth, in splits that share nothing."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from secondlook.agents.case import Case, Frozen
from secondlook.agents.errors import ConfigError, ImageError

_EMPTY = hashlib.sha256(b"").hexdigest()


class LabelledCase(Frozen):
    """A case and what only the evaluation may know of it."""

    case: Case
    truth: str
    split: str | None = None
    """train, calibration, tune or test; None where the data does not say."""
    caption: str = ""
    """What somebody wrote of the image; heads may learn from those of the train split, and nobody sees another."""


class Dataset(Frozen):
    """Labelled cases; made by `secondlook.eval.cases.read_dataset`, which reads no image."""

    root: Path
    labels: tuple[str, ...]
    """The K labels: sorted, or in the order they were asked for."""
    cases: tuple[LabelledCase, ...]
    """In the order of the CSV, or sorted by id."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold cases, in the order they first stand in; empty where the data has none."""
        return tuple(dict.fromkeys(item.split for item in self.cases if item.split is not None))

    def split(self, name: str) -> tuple[LabelledCase, ...]:
        """Return the cases of a split; `ConfigError` where there is no such split."""
        found = tuple(item for item in self.cases if item.split == name)
        if not found:
            have = f"has the splits {', '.join(self.splits)}" if self.splits else "has no splits"
            raise ConfigError(
                f"{self.root} has no cases in the split {name!r}; it {have}.",
                f"Add a {name}/ folder, or a split column to the CSV.",
            )
        return found

    def by_split(self) -> dict[str, tuple[LabelledCase, ...]]:
        """Return the cases of every split."""
        return {name: self.split(name) for name in self.splits}

    def counts(self, split: str | None = None) -> dict[str, int]:
        """Count the cases of each of the K labels, in one split or in all."""
        seen = Counter(item.truth for item in self.cases if split is None or item.split == split)
        return {label: seen[label] for label in self.labels}


def digests_of(cases: Iterable[LabelledCase]) -> dict[str, str]:
    """Digest every image that can be read, in threads.

    Returns
    -------
    dict of str to str
        Case id to SHA-256 of the file. Files that cannot be read, and empty ones, have no entry: they hold no image.
    """
    items = list(cases)
    with ThreadPoolExecutor(max_workers=8) as pool:
        digests = list(pool.map(_digest, items))
    return {item.case.id: digest for item, digest in zip(items, digests, strict=True) if digest not in (None, _EMPTY)}


def digest_of_split(cases: Iterable[LabelledCase]) -> str:
    """Name a split by its images: 16 hexadecimal digits that do not depend on order or on file names."""
    return hashlib.sha256("\n".join(sorted(digests_of(cases).values())).encode()).hexdigest()[:16]


def check_groups(cases: Iterable[LabelledCase]) -> None:
    """Raise `ConfigError` where a group stands in two splits. Reads no image."""
    home: dict[str, LabelledCase] = {}
    for item in cases:
        if item.case.group is None or item.split is None:
            continue
        first = home.setdefault(item.case.group, item)
        if first.split != item.split:
            raise ConfigError(
                f"The group {item.case.group!r} stands in two splits: {first.case.id} in {first.split}, "
                f"{item.case.id} in {item.split}.",
                "Keep all images of a leaf, patient or part in one split, or leave the split out: fit splits by group.",
            )


def check_disjoint(splits: Mapping[str, Sequence[LabelledCase]]) -> None:
    """Raise `ConfigError` where the same group, or the same file under whatever name, stands in two splits.

    Parameters
    ----------
    splits : mapping of str to sequence of LabelledCase
        As of `Dataset.by_split`, or of several datasets; the names given here count.
    """
    check_groups(item.model_copy(update={"split": name}) for name, items in splits.items() for item in items)
    home: dict[str, tuple[str, str]] = {}
    for name, items in splits.items():
        for case_id, digest in digests_of(items).items():
            first_split, first_id = home.setdefault(digest, (name, case_id))
            if first_split != name:
                raise ConfigError(
                    f"The same image stands in two splits: {first_id} in {first_split}, {case_id} in {name}.",
                    "Remove one of them, or give both the same group and leave the split to fit.",
                )


def check_counts(
    cases: Iterable[LabelledCase], minimum: int = 5, split: str = "calibration", labels: Sequence[str] | None = None
) -> None:
    """Raise `ConfigError` naming the labels with fewer than `minimum` cases.

    Parameters
    ----------
    cases : iterable of LabelledCase
        The cases of the split.
    minimum : int
        Fewest cases a label may have.
    split : str
        What the message calls the split.
    labels : sequence of str, optional
        All K labels, so that one without a single case is missed too; those of the cases by default.
    """
    seen = Counter(item.truth for item in cases)
    few = [f"{label} ({seen[label]})" for label in labels or sorted(seen) if seen[label] < minimum]
    if few or not seen:
        raise ConfigError(
            f"Too few {split} cases of {', '.join(few) or 'every label'}: each label needs at least {minimum}.",
            f"Add images of these labels to the {split} split, or leave these labels out.",
        )


def _digest(item: LabelledCase) -> str | None:
    try:
        return item.case.photo.digest
    except ImageError:
        return None
