"""Embeddings and thumbnails on disk, keyed by digest: what was encoded once is never encoded again."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.errors import ConfigError

# SQLite's default limit of host parameters is far above this; small chunks keep statements cached.
CHUNK = 400


def default_cache_folder() -> Path:
    """`$SECONDLOOK_CACHE`, else `secondlook` in the user's cache folder."""
    chosen = os.environ.get("SECONDLOOK_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secondlook"


class EmbeddingCache:
    """Key-value store of float32 vectors and small JPEG pictures in one SQLite file.

    Write-ahead logging lets several processes share it, and a killed process loses at most its last batch.

    Parameters
    ----------
    folder : Path
        Made where it is missing.

    Raises
    ------
    ConfigError
        When the folder cannot be written, then or later (read-only, disk full, not a cache).
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "embeddings.sqlite"
        self._lock = threading.Lock()
        with self._usable():
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=30, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            for table in ("embeddings", "thumbnails"):
                self._db.execute(f"CREATE TABLE IF NOT EXISTS {table} (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")

    @classmethod
    def default(cls) -> Self:
        """Open the cache of this user."""
        return cls(default_cache_folder())

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.DatabaseError) as error:
            if isinstance(error, sqlite3.ProgrammingError):
                raise  # used after close: a bug, not the user's
            raise ConfigError(
                f"The embedding cache {self.path} cannot be used: {error}.",
                "Set SECONDLOOK_CACHE to a writable folder, or run with --no-cache.",
            ) from error

    def _get(self, table: str, keys: Iterable[str]) -> dict[str, bytes]:
        wanted = list(dict.fromkeys(keys))
        found: dict[str, bytes] = {}
        with self._lock, self._usable():
            for start in range(0, len(wanted), CHUNK):
                part = wanted[start : start + CHUNK]
                marks = ",".join("?" * len(part))
                found.update(self._db.execute(f"SELECT key, value FROM {table} WHERE key IN ({marks})", part))
        return found

    def _put(self, table: str, rows: Mapping[str, bytes]) -> None:
        if not rows:
            return
        with self._lock, self._usable():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(f"INSERT OR IGNORE INTO {table} VALUES (?, ?)", rows.items())
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def embeddings(self, keys: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """Return the vectors known for some keys; unknown keys are absent."""
        return {key: np.frombuffer(value, dtype="<f4") for key, value in self._get("embeddings", keys).items()}

    def add_embeddings(self, rows: Mapping[str, NDArray[np.float32]]) -> None:
        """Add vectors; a key that is there already keeps its vector."""
        self._put("embeddings", {key: row.astype("<f4").tobytes() for key, row in rows.items()})

    def thumbnails(self, digests: Iterable[str]) -> dict[str, bytes]:
        """Return the JPEG thumbnails known for some image digests."""
        return self._get("thumbnails", digests)

    def add_thumbnails(self, rows: Mapping[str, bytes]) -> None:
        """Add thumbnails by image digest."""
        self._put("thumbnails", rows)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
