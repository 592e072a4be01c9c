"""What a chat endpoint sends back, read from its bytes and checked."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from secondlook.agents.cost import Cost


class Token(NamedTuple):
    """A token of an answer, and what could have stood in its place."""

    text: str
    logprob: float
    """Natural logarithm of its probability."""
    alternatives: tuple[tuple[str, float], ...] = ()
    """The most probable tokens at its place with their log-probabilities, itself mostly among them."""


class Said(NamedTuple):
    """What a model answered, and what that took."""

    text: str
    logprobs: tuple[Token, ...] = ()
    """Of the answer's tokens; empty where they were not asked for, or not given."""
    input_tokens: int = 0
    """As the server counted; 0 where it did not."""
    output_tokens: int = 0
    usd: float = 0.0
    """By the endpoint's prices; 0 where these are unknown."""
    seconds: float = 0.0
    calls: int = 1
    """Requests it took: more than one where the server refused an option, which was then left out."""
    cut: bool = False
    """Whether the answer stopped at the limit of tokens."""

    @property
    def cost(self) -> Cost:
        """Seconds and US dollars; the caller knows whether its calls are of a model that sees."""
        return Cost(seconds=self.seconds, usd=self.usd)


class Decided(NamedTuple):
    """Probabilities of the options of each question, and what they took."""

    probabilities: dict[str, dict[str, float]]
    """Option to probability, by the name of the question."""
    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    seconds: float = 0.0

    @property
    def cost(self) -> Cost:
        """Seconds and US dollars."""
        return Cost(seconds=self.seconds, usd=self.usd)


class _Part(BaseModel):
    """Part of a reply: fields that are not needed are left unread, for every server adds some of its own."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Top(_Part):
    token: str
    logprob: float


class _Token(_Top):
    top_logprobs: tuple[_Top, ...] | None = None


class _Logprobs(_Part):
    content: tuple[_Token, ...] | None = None


class _Message(_Part):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Part):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(_Part):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Completion(_Part):
    choices: tuple[_Choice, ...] | None = None
    usage: _Usage | None = None


class _Answer(_Part):
    probabilities: dict[str, float]


class _Decision(_Part):
    answers: dict[str, _Answer]
    usage: _Usage | None = None


class _ErrorText(_Part):
    message: str


class _Error(_Part):
    error: _ErrorText


class Completion(NamedTuple):
    """A chat completion: its first choice."""

    text: str
    refusal: str
    """Why the model would not answer; empty where it did."""
    cut: bool
    tokens: tuple[Token, ...]
    usage: tuple[int, int] | None
    """Tokens in and out; None where the server did not count."""
    empty: bool
    """Whether there was no choice, or one without text."""


def read_completion(body: bytes) -> Completion | None:
    """Read a chat completion; None where the bytes are none.

    Examples
    --------
    >>> read_completion(b'{"choices": [{"message": {"content": "B"}}]}').text
    'B'
    >>> read_completion(b'{"choices": [{"mess') is None
    True
    """
    try:
        found = _Completion.model_validate_json(body)
    except ValidationError:
        return None
    usage = _usage(found.usage)
    if not found.choices:
        return None if found.choices is None else Completion("", "", False, (), usage, True)
    choice = found.choices[0]
    refusal = choice.message.refusal or ("the server's content filter" * (choice.finish_reason == "content_filter"))
    text = choice.message.content or ""
    listed = (choice.logprobs.content if choice.logprobs else None) or ()
    tokens = tuple(Token(t.token, t.logprob, tuple((a.token, a.logprob) for a in t.top_logprobs or ())) for t in listed)
    return Completion(text, refusal, choice.finish_reason == "length", tokens, usage, not text.strip())


def read_decision(body: bytes) -> tuple[dict[str, dict[str, float]], tuple[int, int] | None] | None:
    """Read the answers of `/v1/systemone`: option probabilities by question, and the tokens in and out."""
    try:
        found = _Decision.model_validate_json(body)
    except ValidationError:
        return None
    return {name: answer.probabilities for name, answer in found.answers.items()}, _usage(found.usage)


def read_error(body: bytes) -> str:
    """Return the message of an error reply; its whole text where it has none.

    Examples
    --------
    >>> read_error(b'{"error": {"message": "no such model", "code": 7}}'), read_error(b"Bad Gateway")
    ('no such model', 'Bad Gateway')
    """
    try:
        return _Error.model_validate_json(body).error.message
    except ValidationError:
        return body.decode("utf-8", errors="replace")


def _usage(found: _Usage | None) -> tuple[int, int] | None:
    if found is None:
        return None
    taken = found.prompt_tokens if found.prompt_tokens is not None else found.input_tokens
    given = found.completion_tokens if found.completion_tokens is not None else found.output_tokens
    return None if taken is None else (max(taken, 0), max(given or 0, 0))
