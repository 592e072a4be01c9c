"""A split as arrays: every image that can be read, with its embedding, label and group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Case, Task
from secondlook.agents.embedder import Embedder
from secondlook.agents.errors import ConfigError
from secondlook.eval.dataset import LabelledCase
from secondlook.eval.progress import Progress

CHUNK = 256
"""Cases embedded between two reports of progress."""
MOST_UNREADABLE_NAMED = 3


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
    captions: tuple[str, ...] = ()
    """N texts, empty where there is none; none at all where no caption was read."""


def embed_split(
    name: str, cases: Sequence[LabelledCase], task: Task, embedder: Embedder, progress: Progress
) -> tuple[Embedded, list[str]]:
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
        captions=tuple(row.caption for row in kept),
    ), notes
