"""Options of a chat request that not every server knows, and how one says so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from secondlook.agents.call_error import Reply
from secondlook.agents.chat_reply import read_error

OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "response_format": ("response_format", "json_schema", "structured", "guided", "grammar"),
    "max_tokens": ("max_tokens",),
    "temperature": ("temperature",),
    "seed": ("seed",),
}
"""By the words with which they are refused, in the order in which they are given up."""
RENAMED: Mapping[str, str] = {"max_tokens": "max_completion_tokens"}
"""What is sent in place of an option that is refused."""


def refused_option(reply: Reply, sent: Collection[str]) -> str | None:
    """Return the option that a reply refuses, of those that were sent; None where it refuses none.

    Examples
    --------
    >>> unknown = Reply(400, {}, b"Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    >>> refused_option(unknown, ["model", "max_tokens", "seed"])
    'max_tokens'
    """
    if reply.status not in (400, 404, 422, 501):
        return None
    text = read_error(reply.body).lower()
    named = (name for name, words in OPTIONAL.items() if name in sent and any(word in text for word in words))
    return next(named, None)


def leave_out(body: Mapping[str, Any], without: Collection[str]) -> dict[str, Any]:
    """Return a request without some options, renamed where another name is known.

    Examples
    --------
    >>> leave_out({"model": "m", "max_tokens": 9, "seed": 1}, {"max_tokens", "seed"})
    {'model': 'm', 'max_completion_tokens': 9}
    """
    kept = {name: value for name, value in body.items() if name not in without}
    return kept | {RENAMED[name]: body[name] for name in without if name in RENAMED and name in body}
