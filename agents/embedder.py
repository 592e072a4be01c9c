"""Photos to embeddings: read ahead in threads, encoded once per batch, remembered in memory and on disk."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.encoder import Encoder
from secondlook.agents.errors import ImageError
from secondlook.agents.photo import Photo

if TYPE_CHECKING:
    import torch

REMEMBERED = 8192
"""Vectors kept in memory; the oldest go first."""


class Embeddings(NamedTuple):
    """Vectors of N photos, and what went wrong with those that have none."""

    vectors: NDArray[np.float32]
    """Unit vectors of shape (N, D); rows of nan where `errors` says why, of shape (N, 1) where no photo has one."""
    errors: tuple[str | None, ...]

    @property
    def ok(self) -> NDArray[np.intp]:
        """Indices of the photos that have a vector."""
        return np.array([i for i, error in enumerate(self.errors) if error is None], dtype=np.intp)


class Embedder:
    """One encoder pass for everybody: agents, neighbour search and stranger detection all ask here.

    `prepare` and `embed` may run in different threads at the same time. Every view is taken of the photo shrunk to
    1,024 pixels, so that its vector does not depend on what was asked for before.

    Parameters
    ----------
    encoder : Encoder
        Makes the vectors.
    cache : EmbeddingCache, optional
        Keeps them on disk, by image digest, encoder digest and view.
    batch_size : int
        Images per encoder call.
    threads : int
        Threads that read, decode and preprocess ahead; by default one a core, at most 16.
    thumbnails : bool
        Whether `prepare` keeps a small picture of every photo it decodes, for reports; needs a cache.
    """

    def __init__(
        self,
        encoder: Encoder,
        cache: EmbeddingCache | None = None,
        *,
        batch_size: int = 32,
        threads: int | None = None,
        thumbnails: bool = False,
    ) -> None:
        self.encoder = encoder
        self.cache = cache
        self.batch_size = batch_size
        self.encoded = 0
        """Images the encoder was run on so far: nothing when every embedding was cached."""
        self._thumbnails = thumbnails and cache is not None
        self._pool = ThreadPoolExecutor(threads or min(16, os.cpu_count() or 1), thread_name_prefix="decode")
        self._turn = threading.Lock()
        self._memory_lock = threading.Lock()
        self._memory: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._ready: dict[str, torch.Tensor] = {}

    def _key(self, digest: str, view: str) -> str:
        return f"{digest}:{self.encoder.digest}:{view}"

    def prepare(self, photos: Sequence[Photo]) -> None:
        """Read, decode and preprocess what is not embedded yet; meant for a thread ahead of `embed`.

        Photos that cannot be read are left for `embed` to report.
        """
        digests = self._pool.map(_digest, photos)
        distinct = {self._key(d, "whole"): photo for d, photo in zip(digests, photos, strict=True) if d}
        known = self._recall(list(distinct))
        missing = [photo for key, photo in distinct.items() if key not in known]
        pictures = dict(filter(None, self._pool.map(self._prepare_one, missing)))
        if self._thumbnails and self.cache is not None:
            self.cache.add_thumbnails(pictures)

    def _prepare_one(self, photo: Photo) -> tuple[str, bytes] | None:
        try:
            self._ready[self._key(photo.digest, "whole")] = self._preprocessed(photo, "whole")
            return (photo.digest, photo.thumbnail()) if self._thumbnails else None
        except ImageError:
            return None

    def _preprocessed(self, photo: Photo, view: str) -> torch.Tensor:
        photo.shrink()
        return self.encoder.preprocess(photo.view(view))

    def _recall(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        with self._memory_lock:
            known = {key: self._memory[key] for key in keys if key in self._memory}
        if self.cache is not None and (missing := [key for key in keys if key not in known]):
            found = self.cache.embeddings(missing)
            self._remember(found)
            known |= found
        return known

    def _remember(self, rows: dict[str, NDArray[np.float32]]) -> None:
        with self._memory_lock:
            self._memory.update(rows)
            while len(self._memory) > REMEMBERED:
                self._memory.popitem(last=False)

    def embed(self, photos: Sequence[Photo], view: str = "whole") -> Embeddings:
        """Embed a batch.

        Parameters
        ----------
        photos : sequence of Photo
            N photos.
        view : str
            Which crop of them, by its name in `secondlook.agents.crop`.

        Returns
        -------
        Embeddings
            In the order of the photos.
        """
        with self._turn:
            return self._embed(photos, view)

    def _embed(self, photos: Sequence[Photo], view: str) -> Embeddings:
        errors: list[str | None] = [None] * len(photos)
        keys: list[str | None] = [None] * len(photos)
        for i, photo in enumerate(photos):
            try:
                keys[i] = self._key(photo.digest, view)
            except ImageError as error:
                errors[i] = str(error)
        known = self._recall([key for key in keys if key is not None])
        waiting: dict[str, int] = {}
        for i, key in enumerate(keys):
            if key is not None and key not in known:
                waiting.setdefault(key, i)
        failed: dict[str, str] = {}
        inputs = self._inputs(photos, view, waiting, failed)
        known |= self._encode(inputs)
        for key in known:  # prepared while a batch before this one was embedding the same image
            self._ready.pop(key, None)
        vectors = np.full((len(photos), self._width(known)), np.nan, dtype=np.float32)
        for i, key in enumerate(keys):
            if key is not None and key in known:
                vectors[i] = known[key]
            elif key is not None:
                errors[i] = failed[key]
        return Embeddings(vectors, tuple(errors))

    def _width(self, known: dict[str, NDArray[np.float32]]) -> int:
        return len(next(iter(known.values()))) if known else 1

    def _inputs(
        self, photos: Sequence[Photo], view: str, waiting: dict[str, int], failed: dict[str, str]
    ) -> dict[str, torch.Tensor]:
        def one(item: tuple[str, int]) -> tuple[str, torch.Tensor | str]:
            key, i = item
            ready = self._ready.pop(key, None)
            if ready is not None:
                return key, ready
            try:
                return key, self._preprocessed(photos[i], view)
            except ImageError as error:
                return key, str(error)

        inputs: dict[str, torch.Tensor] = {}
        for key, value in self._pool.map(one, waiting.items()):
            if isinstance(value, str):
                failed[key] = value
            else:
                inputs[key] = value
        return inputs

    def _encode(self, inputs: dict[str, torch.Tensor]) -> dict[str, NDArray[np.float32]]:
        rows: dict[str, NDArray[np.float32]] = {}
        keys = list(inputs)
        for start in range(0, len(keys), self.batch_size):
            part = keys[start : start + self.batch_size]
            rows.update(zip(part, self.encoder.encode([inputs[key] for key in part]), strict=True))
        self.encoded += len(rows)
        self._remember(rows)
        if self.cache is not None:
            self.cache.add_embeddings(rows)
        return rows

    def end_threads(self) -> None:
        """End the decoding threads, and leave the cache to those who share it."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """End the decoding threads and close the cache."""
        self.end_threads()
        if self.cache is not None:
            self.cache.close()


def _digest(photo: Photo) -> str:
    try:
        return photo.digest
    except ImageError:
        return ""
