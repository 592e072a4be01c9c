"""The folder of a language model: found or fetched, and what identifies its files."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

from secondlook.agents.errors import ConfigError

EMBEDDED = "leaf-tiny-vl"
"""The one that ships with the package."""
FILES = ("*.json", "*.jinja", "*.txt", "*.safetensors")
"""What of a published model is fetched, and what its digest is taken of: never code, never a pickle."""


def packaged_folder() -> Path:
    """Return the folder of the model that ships with the package."""
    return Path(str(files("secondlook") / "assets" / EMBEDDED))


def folder_of(model: str) -> Path:
    """Return the folder of a model: itself, the packaged one's, or that of a hub id, which is fetched where needed.

    Raises
    ------
    ConfigError
        When it is neither a folder with a config.json nor a hub id that can be had.
    """
    path = packaged_folder() if model == EMBEDDED else Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"{path} holds no config.json.", "Give a folder as transformers saves it, or a hub id.")
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=list(FILES)))
    except (OSError, HFValidationError) as error:  # what the hub and the network raise are OSErrors
        raise ConfigError(
            f"The model {model!r} is no folder here and cannot be fetched: {error}", "Check the path or the hub id."
        ) from error


def digest_of_folder(folder: Path) -> str:
    """SHA-256 over names and contents of a model's files, as 16 hexadecimal digits; taken once while they stay."""
    paths = sorted(path for pattern in FILES for path in folder.glob(pattern))
    stats = [path.stat() for path in paths]
    return _digest(tuple((str(p), s.st_size, s.st_mtime_ns) for p, s in zip(paths, stats, strict=True)))


@cache
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    sha = hashlib.sha256(b"model folder 1;")
    for name, size, _ in files:
        with Path(name).open("rb") as file:
            sha.update(f"{Path(name).name} {size} ".encode() + hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()[:16]
