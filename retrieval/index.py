"""The index: labelled embeddings in a folder, with a manifest that says what they are."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, ValidationError

from secondlook.agents.case import Frozen
from secondlook.agents.errors import ConfigError
from secondlook.retrieval.chroma import ChromaStore
from secondlook.retrieval.store import CHUNK, Floats, Item, Store, check_embeddings, check_new

VERSION = 1
"""Of the folder's layout; another one is not read."""
MANIFEST = "index.json"
SAME_IMAGE = 0.9999
"""Cosine above which two images count as one picture, whatever else is known."""
ENOUGH_GROUPS = 20
"""Groups needed before the closest pair of two groups says where duplicates begin."""
MEASURED_ITEMS = 20_000
"""Items that the near-duplicate limit is measured on; more are sampled."""


class IndexManifest(Frozen):
    """What an index holds and what it was made with."""

    version: int
    created_by: str
    """Version of secondlook."""
    store: str = Field(pattern=r"^chroma-[0-9a-f]{8}$")
    """Name of Chroma's folder beside the manifest."""
    encoder_digest: str
    dim: int = Field(ge=1)
    n: int = Field(ge=1)
    labels: dict[str, int]
    """Items per label."""
    groups: int = Field(ge=0)
    """Distinct groups among the items that name one."""
    content: str | None = None
    """Digest of the items and their embeddings."""
    near_duplicate: float = Field(ge=-1, le=1)
    """Cosine above which an item is no evidence but the case itself again; see `near_duplicate_limit`."""


