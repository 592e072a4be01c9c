"""What every agent promises, tried on every agent: as many outcomes as cases, in their order, and no exception."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from fault_server import FaultServer, Said, picture_digest
from numpy.typing import NDArray
from PIL import Image

from secondlook.agents.answer_cache import AnswerCache
from secondlook.agents.base import Agent
from secondlook.agents.cached import Cached
from secondlook.agents.calibration import Calibrated, Calibrator
from secondlook.agents.case import Case, Evidence, Neighbour, Task
from secondlook.agents.chat import ChatModel
from secondlook.agents.clip_head import ClipHead
from secondlook.agents.clip_zero_shot import ClipZeroShot, TextClassifier
from secondlook.agents.cost import Account, Budget, Limits
from secondlook.agents.embedder import Embedder
from secondlook.agents.encoder import Encoder
from secondlook.agents.endpoint import Endpoint
from secondlook.agents.errors import ConfigError
from secondlook.agents.fakes import ScriptedAgent, ToyEncoder
from secondlook.agents.line import Line
from secondlook.agents.linear_head import fit_linear_head
from secondlook.agents.openai_vlm import OpenAISpec, OpenAIVlm
from secondlook.agents.photo import Photo
from secondlook.agents.picture_url import picture_url
from secondlook.agents.prediction import Failure, Outcome, Prediction
from secondlook.agents.recorded import RecordedAgent
from secondlook.agents.sampled import Sampled
from secondlook.agents.wrappers import Budgeted, Resilient
from secondlook.retrieval.neighbour_vote import NeighbourVote

TASK = Task(labels=("red", "green", "blue"))
COLOURS = ((200, 40, 30), (40, 180, 50), (40, 60, 210))
VIEWS = ("whole", "zoom", "top_left")


def picture(label: int, number: int) -> NDArray[np.uint8]:
    """A noisy picture of one colour, paler to the right, so that its crops differ."""
    rng = np.random.default_rng([label, number])
    fade = np.linspace(0, 60, 32)[None, :, None]
    return np.asarray((np.array(COLOURS[label]) + fade + rng.normal(0, 20, (32, 32, 3))).clip(0, 255), dtype=np.uint8)


def case(label: int, number: int = 0, *, again: bool = False, readable: bool = True) -> Case:
    """One whose image can be read or not, and whose neighbours can be counted or not."""
    voices = (0.9, 0.8, -0.2) if readable else ()
    neighbours = tuple(Neighbour(id=f"{i}", label=TASK.labels[label], similarity=s) for i, s in enumerate(voices))
    return Case(
        id=f"{TASK.labels[label]}-{number}",
        photo=Photo.of(picture(label, number)) if readable else Photo.of(b"no image", name="bad.jpg"),
        evidence=Evidence(neighbours=neighbours, views=VIEWS) if again else None,
    )


class World:
    """One encoder and what is fitted on it."""

    def __init__(self, answers: AnswerCache, server: FaultServer) -> None:
        self.endpoint = Endpoint(base_url=server.base_url)
        self.encoder: Encoder = ToyEncoder()
        self.embedder = Embedder(self.encoder, threads=2)
        truth = np.repeat(np.arange(3), 8)
        rows = self.embedder.embed([Photo.of(picture(y, 100 + i)) for i, y in enumerate(truth)]).vectors
        centres = np.stack([rows[truth == y].mean(axis=0) for y in range(3)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        self.words = TextClassifier(centres, np.zeros((0, 64), np.float32), self.encoder.logit_scale)
        leaves = [f"leaf {i // 2}" for i in range(24)]
        self.head = fit_linear_head(rows, truth, leaves, 3, np.random.default_rng(0))
        self.answers = answers


def seen(picture_digest: str) -> Said:
    """What the model at the endpoint says of a picture: its colour."""
    return SEEN.get(picture_digest, Said("no label", 0.5))


def sent(label: int, number: int) -> str:
    return picture_digest(picture_url(Image.fromarray(picture(label, number)), 768))


SEEN = {sent(y, i): Said(label, 0.9) for y, label in enumerate(TASK.labels) for i in range(10)}


def far(w: World) -> OpenAIVlm:
    """A model behind an endpoint, asked for label and confidence."""
    spec = OpenAISpec(name="far", model="eye", endpoint=w.endpoint)
    return OpenAIVlm(spec.name, ChatModel(w.endpoint, spec.model), TASK, spec)


def by_picture(asked: Case) -> Sequence[float] | str:
    if asked.photo.name == "bad.jpg" or (asked.evidence and not asked.evidence.neighbours):
        return "cannot be read"
    return np.eye(3)[TASK.labels.index(asked.id.split("-")[0])].tolist()


def recorded() -> RecordedAgent:
    """One whose record lacks the two cases of `mixed` that are hopeless."""
    record = {
        look: {
            f"{label}-{i}": Prediction(agent="recorded", look=look, scale="vote", scores=tuple(np.eye(3)[y].tolist()))
            for y, label in enumerate(TASK.labels)
            for i in range(10)
            if (label, i) not in (("blue", 2), ("red", 5))
        }
        for look in (1, 2)
    }
    return RecordedAgent("recorded", record)


class KeyedScript(ScriptedAgent):
    """One that can be kept in a cache."""

    def key(self, asked: Case) -> str:
        return f"script {asked.photo.digest} {asked.look} {asked.draw} {asked.evidence}"


class KeyedHead(ClipHead):
    """The same."""

    def key(self, asked: Case) -> str:
        return f"head {asked.photo.digest} {asked.look} {asked.draw} {asked.evidence}"


def all_wrappers(w: World) -> Agent:
    """Those of an agent that is far away, in the order in which they are put on."""
    raw = KeyedScript("scripted", by_picture)
    far = Resilient(Budgeted(raw, Account(Budget(per_case=Limits(calls=99)))), Line("http://there", concurrency=3))
    return Calibrated(Sampled(Cached(far, w.answers), draws=2), BOTH)


BOTH = {1: Calibrator(), 2: Calibrator(kind="temperature", temperature=1.5)}
AGENTS: dict[str, Callable[[World], Agent]] = {
    "zero-shot": lambda w: ClipZeroShot(w.embedder, w.words),
    "linear-head": lambda w: ClipHead(w.embedder, w.head, "linear-head"),
    "neighbour-vote": lambda w: NeighbourVote(TASK),
    "scripted": lambda w: ScriptedAgent("scripted", by_picture),
    "recorded": lambda w: recorded(),
    "calibrated zero-shot": lambda w: Calibrated(ClipZeroShot(w.embedder, w.words), BOTH),
    "calibrated vote": lambda w: Calibrated(NeighbourVote(TASK), BOTH),
    "calibrated script": lambda w: Calibrated(ScriptedAgent("scripted", by_picture), BOTH),
    "budgeted": lambda w: Budgeted(ScriptedAgent("scripted", by_picture), Account(Budget(per_run=Limits(calls=99)))),
    "resilient": lambda w: Resilient(ScriptedAgent("scripted", by_picture), Line("http://there", concurrency=2)),
    "cached": lambda w: Cached(KeyedScript("scripted", by_picture), w.answers),
    "cached head, batched": lambda w: Cached(KeyedHead(w.embedder, w.head, "linear-head"), w.answers, batched=True),
    "sampled": lambda w: Sampled(ScriptedAgent("scripted", by_picture), draws=3),
    "all wrappers": all_wrappers,
    "far": far,
    "far, calibrated": lambda w: Calibrated(far(w), BOTH),
}
PAIRS = [(name, look) for name in AGENTS for look in (1, 2) if look == 2 or "vote" not in name]
"""The vote has no evidence on a first look."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with FaultServer(TASK.labels, answer=seen) as server:
        yield World(AnswerCache(tmp_path_factory.mktemp("answers")), server)


