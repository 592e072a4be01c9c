"""What is installed and where: for bug reports, and before a first run."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from secondlook.agents.embedding_cache import default_cache_folder
from secondlook.agents.encoder import embedded_folder

PACKAGES = (
    "secondlook",
    "torch",
    "torchvision",
    "open_clip_torch",
    "langgraph",
    "chromadb",
    "transformers",
    "pydantic",
)


def examine() -> dict[str, str]:
    """Look at this installation.

    Returns
    -------
    dict of str to str
        By the name of what was looked at.
    """
    found = {"python": platform.python_version(), "machine": f"{platform.platform()}, {os.cpu_count()} cores"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing: run `make setup`"
    found["gpu"] = _gpu()
    shipped = embedded_folder() / "open_clip_model.safetensors"
    found["leaf-tiny"] = str(shipped.parent) if shipped.is_file() else "missing: reinstall the package"
    cache = default_cache_folder()
    size = sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) if cache.is_dir() else 0
    found["embedding cache"] = f"{cache} ({size / 2**20:.1f} MiB)"
    return found


def _gpu() -> str:
    try:
        import torch
        import torchvision  # noqa: F401 - a build that does not match torch fails here
    except (ImportError, RuntimeError) as error:
        return f"unknown: torch and torchvision do not load together ({error})"
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none; the CPU is used"
