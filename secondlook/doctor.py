"""What is installed and where: for bug reports, and before a first run."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from secondlook.agents.embedding_cache import default_cache_folder
from secondlook.agents.encoder import embedded_folder
from secondlook.agents.errors import ConfigError
from secondlook.agents.model_folder import EMBEDDED, folder_of, packaged_folder

if TYPE_CHECKING:
    from secondlook.agents.endpoint import Endpoint

PACKAGES = (
    "secondlook",
    "torch",
    "torchvision",
    "open_clip_torch",
    "langgraph",
    "chromadb",
    "transformers",
    "peft",
    "openai",
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
    reads = packaged_folder() / "model.safetensors"
    found[EMBEDDED] = str(reads.parent) if reads.is_file() else "missing: reinstall the package"
    cache = default_cache_folder()
    size = sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) if cache.is_dir() else 0
    found["embedding cache"] = f"{cache} ({size / 2**20:.1f} MiB)"
    return found


def examine_agents(file: Path) -> dict[str, str]:
    """Look at the language models of an agents file: is each folder there, does each endpoint answer.

    Nothing is asked of a model, so nothing is paid.

    Parameters
    ----------
    file : Path
        See `secondlook.eval.agents_file.read_agents`.

    Returns
    -------
    dict of str to str
        By the name of the agent.
    """
    from secondlook.agents.qwen_vl import QwenSpec
    from secondlook.eval.agents_file import read_agents

    language = read_agents(file)
    found: dict[str, str] = {}
    for spec in (*language.agents, *([language.judge] if language.judge else [])):
        try:
            if isinstance(spec, QwenSpec):
                found[spec.name] = f"{spec.model}: {folder_of(spec.model)}"
            else:
                found[spec.name] = f"{spec.model}: {spec.endpoint.base_url} {_answer(spec.endpoint)}"
        except ConfigError as error:
            found[spec.name] = f"{spec.model}: {' '.join(str(error).split())}"
    return found


def _answer(endpoint: Endpoint) -> str:
    """Ask an endpoint for its list of models, which costs nothing."""
    import httpx2

    key = endpoint.key()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        status = httpx2.get(f"{endpoint.base_url}/models", headers=headers, timeout=10).status_code
    except httpx2.HTTPError as error:
        return f"does not answer ({type(error).__name__}): check the address, and whether the server runs"
    if status in (401, 403):
        return f"refuses the key ({status}): check {endpoint.key_env or 'whether it needs one, and set key_env'}"
    return "answers" if status < 400 else f"answers, with {status} to a question for its models"


def _gpu() -> str:
    try:
        import torch
        import torchvision  # noqa: F401 - a build that does not match torch fails here
    except (ImportError, RuntimeError) as error:
        return f"unknown: torch and torchvision do not load together ({error})"
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none; the CPU is used"