@pytest.fixture(params=PAIRS, ids=[f"{name}, look {number}" for name, number in PAIRS])
def pair(request: pytest.FixtureRequest) -> tuple[str, int]:
    name, number = request.param
    return str(name), int(number)


@pytest.fixture
def agent(pair: tuple[str, int], world: World) -> Agent:
    return AGENTS[pair[0]](world)


@pytest.fixture
def look(pair: tuple[str, int]) -> int:
    return pair[1]


def ask(agent: Agent, cases: Sequence[Case]) -> list[Outcome]:
    return asyncio.run(agent.predict(cases))


def mixed(look: int) -> list[Case]:
    """Six cases, the third and the last of them hopeless."""
    labels = (0, 1, 2, 2, 1, 0)
    return [case(y, i, again=look == 2, readable=i not in (2, 5)) for i, y in enumerate(labels)]


def same(one: Outcome, other: Outcome) -> bool:
    """Equal, but for the time it took, and what float32 products of another batch size leave in the last digits."""
    if isinstance(one, Failure) or isinstance(other, Failure):
        return one == other
    left_out = {"scores", "cost"}
    return one.model_dump(exclude=left_out) == other.model_dump(exclude=left_out) and np.allclose(
        one.scores, other.scores, atol=1e-4
    )


def test_it_is_an_agent(agent: Agent) -> None:
    assert isinstance(agent, Agent)
    assert agent.name