@dataclass(frozen=True)
class Index:
    """An open index; a context manager that closes its store."""

    folder: Path
    manifest: IndexManifest
    store: Store

    def close(self) -> None:
        """Let go of the store's files."""
        self.store.close()

    def __enter__(self) -> Self:
        """Return the index itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self.close()


def near_duplicate_limit(
    items: Sequence[Item], embeddings: ArrayLike, *, rng: np.random.Generator | None = None
) -> float:
    """Measure the cosine above which two images must be taken for one.

    It is the highest cosine between items of two *different* groups: whatever resembles a case more than any two
    leaves of the index resemble each other is that leaf again, re-encoded, resized or photographed twice. Items without
    a group say nothing about this and are left out, and equal files in two groups count as one image. Never above
    `SAME_IMAGE`; a millionth is added for the rounding of 32-bit products.

    With G groups, and a new one that is like them, the closest pair of all G + 1 holds the new one with probability
    2 / (G + 1): at most this share of honest cases loses a neighbour. Below `ENOUGH_GROUPS` that is more than 9 %, so
    there, as where no group is known, only cosines above `SAME_IMAGE` count as duplicates, and a copy that was
    re-encoded may pass: no limit that is sure to stop it would spare honest neighbours.

    Measured with 24 x 24 pixels as the embedding on 695 photographs of 124 apple leaves: the limit is .922, it stops
    all of 417 copies that were resized or re-encoded as JPEG of quality 40 to 85, and 1 of 571 photographs of other
    leaves loses a neighbour to it. `SAME_IMAGE` alone stops a quarter of those copies. Name the groups.

    Parameters
    ----------
    items : sequence of Item
        N items.
    embeddings : array-like of shape (N, D)
        Unit rows.
    rng : numpy.random.Generator, optional
        Draws `MEASURED_ITEMS` where there are more; seeded with 0 by default.

    Returns
    -------
    float
        A cosine.

    Examples
    --------
    >>> near_duplicate_limit([Item(id="a", label="scab", digest="1")], [[1.0, 0.0]])
    0.9999
    """
    rows = check_embeddings(embeddings, len(items))
    known = np.array([i for i, item in enumerate(items) if item.group is not None], dtype=np.intp)
    if len({items[i].group for i in known}) < ENOUGH_GROUPS:
        return SAME_IMAGE
    if len(known) > MEASURED_ITEMS:
        known = (rng or np.random.default_rng(0)).choice(known, MEASURED_ITEMS, replace=False)
    groups = np.unique([str(items[i].group) for i in known], return_inverse=True)[1]
    digests = np.unique([items[i].digest for i in known], return_inverse=True)[1]
    return min(_closest_pair(rows[known], groups, digests) + 1e-6, SAME_IMAGE)


def _closest_pair(rows: Floats, groups: np.ndarray, digests: np.ndarray) -> float:
    """Return the highest cosine of two rows that differ in group and in digest; -1 where no two do."""
    highest = -1.0
    for start in range(0, len(rows), CHUNK):
        here, rest = slice(start, start + CHUNK), slice(start, None)
        cosine = rows[here] @ rows[rest].T
        same = (groups[here, None] == groups[None, rest]) | (digests[here, None] == digests[None, rest])
        highest = max(highest, float(np.max(cosine, where=~same, initial=-1.0)))
    return highest


def build_index(
    folder: str | Path,
    items: Sequence[Item],
    embeddings: ArrayLike,
    encoder_digest: str,
    *,
    rng: np.random.Generator | None = None,
) -> Index:
    """Write an index, or replace the one that is there.

    The store goes into a folder with a new name; only then does the manifest change to name it, in one rename. A kill
    at any moment leaves the old index or none, never half of one.

    Parameters
    ----------
    folder : str or Path
        Made if need be.
    items : sequence of Item
        N labelled images, each id once.
    embeddings : array-like of shape (N, D)
        Unit rows.
    encoder_digest : str
        Of the encoder that made them.
    rng : numpy.random.Generator, optional
        See `near_duplicate_limit`.

    Returns
    -------
    Index
        Open.

    Raises
    ------
    ConfigError
        If there is nothing to index.
    """
    folder = Path(folder)
    if not items:
        raise ConfigError("There is nothing to index: no labelled image could be read.", "Check the training data.")
    rows = check_embeddings(embeddings, len(items))
    check_new(items)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = IndexManifest(
        version=VERSION,
        created_by=version_of("secondlook"),
        store=f"chroma-{uuid.uuid4().hex[:8]}",
        encoder_digest=encoder_digest,
        dim=rows.shape[1],
        n=len(items),
        labels=dict(sorted(Counter(item.label for item in items).items())),
        groups=len({item.group for item in items} - {None}),
        content=_digest_of(items, rows),
        near_duplicate=near_duplicate_limit(items, rows, rng=rng),
    )
    store = ChromaStore(folder / manifest.store)
    store.add(items, rows)
    store.close()
    partial = folder / f"{MANIFEST}.partial"
    partial.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / MANIFEST)
    for old in folder.glob("chroma-????????"):
        if old.name != manifest.store:
            shutil.rmtree(old)
    return open_index(folder, encoder_digest)


def _digest_of(items: Sequence[Item], rows: Floats) -> str:
    sha = hashlib.sha256()
    for item in items:
        sha.update(json.dumps([item.id, item.label, item.group, item.digest]).encode())
    sha.update(np.ascontiguousarray(rows).tobytes())
    return sha.hexdigest()[:16]


def index_digest(folder: str | Path) -> str | None:
    """Digest of what an index holds by its manifest, the same wherever its files lie; None where none can be read."""
    try:
        found = _read_manifest(Path(folder) / MANIFEST)
    except (ConfigError, OSError):
        return None
    held = found.model_dump_json(exclude={"store", "created_by"})
    return hashlib.sha256(held.encode()).hexdigest()[:16]


def open_index(folder: str | Path, encoder_digest: str) -> Index:
    """Open an index that `build_index` wrote, to search it with embeddings of the same encoder.

    The folder is only read: the store is searched in a private copy, which closing the index removes.

    Raises
    ------
    ConfigError
        If there is none, if it is of another version or encoder, or if part of it is missing.
    RetrievalError
        If Chroma cannot read its files.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder / MANIFEST)
    if manifest.encoder_digest != encoder_digest:
        raise ConfigError(
            f"The index in {folder} was made with encoder {manifest.encoder_digest}, this model uses {encoder_digest}.",
            "Run fit again.",
        )
    path = folder / manifest.store
    if not path.is_dir():
        raise ConfigError(f"The index in {folder} is not whole: {manifest.store} is missing.", "Run fit again.")
    store = ChromaStore(path, private_copy=True)
    if (len(store), store.dim) != (manifest.n, manifest.dim):
        held = f"{len(store)} items of {store.dim} dimensions"
        store.close()
        raise ConfigError(
            f"The index in {folder} is not whole: it holds {held}, not {manifest.n} of {manifest.dim}.",
            "Run fit again.",
        )
    return Index(folder, manifest, store)


def _read_manifest(path: Path) -> IndexManifest:
    """Read a manifest, its version first: another version may have other fields."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"There is no index in {path.parent}: {path.name} is missing.", "Run fit first.") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not readable as JSON: {error}", "Run fit again.") from error
    version = found.get("version") if isinstance(found, dict) else None
    if version != VERSION:
        raise ConfigError(
            f"{path} is of version {version}, this secondlook reads version {VERSION}.",
            "Run fit again, or use the secondlook that wrote it.",
        )
    try:
        return IndexManifest.model_validate(found)
    except ValidationError as error:
        raise ConfigError(f"{path} is not a manifest: {error}", "Run fit again.") from error
