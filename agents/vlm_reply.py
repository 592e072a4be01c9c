"""From the text of a language model to what it says: read strictly, or refused in a sentence.

An answer is one JSON object, ``{"label": ..., "confidence": ..., "reason": ...}``. Around it may stand anything that
holds no brace, such as a sentence or the marks of a code block; thinking between ``<think>`` and ``</think>`` is left
out first. Nothing is repaired: a label is one of the task's, or one of the words it declares for it, or there is none.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple, TypeVar

from secondlook.agents.case import Task
from secondlook.agents.errors import AgentError
from secondlook.agents.prediction import MOST_REASON, Prediction, stated
from secondlook.prompts import data

MOST_TEXT = 100_000
"""Characters of a reply that is read at all."""
MOST_QUOTED = 80
"""Characters of a reply that an error quotes."""
NEXT = {None: False, "accept": False, "look again": True}
"""What a judge may ask for, and whether it is another look."""

_PERCENT = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*")
# Objects stay pairs, so that a key that stands twice can be seen.
_DECODER = json.JSONDecoder(object_pairs_hook=tuple)

Pairs = tuple[tuple[str, object], ...]
T = TypeVar("T")


class _Said(NamedTuple):
    label: int
    confidence: float | None
    reason: str


def read_stated(text: str, task: Task, agent: str, look: int, prompt: str = "") -> Prediction:
    """Read a label, how sure the model says it is, and why.

    Parameters
    ----------
    text : str
        The reply. It may hold the object several times, if it says the same each time.
    task : Task
        Its labels and aliases are the only words accepted; white space around them is not counted.
    agent : str
        Who said it.
    look : int
    prompt : str
        SHA-256 of the prompt files it was asked with.

    Returns
    -------
    Prediction
        Of scale ``stated``. A confidence is a number from 0 to 1, or a text that holds such a number or a percentage
        with its sign; absent or null, the answer is a label only. Of the reason, the first `MOST_REASON` printable
        characters are kept; keys beside the three are not read.

    Raises
    ------
    AgentError
        For every other text: none, several or broken objects, objects that say different things, a key that stands
        twice, a foreign label, a confidence that is none (95 without a percent sign may mean anything).

    Examples
    --------
    >>> task = Task(labels=("cat", "dog"), aliases={"dog": ("Dog", "hound")})
    >>> found = read_stated('I see {"label": "hound", "confidence": "90%", "reason": "Long ears."}', task, "eye", 1)
    >>> found.scores, found.reason
    ((0.0, 0.9), 'Long ears.')
    >>> read_stated('{"label": "CAT"}', task, "eye", 1)
    Traceback (most recent call last):
    secondlook.agents.errors.AgentError: The label "CAT" is none of the task's labels and aliases.
    """
    said = _agreed([_said(found, task) for found in _objects(text)])
    prediction = stated(agent, look, said.label, said.confidence, len(task.labels))
    return prediction.model_copy(update={"reason": said.reason, "prompt": prompt})


def read_judgement(text: str, task: Task, agent: str, look: int, prompt: str = "") -> Prediction:
    """Read the answer of a judge: as `read_stated` does, and what it wants ``next``.

    Returns
    -------
    Prediction
        Its `again` is true for ``"next": "look again"``, false for ``"accept"``, null and where it is absent.

    Raises
    ------
    AgentError
        As `read_stated` does, and for any other `next`.

    Examples
    --------
    >>> task = Task(labels=("cat", "dog"))
    >>> read_judgement('{"label": "cat", "confidence": 0.4, "next": "look again"}', task, "judge", 1).again
    True
    """
    prediction = read_stated(text, task, agent, look, prompt)
    return prediction.model_copy(update={"again": _agreed([_again(found) for found in _objects(text)])})


def _spoken(text: str) -> str:
    """Leave out what was thought; a first ``</think>`` alone ends thinking that the chat template began."""
    if len(text) > MOST_TEXT:
        raise AgentError(f"The reply holds {len(text):,} characters; at most {MOST_TEXT:,} are read.")
    *thoughts, spoken = text.split("</think>")
    if "<think>" in spoken:
        raise AgentError("The reply ends before its thinking does.")
    before = [part.partition("<think>") for part in thoughts]
    kept = [head for i, (head, mark, _) in enumerate(before) if mark or i > 0]
    # A line break is not allowed within JSON: what stood on both sides of a thought cannot grow together.
    return "\n".join([*kept, spoken])


def _objects(text: str) -> list[Pairs]:
    """Return every JSON object of a reply, as pairs; raise where there is none, or a brace outside of one."""
    spoken = _spoken(text)
    quoted = data(spoken.strip(), MOST_QUOTED)
    if not spoken.strip():
        raise AgentError("The reply is empty.")
    found: list[Pairs] = []
    outside, at = "", 0
    while (start := spoken.find("{", at)) >= 0:
        outside += spoken[at:start]
        try:
            pairs, at = _DECODER.raw_decode(spoken, start)
        except (ValueError, RecursionError) as error:
            what = "too deeply nested" if isinstance(error, RecursionError) else "broken or cut short"
            raise AgentError(f"The JSON object of the reply is {what}: {quoted}.") from error
        found.append(pairs)
    # What lies within an object that is broken is not the answer; a brace left over shows that there was one.
    if "}" in outside + spoken[at:]:
        raise AgentError(f"The reply holds a brace that belongs to no JSON object: {quoted}.")
    if not found:
        raise AgentError(f"The reply holds no JSON object: {quoted}.")
    return found


def _agreed(said: list[T]) -> T:
    if any(other != said[0] for other in said[1:]):
        raise AgentError(f"The reply holds {len(said)} JSON objects that say different things.")
    return said[0]


def _said(pairs: Pairs, task: Task) -> _Said:
    return _Said(
        _label(_value(pairs, "label"), task), _confidence(_value(pairs, "confidence")), _reason(_value(pairs, "reason"))
    )


def _value(pairs: Pairs, key: str) -> object:
    """Return the value of a key, None where it is absent."""
    values = [value for name, value in pairs if name == key]
    if len(values) > 1:
        raise AgentError(f"The reply gives its {key} {len(values)} times.")
    return values[0] if values else None


def _label(value: object, task: Task) -> int:
    if value is None:
        raise AgentError("The reply names no label.")
    words = {word: k for k, label in enumerate(task.labels) for word in (label, *task.aliases.get(label, ()))}
    if isinstance(value, str):
        place = words.get(value, words.get(value.strip()))
        if place is not None:
            return place
    raise AgentError(f"The label {_shown(value)} is none of the task's labels and aliases.")


def _confidence(value: object) -> float | None:
    number = value
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)):
        number = float(match[1]) / (100 if match[2] else 1)
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= 1:
        raise AgentError(f'The confidence {_shown(value)} is neither from 0 to 1 nor a percentage such as "95%".')
    return float(number)


def _reason(value: object) -> str:
    """Keep what is printable, on one line; a reason that is no text is none."""
    if not isinstance(value, str):
        return ""
    plain = "".join(c for c in " ".join(value.split()) if c.isprintable())
    return plain[:MOST_REASON]


def _again(pairs: Pairs) -> bool:
    value = _value(pairs, "next")
    if value is None or isinstance(value, str):
        wanted = NEXT.get(value)
        if wanted is not None:
            return wanted
    raise AgentError(f'The next step {_shown(value)} is neither "accept" nor "look again".')


def _shown(value: object) -> str:
    """Quote a value of JSON; one that holds others, perhaps very deep, by its kind."""
    if isinstance(value, str):
        return data(value, MOST_QUOTED)
    if isinstance(value, tuple):
        return "(an object)"
    return "(a list)" if isinstance(value, list) else json.dumps(value)[:MOST_QUOTED]