def test_outcomes_are_as_many_as_cases_in_their_order_with_a_score_a_label(agent: Agent, look: int) -> None:
    cases = [case(y, i, again=look == 2) for i, y in enumerate((2, 0, 1, 1, 0))]
    outcomes = ask(agent, cases)
    assert len(outcomes) == len(cases)
    for outcome, label in zip(outcomes, (2, 0, 1, 1, 0), strict=True):
        assert isinstance(outcome, Prediction)
        assert outcome.top == label, "each of them can tell these colours apart"
        assert len(outcome.scores) == len(TASK.labels)
        assert np.isfinite(outcome.scores).all()


def test_the_number_of_the_look_and_the_name_are_on_every_outcome(agent: Agent, look: int) -> None:
    for outcome in ask(agent, mixed(look)):
        assert outcome.look == look
        assert outcome.agent == agent.name


def test_a_case_that_fails_leaves_the_others_unharmed(agent: Agent, look: int) -> None:
    cases = mixed(look)
    outcomes = ask(agent, cases)
    assert [isinstance(outcome, Failure) for outcome in outcomes] == [i in (2, 5) for i in range(6)]
    good = [i for i in range(6) if i not in (2, 5)]
    for i, alone in zip(good, ask(agent, [cases[i] for i in good]), strict=True):
        assert same(outcomes[i], alone)
    assert all(outcome.error for outcome in outcomes if isinstance(outcome, Failure))


def test_the_order_of_the_cases_is_the_order_of_the_outcomes_and_nothing_else(agent: Agent, look: int) -> None:
    cases = mixed(look)
    order = [4, 2, 0, 5, 3, 1]
    outcomes, turned = ask(agent, cases), ask(agent, [cases[i] for i in order])
    assert all(same(turned[place], outcomes[i]) for place, i in enumerate(order))


def test_no_case_no_outcome(agent: Agent) -> None:
    assert ask(agent, []) == []


def test_scores_are_of_the_kind_they_say(agent: Agent, look: int) -> None:
    for outcome in ask(agent, mixed(look)):
        if isinstance(outcome, Prediction) and outcome.scale != "logit":
            assert min(outcome.scores) >= 0
            # What is stated is the confidence in one label; the others share nothing yet.
            assert sum(outcome.scores) == pytest.approx(max(outcome.scores) if outcome.scale == "stated" else 1)
        if isinstance(outcome, Prediction) and isinstance(agent, Calibrated):
            assert outcome.scale == "probability"


def test_without_evidence_the_vote_is_a_failure_that_says_so() -> None:
    (outcome,) = ask(NeighbourVote(TASK), [case(0)])
    assert isinstance(outcome, Failure)
    assert "no evidence" in outcome.error


