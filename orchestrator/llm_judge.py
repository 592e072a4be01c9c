"""A judge: a language model that sees no picture, but reads what the agents said of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from secondlook.agents.case import Case, Evidence, Frozen, Neighbour, Statement, Task, digest_of
from secondlook.agents.chat import CallError, ChatModel
from secondlook.agents.cost import Cost
from secondlook.agents.endpoint import Endpoint, rough_tokens
from secondlook.agents.errors import AgentError, ConfigError
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import FREE, Failure, Outcome
from secondlook.agents.vlm_question import Option, earlier, read_prompt, summarise
from secondlook.agents.vlm_reply import read_judgement
from secondlook.orchestrator.judge_fusion import JUDGES
from secondlook.orchestrator.shown_record import ShownRecord
from secondlook.prompts import BELL, Prompt

FORM = 1
"""Of the message; another number makes every cached answer a stranger."""
NOTHING_SAID = "No agent has said anything that could be judged."
TYPICAL_STATEMENTS = 6
"""Statements that a prompt is reckoned to hold, for estimates."""


class JudgeWording(Frozen):
    """Which files the question to a judge is; each may be a packaged name or a path of one's own."""

    first: str = "judge.md"
    """Asked without evidence."""
    with_records: str = "judge_with_records.md"
    """Asked without evidence, where track records are shown: the judge may then ask for another look."""
    second: str = "judge_second_look.md"
    """Asked with evidence."""


