"""What is installed and where: for bug reports, and before a first run."""

from __future__ import annotations

import os
import platform
import textwrap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from secondlook.agents.embedding_cache import default_cache_folder
from secondlook.agents.encoder import embedded_folder
from secondlook.agents.errors import ConfigError
from secondlook.agents.model_folder import EMBEDDED, folder_of, packaged_folder

if TYPE_CHECKING:
    from secondlook.agents.backbones import Backbone, Backbones
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


def examine_backbones(word: str = "") -> Backbones:
    """Look for the backbones that an encoder can be made of; no model is loaded and nothing is fetched.

    Parameters
    ----------
    word : str
        What the name of the architecture, its family or its tag holds.

    Raises
    ------
    ConfigError
        When nothing holds the word.
    """
    from secondlook.agents.backbones import list_backbones

    found = list_backbones(word)
    if not found.architectures:
        raise ConfigError(
            f"No architecture, family or tag of OpenCLIP is called like {word!r}.",
            "secondlook doctor --backbones lists all of them; other models are loaded by hub id, folder or file.",
        )
    return found


def backbone_lines(found: Backbones, *, detail: bool) -> list[str]:
    """Write backbones as lines of at most 80 columns, by family.

    Parameters
    ----------
    found : Backbones
    detail : bool
        Whether to name the tags, the text towers and the tokenizers.
    """
    lines = [_counted("OpenCLIP", found.architectures)]
    for family in dict.fromkeys(one.family for one in found.architectures):
        members = [one for one in found.architectures if one.family == family]
        lines += [
            "",
            _counted(family, members),
            f"  {'architecture':<34}{'D':>5}{'tokens':>8}{'px':>5}{'tags':>6}  needs",
        ]
        for one in members:
            mark = "*" if any(tag.cached for tag in one.tags) else " "
            row = f"  {one.name:<34}{one.dim:>5}{one.tokens:>8}{one.pixels:>5}{len(one.tags):>6}{mark} "
            lines.append((row + ", ".join(one.needs)).rstrip())
            if detail:
                lines += _details(one)
    ways = [
        "* on this machine. Others are fetched when they are first used.",
        *(
            ["? learnt with another activation (QuickGELU or GELU): take the name with or without -quickgelu."]
            if detail and not all(tag.fits for one in found.architectures for tag in one.tags)
            else []
        ),
        *(f"{name}: missing, so that what needs it cannot be loaded." for name in found.missing),
        "--encoder ARCHITECTURE --pretrained TAG takes one of these. Besides:",
        "--encoder ARCHITECTURE --pretrained FILE: a checkpoint of OpenAI's or OpenCLIP's form, or safetensors",
        "--encoder FOLDER: open_clip_config.json and its weights",
        f"--encoder hf-hub:ORG/NAME: such a folder on the hub{'; cached here:' if found.hub else ''}",
    ]
    lines += ["", *(line for way in ways for line in textwrap.wrap(way, 80, subsequent_indent="    "))]
    lines += [f"    {name}" for name in found.hub]
    return lines if detail else [*lines, "A word shows the tags: secondlook doctor --backbones siglip"]


def _details(one: Backbone) -> list[str]:
    """Name what a backbone's row counts."""
    parts = [f"text tower {one.text_tower}"] if one.text_tower else []
    if one.tokenizer and one.tokenizer != one.text_tower:
        parts.append(f"tokenizer {one.tokenizer}")
    tags = ", ".join(tag.name + "*" * tag.cached + "?" * (not tag.fits) for tag in one.tags)
    texts = [*parts, tags or "no published weights: give a file"]
    return [
        line for text in texts for line in textwrap.wrap(text, 80, initial_indent="      ", subsequent_indent="      ")
    ]


def _counted(name: str, backbones: Sequence[Backbone]) -> str:
    tags = sum(len(backbone.tags) for backbone in backbones)
    return f"{name}: {len(backbones)} architecture{'s' * (len(backbones) != 1)}, {tags} tag{'s' * (tags != 1)}"


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
