"""A vision-language model behind an OpenAI-compatible endpoint, as an agent."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from anyio import to_thread
from pydantic import Field, model_validator

from secondlook.agents.case import Case, Frozen, Task, digest_of
from secondlook.agents.chat import CallError, ChatModel, Decided, Endpoint, Said
from secondlook.agents.cost import Cost
from secondlook.agents.decision_question import NAME, DecisionQuestion, DecisionWording
from secondlook.agents.endpoint import rough_tokens
from secondlook.agents.errors import AgentError, ConfigError
from secondlook.agents.letters import letter_logprobs
from secondlook.agents.photo import Photo
from secondlook.agents.picture_url import picture_asset, picture_url
from secondlook.agents.pictures import Shown, picture_digests, show
from secondlook.agents.prediction import FREE, Failure, Outcome, Prediction
from secondlook.agents.vlm_question import VlmQuestion, Wording
from secondlook.agents.vlm_reply import read_stated

Belief = Literal["stated", "logprob", "sampled", "decision"]
"""How the model is asked what it believes.

- ``stated``: it writes a label, how sure it is, and why
- ``logprob``: it answers with the letter of a label; the probabilities of the letters are read
- ``sampled``: as ``stated``, several times at a temperature above 0; shares are made of the draws
- ``decision``: the server gives a probability for every label, at ``/v1/systemone``
"""
LETTER_TOKENS = 4
"""Length of an answer of one letter, with room for a blank before it."""
TOP_LOGPROBS = 20
"""As many as servers report at most."""
ASSETS = 4
"""Pictures that a decision takes at most."""
EVIDENCE_CHARACTERS = 1500
"""What a second look adds to the question, for estimates."""
FORM = 1
"""Of the messages; another number makes every cached answer a stranger."""


class OpenAISpec(Frozen):
    """A model at an endpoint as it is configured."""

    kind: Literal["openai"] = "openai"
    name: Annotated[str, Field(pattern="^[^@]+$", max_length=60)]
    """The agent's."""
    model: str
    """The model's, at the endpoint."""
    endpoint: Endpoint
    belief: Belief = "stated"
    draws: Annotated[int, Field(ge=2, le=100)] = 5
    """Answers per case, where they are sampled."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Of the answers; None is 1 where they are sampled, else 0."""
    max_side: Annotated[int, Field(ge=32, le=8192)] = 768
    """Longest side in pixels of a picture that is sent."""
    n_pictures: Annotated[int, Field(ge=0, le=4)] = 0
    """Similar pictures that are sent along on a second look."""
    wording: Wording = Wording()
    decision: DecisionWording = DecisionWording()
    looks: tuple[Literal[1, 2], ...] = (1, 2)
    """Of which panels it is a member."""
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Length of an answer; a model that thinks first needs more."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.belief == "sampled" and self.temperature == 0:
            raise ConfigError(f"{self.name}: draws at temperature 0 are all the same.", "Raise it, or leave it out.")
        if self.belief == "decision" and self.n_pictures >= ASSETS:
            raise ConfigError(f"{self.name}: a decision takes {ASSETS} pictures at most.", "Set n_pictures to 3.")
        return self

    @property
    def heat(self) -> float:
        """The temperature that is asked for."""
        return self.temperature if self.temperature is not None else float(self.belief == "sampled")


