"""The language models of a panel: from a configuration to agents that retry, remember and keep to a budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, Self, assert_never

from pydantic import Field, model_validator

from secondlook.agents.answer_cache import AnswerCache
from secondlook.agents.base import Agent, Keyed
from secondlook.agents.cached import Cached
from secondlook.agents.case import Frozen, Task, digest_of
from secondlook.agents.chat import ChatModel
from secondlook.agents.cost import Account, Budget
from secondlook.agents.encoder import Device
from secondlook.agents.endpoint import Endpoint
from secondlook.agents.errors import ConfigError
from secondlook.agents.line import line_of
from secondlook.agents.openai_vlm import OpenAISpec, OpenAIVlm
from secondlook.agents.qwen_vl import QwenSpec, QwenVl
from secondlook.agents.sampled import Sampled
from secondlook.agents.wrappers import Budgeted, Patience, Resilient
from secondlook.orchestrator.judge_fusion import judge_in
from secondlook.orchestrator.llm_judge import JudgeSpec, LlmJudge
from secondlook.orchestrator.shown_record import Shown, ShownRecord

AgentSpec = Annotated[OpenAISpec | QwenSpec, Field(discriminator="kind")]
ADAPTERS = "adapters"
"""Folder of a model folder that holds what `fit` trained for local models, by name."""
TAKEN = ("zero-shot", "neighbour-vote")
"""Names of the agents that every panel has."""


class Language(Frozen):
    """Which language models look at the images, and which one judges what is said."""

    agents: tuple[AgentSpec, ...] = ()
    judge: JudgeSpec | None = None

    @model_validator(mode="after")
    def _different_names(self) -> Self:
        names = [*TAKEN, *(spec.name for spec in self.agents), *([self.judge.name] if self.judge else [])]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"Two agents are called {twice[0]!r}.", "Give each a name of its own.")
        if taken := [spec.name for spec in self.agents if judge_in((spec.name,))]:
            raise ConfigError(f"An agent that looks is called {taken[0]!r}.", "Only a judge's name begins so.")
        return self

    def placed(self, folder: Path) -> Self:
        """Return the same with the adapters that `fit` trained, which lie in the model folder."""
        return self.model_copy(update={"agents": tuple(_placed(spec, folder) for spec in self.agents)})


def _placed(spec: AgentSpec, folder: Path) -> AgentSpec:
    if not isinstance(spec, QwenSpec) or spec.fit is None:
        return spec
    return spec.model_copy(update={"adapter": str(folder / ADAPTERS / spec.name), "fit": None})


class Member(NamedTuple):
    """An agent, not calibrated, and the looks it is asked at."""

    agent: Agent
    looks: tuple[int, ...]


class Means(NamedTuple):
    """What language models are asked with."""

    account: Account
    """What the run, and each case of it, may spend."""
    answers: AnswerCache | None = None
    """Answers that were paid for before; None keeps none."""
    device: Device = "auto"

    @classmethod
    def free(cls, device: Device = "auto") -> Self:
        """Keep nothing and limit nothing."""
        return cls(Account(Budget()), None, device)


def members(language: Language, task: Task, means: Means) -> tuple[Member, ...]:
    """Make the agents that look. No model is loaded and nothing is asked yet.

    Parameters
    ----------
    language : Language
    task : Task
    means : Means

    Raises
    ------
    ConfigError
        When a folder or a prompt file is missing, or an agent cannot be asked about such a task.
    """
    return tuple(Member(_agent(spec, task, means), spec.looks) for spec in language.agents)


def judge_of(language: Language, task: Task, means: Means, records: Shown | Sequence[ShownRecord] = ()) -> Agent | None:
    """Make the judge; None where none is configured.

    Parameters
    ----------
    language, task, means
        See `members`.
    records : callable or sequence of ShownRecord
        What it is shown of the agents, where it is configured to be; see `LlmJudge`.
    """
    spec = language.judge
    if spec is None:
        return None
    chat = ChatModel(spec.endpoint, spec.model)
    return _remembered(_reached(LlmJudge(spec, chat, task, records), spec.endpoint, means), means)


def parts_of(language: Language, task: Task, device: Device = "auto") -> dict[str, dict[str, str]]:
    """Name what each language model is made of, for its bindings; see `secondlook.orchestrator.binding.bind`.

    What a judge says depends on what it hears, so the parts of the agents it hears are parts of it.

    Returns
    -------
    dict of str to dict of str to str
        By agent: the digests of its model and of its prompt.
    """
    made = [member.agent for member in members(language, task, Means.free(device))]
    found = {agent.name: _parts(agent) for agent in made}
    if (judge := judge_of(language, task, Means.free(device))) and language.judge:
        own = {"model": digest_of(language.judge), "prompt": str(getattr(judge, "prompt", ""))[:16]}
        heard = {f"{part} of {name}": value for name, parts in found.items() for part, value in parts.items()}
        found[judge.name] = own | {name.replace(" ", "-"): value for name, value in heard.items()}
    return found


def _parts(agent: Agent) -> dict[str, str]:
    # The arithmetic that a model runs in is named after a dash, and is no other model.
    model, prompt = (str(getattr(agent, name, "")) for name in ("digest", "prompt"))
    return {"model": model.split("-")[0][:16], "prompt": prompt[:16]}


def _agent(spec: AgentSpec, task: Task, means: Means) -> Agent:
    match spec:
        case OpenAISpec():
            raw = OpenAIVlm(spec.name, ChatModel(spec.endpoint, spec.model), task, spec)
            asked = _remembered(_reached(raw, spec.endpoint, means), means)
            return Sampled(asked, spec.draws) if spec.belief == "sampled" else asked
        case QwenSpec():
            return _remembered(QwenVl(spec, task, means.device), means, batched=True)
        case _:
            assert_never(spec)


def _reached(raw: Agent, endpoint: Endpoint, means: Means) -> Keyed:
    """Wrap an agent behind an endpoint: what it may spend is checked before each call, what fails is tried again."""
    return Resilient(Budgeted(raw, means.account), line_of(endpoint), Patience.of(endpoint))


def _remembered(agent: Keyed, means: Means, *, batched: bool = False) -> Agent:
    return agent if means.answers is None else Cached(agent, means.answers, batched=batched)
