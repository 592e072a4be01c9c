"""Small pictures for reports: from the cache where an image was seen, else from its file."""

from __future__ import annotations

from pathlib import Path

from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.errors import ConfigError, ImageError
from secondlook.agents.photo import Photo


class Pictures:
    """Callable: the digest of a case, or the path of a neighbour, to JPEG bytes; None where there is no picture.

    Parameters
    ----------
    cache : EmbeddingCache
        Holds the thumbnails made while the images were decoded.
    """

    def __init__(self, cache: EmbeddingCache) -> None:
        self._cache = cache

    def __call__(self, key: str) -> bytes | None:
        """Return the picture, or None."""
        kept = self._cache.thumbnails([key]).get(key)
        if kept is not None or not Path(key).is_file():
            return kept
        try:
            return Photo.of(Path(key)).thumbnail()
        except (ImageError, ConfigError):
            return None
