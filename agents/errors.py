"""The families of errors: yours to fix, the world's, and (everything else) bugs, which propagate."""

from __future__ import annotations


class SecondlookError(Exception):
    """Any error this package raises on purpose."""


class ConfigError(SecondlookError):
    """Something the user can put right.

    Parameters
    ----------
    what : str
        What is wrong, and where: names the file, the column, the option.
    remedy : str
        What to do about it.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what, remedy)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n{self.remedy}" if self.remedy else self.what


class NotFittedError(ConfigError):
    """A fitted part was used before it was fitted."""


class AgentError(SecondlookError):
    """An agent could not answer for a case; becomes a `Failure` beside the other outcomes."""


class ImageError(AgentError):
    """An image that cannot be read as one picture: empty, truncated, animated, too large, not an image."""


class RetrievalError(SecondlookError):
    """The evidence store could not answer."""