class OpenAIVlm:
    """Asks a model at an endpoint about one case after the other.

    Parameters
    ----------
    name : str
    chat : ChatModel
        Answers at `spec.endpoint` with `spec.model`.
    task : Task
    spec : OpenAISpec

    Raises
    ------
    ConfigError
        When a prompt file is missing or is no template, or there are more labels than letters.

    Notes
    -----
    A message holds the pictures, the one in question first, and then the text. A second look is the same question with
    the labels of similar pictures, up to `n_pictures` of these themselves, and what the agent said before. Similar
    pictures that cannot be read are left out; where the picture in question cannot be read, nothing is asked.

    A ``sampled`` agent answers draw `case.draw` with that seed, on the scale ``stated``; who asks several draws and
    makes shares of them is `secondlook.agents.sampled`. ``logprob`` gives the scale ``logit`` (see
    `secondlook.agents.letters`), ``decision`` the scale ``probability``.
    """

    def __init__(self, name: str, chat: ChatModel, task: Task, spec: OpenAISpec) -> None:
        self.name = name
        self._chat, self._task, self._spec = chat, task, spec
        wording = spec.wording
        lettered = spec.belief == "logprob"
        if lettered and wording.answer == Wording().answer:
            wording = wording.model_copy(update={"answer": "answer_letter.md"})
        self._question = VlmQuestion(task, name, wording, "letters" if lettered else "dashes", spec.n_pictures)
        self._decision = DecisionQuestion(task, name, spec.decision) if spec.belief == "decision" else None

    def __repr__(self) -> str:
        return f"OpenAIVlm({self.name!r}, {self._chat!r}, {self._spec.belief!r})"

    @cached_property
    def prompt(self) -> str:
        """SHA-256 over the prompt files."""
        return (self._decision or self._question).sha256

    @cached_property
    def digest(self) -> str:
        """Digest of everything but the case that decides an answer."""
        where = {"base_url", "structured"}
        spec = self._spec.model_dump(mode="json", exclude={"looks", "draws", "endpoint"}, exclude_defaults=True)
        how = [spec, self._spec.endpoint.model_dump(mode="json", include=where)]
        parts = [FORM, self.name, how, digest_of(self._task), self.prompt]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def cost(self) -> Mapping[str, float]:
        """What one answer is reckoned to cost at most: a call, and US dollars by the endpoint's prices."""
        characters = len(self._question.text(Case(id="", photo=Photo.of(b"")))) + EVIDENCE_CHARACTERS
        read = rough_tokens(characters, 1 + self._spec.n_pictures, self._spec.max_side)
        written = {"decision": 0, "logprob": LETTER_TOKENS}.get(self._spec.belief, self._spec.max_tokens)
        return {"vlm_calls": 1.0, "usd": self._chat.endpoint.usd(read, written)}

    def key(self, case: Case) -> str:
        """Digest of everything that decides the answer; of two cases with one key, one need be asked."""
        question = self._decision
        text = self._question.text(case) if question is None else question.state(case, ["picture"])
        draw = case.draw if self._spec.belief == "sampled" else 0
        parts = [self.digest, text, picture_digests(case, self._spec.n_pictures), draw]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge a batch; see `secondlook.agents.base.Agent.predict`.

        Raises
        ------
        ConfigError
            When the key is missing.
        """
        return [await self._judge(case) for case in cases]

    async def _judge(self, case: Case) -> Outcome:
        cost = FREE
        try:
            shown = await to_thread.run_sync(show, case, self._spec.n_pictures)
            if self._decision is not None:
                decided = await self._decide(shown, self._decision)
                cost = decided.cost + Cost(vlm_calls=1)
                found = self._decided(decided, case)
            else:
                said = await self._complete(shown)
                cost = said.cost + Cost(vlm_calls=said.calls)
                found = self._read(said, case)
        except CallError as error:
            spent = error.cost + Cost(vlm_calls=1)
            wait = error.retry_after_s
            return Failure(
                agent=self.name,
                look=case.look,
                error=str(error),
                retry_after_s=wait,
                reached=error.reached,
                cost=spent,
            )
        except AgentError as error:
            return Failure(agent=self.name, look=case.look, error=str(error), cost=cost)
        return found.model_copy(update={"cost": cost})

    def messages(self, case: Case) -> list[dict[str, Any]]:
        """Return the messages that are sent for a case.

        Raises
        ------
        ImageError
            When its picture cannot be read.
        """
        return self._messages(show(case, self._spec.n_pictures))

    def _messages(self, shown: Shown) -> list[dict[str, Any]]:
        urls = [picture_url(photo.pixels(), self._spec.max_side) for photo in shown.photos]
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return [{"role": "user", "content": [*content, {"type": "text", "text": self._question.text(shown.case)}]}]

    async def _complete(self, shown: Shown) -> Said:
        spec = self._spec
        messages = await to_thread.run_sync(self._messages, shown)
        if spec.belief == "logprob":
            return await self._chat.complete(
                messages,
                top_logprobs=TOP_LOGPROBS,
                temperature=spec.heat,
                max_tokens=min(LETTER_TOKENS, spec.max_tokens),
            )
        seed = shown.case.draw if spec.belief == "sampled" else None
        return await self._chat.complete(
            messages, schema=self._schema, temperature=spec.heat, seed=seed, max_tokens=spec.max_tokens
        )

    @cached_property
    def _schema(self) -> dict[str, Any]:
        label = {"type": "string", "enum": list(self._task.labels)}
        fields = {"label": label, "confidence": {"type": "number"}, "reason": {"type": "string"}}
        return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}

    def _read(self, said: Said, case: Case) -> Prediction:
        if self._spec.belief == "logprob":
            first = next((token for token in said.logprobs if token.text.strip()), None)
            tops = dict(first.alternatives) if first else {}
            if first:
                # The token that was chosen need not be among the most probable.
                tops.setdefault(first.text, first.logprob)
            scores = letter_logprobs(tuple(tops.items()), len(self._task.labels))
            return Prediction(agent=self.name, look=case.look, scale="logit", scores=scores, prompt=self.prompt)
        try:
            return read_stated(said.text, self._task, self.name, case.look, self.prompt)
        except AgentError as error:
            if said.cut:
                raise AgentError(f"{error} It stopped at max_tokens, {self._spec.max_tokens}.") from error
            raise

    async def _decide(self, shown: Shown, question: DecisionQuestion) -> Decided:
        def assets() -> list[dict[str, str]]:
            return [picture_asset(photo.pixels(), self._spec.max_side) for photo in shown.photos]

        pictures = await to_thread.run_sync(assets)
        # Named by their digests: a text from outside that held the name of a picture would be given it.
        names = [f"picture-{hashlib.sha256(each['data_base64'].encode()).hexdigest()[:16]}" for each in pictures]
        state = question.state(shown.case, names, shown.labels)
        return await self._chat.decide(state, question.questions, dict(zip(names, pictures, strict=True)))

    def _decided(self, decided: Decided, case: Case) -> Prediction:
        given = decided.probabilities.get(NAME, {})
        scores = tuple(given.get(label, math.nan) for label in self._task.labels)
        if len(given) != len(scores) or not all(p >= 0 for p in scores) or abs(sum(scores) - 1) > 1e-3:
            raise AgentError("The decision gives no distribution over the task's labels.")
        return Prediction(agent=self.name, look=case.look, scale="probability", scores=scores, prompt=self.prompt)
