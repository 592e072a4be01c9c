"""Answers on disk, keyed by everything that decides them: what was paid for once is never paid for again."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import ValidationError

from secondlook.agents.embedding_cache import default_cache_folder
from secondlook.agents.errors import ConfigError
from secondlook.agents.prediction import Outcome, Prediction

REMEDY = "Set SECONDLOOK_CACHE to a writable folder, or delete the file: the answers in it are then asked for again."


class Flight(NamedTuple):
    """A question that is being asked."""

    landed: Future[Outcome | None]
    """What came of it; None where the one who asked gave up."""
    is_mine: bool
    """Whether the one who joined is the one to ask."""


class AnswerCache:
    """Key-value store of predictions as JSON in one SQLite file, and the questions that are on their way to it.

    An answer is committed before `add` returns, so a process that is killed loses none that it has returned; of a
    machine that loses power, the last ones may be lost. Write-ahead logging lets several processes share the file.
    Keys are digests and values are answers: no question, no picture and no password of an endpoint is in it.

    Parameters
    ----------
    folder : Path
        Made where it is missing.

    Raises
    ------
    ConfigError
        When the file cannot be used, then or later: read-only, disk full, damaged, not a cache.

    Examples
    --------
    >>> import tempfile
    >>> said = Prediction(agent="vlm", scale="stated", scores=(0.9, 0.0), reason="dark spots")
    >>> with tempfile.TemporaryDirectory() as folder, AnswerCache(Path(folder)) as cache:
    ...     kept = cache.add("a digest", said)
    ...     cache.get("a digest").reason, cache.get("another"), len(cache)
    ('dark spots', None, 1)
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "answers.sqlite"
        self._lock = threading.Lock()
        self._flights: dict[str, Future[Outcome | None]] = {}
        with self._usable():
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=30, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")

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
            raise ConfigError(f"The answer cache {self.path} cannot be used: {error}.", REMEDY) from error

    def get(self, key: str) -> Prediction | None:
        """Return the answer to a question, with what it cost when it was asked; None where it never was."""
        with self._lock, self._usable():
            row = self._db.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else self._read(key, row[0])

    def add(self, key: str, answer: Prediction) -> Prediction:
        """Keep an answer, and return the one that is kept: another process may have been faster."""
        with self._lock, self._usable():
            done = self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, answer.model_dump_json()))
        return answer if done.rowcount else self.get(key) or answer

    def _read(self, key: str, value: object) -> Prediction:
        try:
            return Prediction.model_validate_json(str(value))
        except ValidationError as error:
            raise ConfigError(f"The answer cache {self.path} is damaged: {key} is no answer.", REMEDY) from error

    def join(self, key: str) -> Flight:
        """Ask a question together with whoever in this process is asking it now.

        Whoever is to ask must `land` it, whatever happens.
        """
        with self._lock:
            if key in self._flights:
                return Flight(self._flights[key], is_mine=False)
            landed: Future[Outcome | None] = Future()
            landed.set_running_or_notify_cancel()  # one who waits and gives up must not end it for the others
            self._flights[key] = landed
            return Flight(landed, is_mine=True)

    def land(self, key: str, outcome: Outcome | None) -> None:
        """Tell all who wait for a question what came of it; None where it was given up."""
        with self._lock:
            landed = self._flights.pop(key)
        landed.set_result(outcome)

    def __len__(self) -> int:
        with self._lock, self._usable():
            return int(self._db.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
