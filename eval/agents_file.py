"""The language models of a panel, from a YAML file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from secondlook.agents.errors import ConfigError
from secondlook.agents.vlm_question import Wording
from secondlook.eval.yaml_file import read_yaml
from secondlook.orchestrator.language import AgentSpec, Language

FORM = "Write `agents:` with a list, each with a kind (openai or qwen), a name and a model; see docs/vlm.md."
PATHS = ("model", "adapter")
"""Fields that name a folder where there is one of that name beside the file."""


def read_agents(path: Path) -> Language:
    """Read which language models look, and which one judges.

    Parameters
    ----------
    path : Path
        YAML with `agents`, a list of `OpenAISpec` and `QwenSpec`, and optionally `judge`, a `JudgeSpec`, and
        `endpoints`, which these may name. Files that it names are looked for beside it.

    Raises
    ------
    ConfigError
        When it is missing, is not such YAML, or a value is missing, misspelt or out of range: names it.
    """
    found = read_yaml(path, "the agents", FORM)
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no `agents:`.", FORM)
    placed, agents = dict(found), found.get("agents") or []
    endpoints = placed.pop("endpoints", None) or {}

    def place(spec: Any) -> Any:
        return _placed(spec, path, endpoints)

    placed["agents"] = [*map(place, agents)] if isinstance(agents, list) else agents
    if "judge" in found:
        placed["judge"] = place(found["judge"])
    try:
        return Language.model_validate(placed)
    except ValidationError as error:
        raise _named(path, error) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.what}", error.remedy) from None


def _placed(spec: Any, path: Path, endpoints: Any) -> Any:
    """Put in the endpoint that is named, and whole paths for the files and folders that lie beside the file."""
    if not isinstance(spec, dict):
        return spec
    folder = path.parent
    if isinstance(name := spec.get("endpoint"), str):
        if not isinstance(endpoints, dict) or name not in endpoints:
            near = difflib.get_close_matches(name, map(str, endpoints), n=1) if isinstance(endpoints, dict) else []
            hint = f"Did you mean {near[0]!r}?" if near else "Describe it under `endpoints:`."
            raise ConfigError(f"{path}: there is no endpoint {name[:60]!r}.", hint)
        spec = {**spec, "endpoint": endpoints[name]}
    placed = {key: _beside(value, folder) if key in PATHS else value for key, value in spec.items()}
    if isinstance(wording := spec.get("wording"), dict):
        placed["wording"] = {key: _beside(value, folder) for key, value in wording.items()}
    return placed


def _beside(name: Any, folder: Path) -> Any:
    if not isinstance(name, str) or not name or "\0" in name:
        return name
    beside = folder / name
    return str(beside.resolve()) if beside.exists() else name


def _named(path: Path, error: ValidationError) -> ConfigError:
    """Say which value is wrong, and for a misspelt key which one is nearest."""
    errors = error.errors(include_url=False, include_context=False)
    # A key that is misspelt is the reason why another one is missing.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    place = [part for part in first["loc"] if part not in ("openai", "qwen")]
    where = ".".join(map(str, place))
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), sorted(_keys()), n=1)
        hint = f"Did you mean {near[0]!r}?" if near else FORM
        return ConfigError(f"{path}: {where} stands for nothing.", hint)
    # The value itself is not repeated: somebody may have put a key where its name belongs.
    return ConfigError(f"{path}: {where}: {first['msg']}.", FORM)


def _keys() -> set[str]:
    """Every key that such a file can hold."""
    seen: set[str] = set()
    waiting: list[type[BaseModel]] = [Language, Wording, *get_args(get_args(AgentSpec)[0])]
    known = set(waiting)
    while waiting:
        for name, field in waiting.pop().model_fields.items():
            seen.add(name)
            for part in (field.annotation, *get_args(field.annotation)):
                if isinstance(part, type) and issubclass(part, BaseModel) and part not in known:
                    known.add(part)
                    waiting.append(part)
    return seen