def test_a_second_look_is_the_mean_over_the_views_that_the_evidence_names(world: World) -> None:
    agent = ClipZeroShot(world.embedder, world.words)
    asked = case(1, again=True)
    (outcome,) = ask(agent, [asked])
    assert isinstance(outcome, Prediction)
    rows = np.concatenate([world.embedder.embed([asked.photo], view).vectors for view in VIEWS])
    np.testing.assert_allclose(outcome.scores, world.words.logits(rows).mean(axis=0), atol=1e-5)
    (first,) = ask(agent, [case(1)])
    assert isinstance(first, Prediction)
    assert not np.allclose(first.scores, outcome.scores, atol=1e-4)


def test_cases_may_ask_for_different_views(world: World) -> None:
    agent = ClipHead(world.embedder, world.head, "linear-head")
    asked = [
        case(0, again=True),
        case(1),
        case(2, again=True).model_copy(update={"evidence": Evidence(views=("zoom",))}),
    ]
    together = ask(agent, asked)
    assert [outcome.look for outcome in together] == [2, 1, 2]
    assert all(same(outcome, ask(agent, [one])[0]) for outcome, one in zip(together, asked, strict=True))


def test_a_view_that_is_not_there_is_not_hidden_as_a_failure(world: World) -> None:
    asked = case(0, again=True).model_copy(update={"evidence": Evidence(views=("corner",))})
    with pytest.raises(ConfigError, match="no view"):
        ask(ClipHead(world.embedder, world.head, "linear-head"), [asked])


def test_all_agents_together_encode_each_view_once(world: World) -> None:
    embedder = Embedder(world.encoder)
    cases = [case(y, 7 + y, again=True) for y in range(3)]
    for agent in (ClipZeroShot(embedder, world.words), ClipHead(embedder, world.head, "linear-head")):
        ask(agent, cases)
        ask(agent, [one.model_copy(update={"evidence": None}) for one in cases])
    assert embedder.encoded == 3 * len(VIEWS)
    embedder.close()


def test_a_script_is_a_value_a_sequence_or_a_function() -> None:
    cases = [case(0, i) for i in range(3)]
    assert [o.top for o in ask(ScriptedAgent("a", [0.1, 0.9]), cases) if isinstance(o, Prediction)] == [1, 1, 1]
    assert all(isinstance(o, Failure) and o.error == "down" for o in ask(ScriptedAgent("a", "down"), cases))
    turns = ScriptedAgent("a", iter([(1, 0), "down", (0, 1)]), scale="vote")
    assert [o.top if isinstance(o, Prediction) else o.error for o in ask(turns, cases)] == [0, "down", 1]
    assert turns.asked == 3
    with pytest.raises(IndexError, match="none is left for case 'red-0'"):
        ask(turns, cases[:1])
    array = ScriptedAgent("a", np.array([[0.2, 0.8], [0.7, 0.3]]))
    assert [o.top for o in ask(array, cases[:2]) if isinstance(o, Prediction)] == [1, 0]


def test_the_toy_encoder_tells_colours_and_layouts_apart() -> None:
    encoder = ToyEncoder()
    left = np.zeros((32, 32, 3), np.uint8)
    left[:, :16] = 255
    images = [Image.fromarray(picture(y, 0)) for y in range(3)] + [Image.fromarray(a) for a in (left, left[:, ::-1])]
    rows = encoder.encode([encoder.preprocess(image) for image in images])
    other = encoder.encode([encoder.preprocess(Image.fromarray(picture(y, 1))) for y in range(3)])
    cosines = rows @ rows.T
    assert (cosines[~np.eye(5, dtype=bool)] < 0.9).all()
    assert ((rows[:3] * other).sum(axis=1) > 0.99).all(), "two pictures of a colour are alike"
    assert encoder.digest != ToyEncoder(seed=1).digest != ToyEncoder(dim=32).digest
