"""Where chat models answer, how they may be asked, and what that costs."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, model_validator

from secondlook.agents.case import Frozen
from secondlook.agents.errors import ConfigError

PIXELS_PER_TOKEN = 750
"""Rough, and about what servers count."""
CHARACTERS_PER_TOKEN = 3
"""Rough, on the high side for English."""

Structured = Literal["auto", "json_schema", "none"]
"""How the form of an answer is asked for.

- ``auto``: as a JSON schema, until the server refuses it; then in the words of the prompt only
- ``json_schema``: as a JSON schema always
- ``none``: in the words of the prompt only
"""
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)] | None

# Capitals only: a key that was put here by mistake would be quoted as the name of a variable that is not set.
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")


class Endpoint(Frozen):
    """Where chat models answer, and how they may be asked. The key itself is never part of it.

    Examples
    --------
    >>> Endpoint(base_url="http://127.0.0.1:8000/v1/").base_url
    'http://127.0.0.1:8000/v1'
    """

    # What stands where it does not belong may be a key.
    model_config = ConfigDict(hide_input_in_errors=True)

    base_url: str
    """Address up to and with ``/v1``."""
    key_env: str | None = None
    """Name of the environment variable that holds the key; None where none is asked for."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    """Calls at the same time, of all agents of this endpoint together."""
    per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Calls per second, of all agents together; None is no limit."""
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    """Longest time for one call, from the first byte sent to the last received."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 4
    """How often a question is asked at most."""
    structured: Structured = "auto"
    usd_per_million_input: Price = None
    """US dollars for a million tokens read; None where unknown, and counted as 0."""
    usd_per_million_output: Price = None
    """US dollars for a million tokens written."""

    @model_validator(mode="before")
    @classmethod
    def _without_slash(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("base_url"), str):
            return {**values, "base_url": values["base_url"].strip().rstrip("/")}
        return values

    @model_validator(mode="after")
    def _an_address(self) -> Self:
        parts = urlsplit(self.base_url)
        if parts.username or parts.password or parts.query or parts.fragment:
            # The address is not quoted: what stands in such places is often a key.
            raise ConfigError(
                "base_url: user names, passwords and queries do not belong into an address.",
                "Put the key into an environment variable and name it in key_env.",
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"base_url: {self.base_url[:200]!r} is no address.", "Give one such as https://api.openai.com/v1."
            )
        if self.key_env is not None and not _VARIABLE.fullmatch(self.key_env):
            raise ConfigError(
                "key_env: that is no name of an environment variable in capital letters.",
                "Give the variable's name, such as OPENAI_API_KEY, never the key itself.",
            )
        return self

    def key(self) -> str | None:
        """Read the key from the environment; None where the endpoint asks for none.

        Raises
        ------
        ConfigError
            When the variable is not set, or holds what cannot be a key.
        """
        if self.key_env is None:
            return None
        found = os.environ.get(self.key_env, "").strip()
        if not found:
            raise ConfigError(
                f"The environment variable {self.key_env} is not set.", f"Set it to the key for {self.base_url}."
            )
        if not (found.isascii() and found.isprintable()) or " " in found:
            raise ConfigError(
                f"The environment variable {self.key_env} holds blanks or characters that no key has.",
                "Set it to the key alone.",
            )
        return found

    def usd(self, input_tokens: float, output_tokens: float) -> float:
        """Price of so many tokens, in US dollars; 0 where the prices are unknown."""
        read, written = self.usd_per_million_input or 0.0, self.usd_per_million_output or 0.0
        return (input_tokens * read + output_tokens * written) / 1e6


def rough_tokens(characters: int, pictures: int = 0, side: int = 1024) -> int:
    """Reckon the tokens of a text, and of pictures whose sides are at most `side` pixels."""
    return characters // CHARACTERS_PER_TOKEN + pictures * side * side // PIXELS_PER_TOKEN
