"""Log-probabilities of the letters that stand for labels, from the most probable tokens of an answer."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence

from secondlook.agents.errors import AgentError

LEAST_MASS = 0.5
"""Probability that the letters together must have: below it the model was about to say something else."""
LEAST = 1e-9
"""Smallest probability that a letter is given."""
# Tokenizers write the blank before a word as a space, or as a sign of their own.
_SPELLING = re.compile(r"[\s\u0120\u2581\"'(*]*([A-Z])[\s.):\"'*,]*")


def letter_of(token: str) -> str | None:
    """Return the capital letter that a token spells, whatever blanks and marks surround it.

    Examples
    --------
    >>> [letter_of(token) for token in ("A", " A", "A.", "(B)", "a", "An", "")]
    ['A', 'A', 'A', 'B', None, None, None]
    """
    found = _SPELLING.fullmatch(token)
    return found[1] if found else None


def letter_logprobs(tokens: Sequence[tuple[str, float]], n_letters: int) -> tuple[float, ...]:
    """Add up the spellings of each letter among the most probable tokens.

    A letter's probability is the sum over the tokens that spell it. One that none spells lies below all that were
    reported, and those that are missing share what the reported tokens leave over: each is given the smaller of the
    least reported probability and an equal part of the rest, and never less than 1e-9.

    Parameters
    ----------
    tokens : sequence of (str, float)
        The most probable first tokens, each with the natural logarithm of its probability.
    n_letters : int
        K; the letters are the first K capitals.

    Returns
    -------
    tuple of float
        K log-probabilities. They need not add up to 1: a softmax makes them do so.

    Raises
    ------
    AgentError
        Where there is no token, a log-probability is no such number, or the letters have less than half of the mass.

    Examples
    --------
    >>> import math
    >>> found = letter_logprobs([("A", math.log(0.5)), (" A", math.log(0.25)), ("B", math.log(0.125))], 3)
    >>> [round(math.exp(value), 4) for value in found]
    [0.75, 0.125, 0.125]
    """
    if not tokens:
        raise AgentError("The server gave no log-probabilities; with it, use another belief, such as stated.")
    if not all(value <= 1e-3 for _, value in tokens):
        raise AgentError(f"The server gave log-probabilities that are none: {max(v for _, v in tokens):g}.")
    letters = string.ascii_uppercase[:n_letters]
    mass = dict.fromkeys(letters, 0.0)
    for token, value in tokens:
        letter = letter_of(token)
        if letter in mass:
            mass[letter] += math.exp(value)
    if (total := sum(mass.values())) < LEAST_MASS:
        best = max(tokens, key=lambda each: each[1])[0]
        raise AgentError(f"Letters have only {total:.2f} of the probability; the likeliest beginning is {best[:20]!r}.")
    missing = sum(not value for value in mass.values())
    rest = max(0.0, 1 - sum(math.exp(value) for _, value in tokens))
    bound = min(math.exp(min(value for _, value in tokens)), rest / missing) if missing else 0.0
    return tuple(math.log(max(mass[letter] or bound, LEAST)) for letter in letters)
