"""Judges images with several vision agents, and knows when not to believe them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secondlook.agents.errors import ConfigError as ConfigError
    from secondlook.api import SecondLook as SecondLook
    from secondlook.orchestrator.verdict import Verdict as Verdict

__all__ = ["ConfigError", "SecondLook", "Verdict"]
_HOME = {"SecondLook": "api", "ConfigError": "agents.errors", "Verdict": "orchestrator.verdict"}


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that `secondlook --help` does not wait for numpy and torch.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
