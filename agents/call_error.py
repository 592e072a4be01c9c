"""A call that brought no answer: what happened, what to do, and whether asking again may help."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from secondlook.agents.chat_reply import read_error
from secondlook.agents.cost import Cost
from secondlook.agents.errors import AgentError
from secondlook.agents.prediction import FREE

MOST_QUOTED = 300
"""Characters of a reply that an error quotes."""
LONGEST_WAIT_S = 120.0
"""Of what a server asks to wait; what is longer is cut."""
AGAIN = {408, 409, 425, 429}
"""Statuses below 500 after which asking again may help."""


class CallError(AgentError):
    """A call that brought no answer.

    Parameters
    ----------
    message : str
        Names the endpoint and the model; holds no key.
    retry_after_s : float or None
        Seconds after which asking again may help; None where it would not.
    cost : Cost
        Seconds and US dollars that it took. The caller adds the call itself.
    reached : bool
        Whether the model was asked, and would not or could not answer.
    """

    def __init__(
        self, message: str, retry_after_s: float | None = None, cost: Cost = FREE, reached: bool = False
    ) -> None:
        super().__init__(message, retry_after_s, cost, reached)
        self.retry_after_s = retry_after_s
        self.cost = cost
        self.reached = reached

    def __str__(self) -> str:
        return str(self.args[0])


class Reply(NamedTuple):
    """What a server sent, whatever it means."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Problem(NamedTuple):
    """What a reply of no use means."""

    what: str
    """Goes on from the name of the endpoint."""
    retry_after_s: float | None = None
    """Seconds after which asking again may help; None where it would not."""
    reached: bool = False
    """Whether the model was asked, and would not or could not answer."""


def meaning(reply: Reply, key: str | None, key_env: str | None, now: float) -> Problem | None:
    """Say what a status means and what to do; None for a success in JSON.

    Parameters
    ----------
    reply : Reply
    key : str or None
        Cut out of what is quoted.
    key_env : str or None
        The variable that holds it.
    now : float
        Seconds since 1970.

    Examples
    --------
    >>> meaning(Reply(503, {"retry-after": "2"}, b"Warming up."), None, None, 0.0)
    Problem(what='answered 503: Warming up', retry_after_s=2.0, reached=False)
    >>> meaning(Reply(401, {}, b""), "secret", "MY_KEY", 0.0).what
    'does not accept the key or this use of it (401); check the environment variable MY_KEY'
    """
    status = reply.status
    if status < 300:
        kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.endswith("json"):
            return None
        return Problem(f"answered with {clean(kind, key) or 'no content type'}, not JSON", 0.0)
    if status in (401, 403):
        # The text is not quoted: some servers repeat parts of the key in it.
        remedy = f"check the environment variable {key_env}" if key_env else "name the variable of a key in key_env"
        return Problem(f"does not accept the key or this use of it ({status}); {remedy}")
    text = clean(read_error(reply.body), key)
    if status < 400:
        return Problem(f"sends elsewhere ({status}); give the final address as base_url")
    if status == 404:
        return Problem(f"knows no such model or address (404: {text}); check model and base_url")
    if status == 429 and b"insufficient_quota" in reply.body:
        return Problem(f"has no credit left for this key (429: {text})")
    helps = status in AGAIN or (status >= 500 and status != 501)
    return Problem(f"answered {status}: {text}", retry_after(reply.headers, now) if helps else None)


def clean(text: str, key: str | None) -> str:
    r"""Cut the key out of a text from outside, and the text to one line of at most 300 characters.

    Examples
    --------
    >>> clean("no key sk-1 here.\n\tSorry.", "sk-1")
    'no key [key] here. Sorry'
    """
    text = text.replace(key, "[key]") if key else text
    line = "".join(c if c.isprintable() else " " for c in text[: 4 * MOST_QUOTED])
    line = " ".join(line.split()).rstrip(".")
    return line if len(line) <= MOST_QUOTED else f"{line[: MOST_QUOTED - 3]}..."


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """Read how long a server asks to wait, in seconds from now; 0 where it does not say, at most 120.

    Examples
    --------
    >>> retry_after({"retry-after": "7"}, 0.0), retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:30 GMT"}, 10.0)
    (7.0, 20.0)
    >>> retry_after({"retry-after": "soon"}, 0.0), retry_after({"retry-after": "86400"}, 0.0)
    (0.0, 120.0)
    """
    text = headers.get("retry-after", "").strip()
    try:
        wait = float(text) if text[:1].isdigit() else parsedate_to_datetime(text).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0
    return min(max(wait, 0.0), LONGEST_WAIT_S)