class JudgeSpec(Frozen):
    """A judge as it is configured.

    The three configurations of https://arxiv.org/abs/2507.10571 are, I, a panel of models as they come, II, a panel of
    fine-tuned ones, both with `records` off, and III, `records` on.
    """

    name: Annotated[str, Field(pattern=rf"^{JUDGES}[^@]*$", max_length=60)] = JUDGES
    """Begins with `judge`, by which its answers are known among those of a panel."""
    model: str
    endpoint: Endpoint
    records: bool = False
    """Whether it is shown how each agent did on cases of known truth, and may send back for another look."""
    neighbours: bool = True
    """Whether it is shown, on the second look, what the labels of the retrieved pictures are."""
    wording: JudgeWording = JudgeWording()
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Length of a reply; a model that thinks first needs more."""


class LlmJudge:
    """Asks a language model which label is right, given what was said of a case: an agent like any other.

    Parameters
    ----------
    spec : JudgeSpec
    chat : ChatModel
        Answers at `spec.endpoint` with `spec.model`.
    task : Task
    records : sequence of ShownRecord, or callable
        What it may be shown of the agents, or a function of the case; see `secondlook.orchestrator.shown_record`.

    Raises
    ------
    ConfigError
        When a prompt file is missing, is no template or writes texts from outside without the filter `data`.

    Notes
    -----
    It reads `Case.heard`: labels, the agents' own confidences, and their reasons, all of it quoted as data. Of its own
    earlier answer it is told on the second look, apart from the others'. A case of which no other agent has named a
    label is a `Failure`, and nothing is asked.
    """

    def __init__(
        self,
        spec: JudgeSpec,
        chat: ChatModel,
        task: Task,
        records: Sequence[ShownRecord] | Callable[[Case], Sequence[ShownRecord]] = (),
    ) -> None:
        self._spec, self._chat, self._task = spec, chat, task
        self._records = records if callable(records) else lambda case, shown=tuple(records): shown
        self._options = [Option("-", label, "; ".join(task.phrases_of(label))) for label in task.labels]
        first = spec.wording.with_records if spec.records else spec.wording.first
        self._prompts: dict[bool, Prompt] = {False: read_prompt(first), True: read_prompt(spec.wording.second)}
        self._check(f"One of {first}, {spec.wording.second}")

    def __repr__(self) -> str:
        return f"LlmJudge({self.name!r}, {self._chat!r})"

    def _check(self, which: str) -> None:
        """Write questions of every kind once; in those that quote bells, none may ring."""
        said = Statement(agent=BELL, look=1, label=BELL, confidence=0.5, reason=BELL)
        heard = (said, said.model_copy(update={"reason": ""}), Statement(agent=BELL, look=1))
        own = said.model_copy(update={"agent": self.name})
        found = Evidence(neighbours=(Neighbour(id=BELL, label=BELL, similarity=0.5, path=BELL),))
        records, options = [_row(ShownRecord(agent=BELL, n=0))], [Option("-", BELL, BELL)]
        try:
            for evidence in (None, Evidence(), found):
                case = Case(id=BELL, photo=Photo.of(b""), evidence=evidence, heard=(own,) if evidence is found else ())
                for shown in ([], records):
                    if BELL in self._written(case, heard, shown, options):
                        raise ValueError("it writes a text from outside without the filter `data`")
        except ValueError as error:
            raise ConfigError(f"{which}: {error}.", "See docs/vlm.md.") from error

    @property
    def name(self) -> str:
        """The judge's name; see `JudgeSpec.name`."""
        return self._spec.name

    @cached_property
    def prompt(self) -> str:
        """SHA-256 over the prompt files of both looks."""
        return hashlib.sha256(" ".join(prompt.sha256 for prompt in self._prompts.values()).encode()).hexdigest()

    @cached_property
    def cost(self) -> Mapping[str, float]:
        """What one case is reckoned to cost: one call, and USD for a prompt of usual length and the longest reply."""
        case = Case(id="", photo=Photo.of(b""), evidence=Evidence(), heard=_typical(self._task))
        usd = self._chat.endpoint.usd(rough_tokens(len(self.text(case))), self._spec.max_tokens)
        return {"llm_calls": 1.0, "usd": usd}

    @cached_property
    def digest(self) -> str:
        """Digest of everything that decides an answer, but for the case and the records."""
        endpoint, spec = self._chat.endpoint, self._spec
        how = [endpoint.base_url, endpoint.structured, self._chat.model, spec.max_tokens, spec.records, spec.neighbours]
        parts = [FORM, self.name, how, digest_of(self._task), self.prompt]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def key(self, case: Case) -> str:
        """Digest of everything that decides the answer; of two cases with one key, one need be asked."""
        return hashlib.sha256(json.dumps([self.digest, self.text(case), case.draw]).encode()).hexdigest()

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge a batch, one case after the other; see `secondlook.agents.base.Agent.predict`."""
        return [await self._judge(case) for case in cases]

    async def _judge(self, case: Case) -> Outcome:
        if not any(statement.label is not None for statement in self._heard(case)):
            return self._failure(case, NOTHING_SAID)
        try:
            said = await self._chat.complete(
                [{"role": "user", "content": self.text(case)}],
                schema=self.schema(case),
                max_tokens=self._spec.max_tokens,
            )
        except CallError as error:
            spent = Cost(llm_calls=1) + error.cost
            failure = self._failure(case, str(error), spent)
            return failure.model_copy(update={"retry_after_s": error.retry_after_s, "reached": error.reached})
        cost = Cost(llm_calls=said.calls) + said.cost
        try:
            prediction = read_judgement(said.text, self._task, self.name, case.look, self.prompt)
        except AgentError as error:
            cut = f" It stopped at max_tokens, {self._spec.max_tokens}." if said.cut else ""
            return self._failure(case, f"{error}{cut}", cost)
        return prediction.model_copy(update={"cost": cost})

    def _failure(self, case: Case, error: str, cost: Cost = FREE) -> Failure:
        return Failure(agent=self.name, look=case.look, error=error, cost=cost)

    def text(self, case: Case) -> str:
        """Write the question about a case."""
        heard = self._heard(case)
        return self._written(case, heard, self._shown(case, heard), self._options)

    def _written(
        self, case: Case, heard: Sequence[Statement], records: Sequence[_Row], options: Sequence[Option]
    ) -> str:
        values: dict[str, object] = {"options": options, "heard": heard, "records": records}
        if case.evidence is not None:
            neighbours = case.evidence.neighbours if self._spec.neighbours else ()
            values |= {
                "evidence": summarise(neighbours),
                "n_neighbours": len(neighbours),
                "earlier": earlier(case.heard, self.name),
            }
        return self._prompts[case.evidence is not None].render(**values)

    def schema(self, case: Case) -> dict[str, Any]:
        """JSON schema of the answer, for servers that hold a model to one."""
        answer: dict[str, Any] = {
            "label": {"type": "string", "enum": list(self._task.labels)},
            "confidence": {"type": "number"},
            "reason": {"type": "string"},
        }
        if self._spec.records and case.evidence is None:
            answer["next"] = {"type": "string", "enum": ["accept", "look again"]}
        return {"type": "object", "properties": answer, "required": list(answer), "additionalProperties": False}

    def _heard(self, case: Case) -> list[Statement]:
        return [statement for statement in case.heard if statement.agent != self.name]

    def _shown(self, case: Case, heard: Sequence[Statement]) -> list[_Row]:
        if not self._spec.records:
            return []
        answered = {(statement.agent, statement.look) for statement in heard if statement.label is not None}
        return [_row(record) for record in self._records(case) if (record.agent, record.look) in answered]


class _Row(NamedTuple):
    """A track record as it stands in the question."""

    agent: str
    look: int
    n: int
    accuracy: str
    ece: str
    overconfidence: str
    ccc: str


def _row(record: ShownRecord) -> _Row:
    measures = (record.ece, record.overconfidence, record.ccc)
    accuracy = "unknown" if math.isnan(record.accuracy) else f"{record.accuracy:.0%}"
    return _Row(
        record.agent, record.look, record.n, accuracy, *("unknown" if math.isnan(m) else f"{m:.2f}" for m in measures)
    )


def _typical(task: Task) -> tuple[Statement, ...]:
    """Statements of usual length, one of them a failure."""
    said = Statement(agent="agent", look=1, label=task.labels[0], confidence=1.0, reason="x" * 100)
    return (Statement(agent="agent", look=1), *[said] * (TYPICAL_STATEMENTS - 1))
