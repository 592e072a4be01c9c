"""Calls of a chat endpoint: every way it can fail has one documented outcome, and none of them shows the key."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import anyio
import pytest
from fault_server import KINDS, FaultServer
from pydantic import ValidationError

from secondlook.agents.call_error import Reply, clean, meaning, retry_after
from secondlook.agents.chat import CallError, ChatModel, Endpoint, Said
from secondlook.agents.chat_reply import read_completion, read_decision
from secondlook.agents.errors import ConfigError

KEY = "sk-planted-0123456789abcdef"
QUESTION = [{"role": "user", "content": "What is it?"}]
SCHEMA = {"type": "object", "properties": {"label": {"type": "string", "enum": ["red", "green"]}}}


@pytest.fixture(scope="module")
def running() -> Iterator[FaultServer]:
    with FaultServer(silence_s=60) as server:
        yield server


@pytest.fixture
def server(running: FaultServer) -> FaultServer:
    """The one server, as if it were new."""
    running.reset()
    running.plan, running.refuses, running.usage, running.key = None, {}, True, None
    running.retry_after, running.hold = "0", 0
    return running


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)


_number = iter(range(10_000))


def model(server: FaultServer, **more: Any) -> ChatModel:
    """One under a name of its own: what a server refuses is remembered by name."""
    return ChatModel(Endpoint(base_url=server.base_url, **{"timeout_s": 5, **more}), f"model-{next(_number)}")


def ask(chat: ChatModel, **more: Any) -> Said | CallError:
    async def once() -> Said | CallError:
        try:
            return await chat.complete(QUESTION, **more)
        except CallError as error:
            return error

    return asyncio.run(once())


@dataclass(frozen=True)
class Outcome:
    kind: str
    says: str
    """What the error says, or the text."""
    wait: float | None = None
    """Seconds after which asking again may help."""
    error: bool = True


OUTCOMES = [
    Outcome("429", "answered 429: scripted failure", 0.0),
    Outcome("429 with Retry-After", "answered 429: scripted failure", 7.0),
    Outcome("500", "answered 500: scripted failure", 0.0),
    Outcome("502", "answered 502: scripted failure", 0.0),
    Outcome("503", "answered 503: scripted failure", 0.0),
    Outcome("504", "answered 504: scripted failure", 0.0),
    Outcome("reset", "could not be reached, or broke off (ConnectionResetError", 0.0),
    Outcome("half a body", "could not be reached, or broke off (ReadError", 0.0),
    Outcome("silence", "did not answer within 0.2 s", 0.0),
    Outcome("dribble", "did not answer within 0.2 s", 0.0),
    Outcome("wrong content type", "answered with text/html, not JSON", 0.0),
    Outcome("empty choices", "sent no text", 0.0),
    Outcome("refusal", "refused to answer: I cannot help with this picture."),
    Outcome("a megabyte", "sent a reply of more than 1,048,576 bytes"),
    Outcome("307", "sends elsewhere (307); give the final address as base_url"),
    Outcome("400", "answered 400: scripted failure"),
    Outcome("401", "does not accept the key or this use of it (401); check the environment variable SOME_KEY"),
    Outcome("403", "does not accept the key or this use of it (403); check the environment variable SOME_KEY"),
    Outcome("404", "knows no such model or address (404: scripted failure"),
    # What is in the text is for its reader to judge.
    Outcome("ok", '"confidence": ', error=False),
    Outcome("wrong label", '"a label of nobody"', error=False),
    Outcome("other case", '"confidence": ', error=False),
    Outcome("fenced", "```json", error=False),
    Outcome("cut short", '{"label', error=False),
    Outcome("two objects", '}\n{"label"', error=False),
    Outcome("95%", '"95%"', error=False),
    Outcome("95", ": 95,", error=False),
    Outcome("nan", "NaN", error=False),
    Outcome("-1", "-1", error=False),
    Outcome("another language", "На снимке", error=False),
]


def test_every_kind_of_reply_has_a_documented_outcome() -> None:
    assert {outcome.kind for outcome in OUTCOMES} == set(KINDS)


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: outcome.kind)
def test_a_reply_has_its_outcome(server: FaultServer, outcome: Outcome) -> None:
    server.plan, server.retry_after = lambda asked: outcome.kind, "7"
    slow = outcome.kind in ("silence", "dribble")
    chat = model(server, key_env="SOME_KEY", timeout_s=0.2 if slow else 5)
    found = ask(chat)
    assert isinstance(found, CallError) == outcome.error
    assert outcome.says in (found.text if isinstance(found, Said) else str(found))
    assert server.total == 1  # never asked again here: that is the wrappers' work
    if isinstance(found, CallError):
        assert found.retry_after_s == outcome.wait
        assert str(found).startswith(f"{server.base_url} ({chat.model}) ")
        assert found.cost.seconds > 0
        assert found.cost.calls == 0


def test_an_address_where_nobody_listens_may_be_asked_again() -> None:
    found = ask(ChatModel(Endpoint(base_url="http://127.0.0.1:9/v1"), "m"))
    assert isinstance(found, CallError)
    assert "http://127.0.0.1:9/v1 (m) could not be reached, or broke off (ConnectionRefusedError" in str(found)
    assert found.retry_after_s == 0


# How long to wait.


def test_the_wait_is_read_from_seconds_and_dates_and_is_bounded() -> None:
    now = 1_790_000_000.0
    date = formatdate(now + 30, usegmt=True)
    texts = ["1.5", "0", "-3", date, formatdate(now - 30, usegmt=True), "1e9", "99999999999999", "never", ""]
    assert [retry_after({"retry-after": text}, now) for text in texts] == [1.5, 0, 0, 30, 0, 120, 120, 0, 0]
    assert retry_after({}, now) == 0


def test_a_used_up_account_is_not_asked_again() -> None:
    body = b'{"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota"}}'
    problem = meaning(Reply(429, {"retry-after": "5"}, body), None, None, 0.0)
    assert problem is not None
    assert problem.what == "has no credit left for this key (429: You exceeded your current quota)"
    assert problem.retry_after_s is None


# The form of the answer, and other options that a server may not know.


def test_the_answer_is_asked_for_in_a_strict_schema(server: FaultServer) -> None:
    ask(model(server), schema=SCHEMA)
    assert server.asked[0].body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
    }


def test_a_server_that_refuses_schemas_is_asked_without_one_from_then_on(server: FaultServer) -> None:
    server.refuses = {"response_format": 422}
    chat = model(server)
    first, second = ask(chat, schema=SCHEMA), ask(chat, schema=SCHEMA)
    assert isinstance(first, Said)
    assert isinstance(second, Said)
    assert (first.calls, second.calls, server.total) == (2, 1, 3)
    # Another model of the same server may know them.
    assert ask(model(server), schema=SCHEMA).calls == 2  # type: ignore[union-attr]


def test_a_server_that_must_take_schemas_and_refuses_is_an_error(server: FaultServer) -> None:
    server.refuses = {"response_format": 400}
    found = ask(model(server, structured="json_schema"), schema=SCHEMA)
    assert isinstance(found, CallError)
    assert "answered 400: Unsupported parameter: 'response_format'" in str(found)
    assert (found.retry_after_s, server.total) == (None, 1)


def test_no_schema_is_sent_where_none_is_wanted(server: FaultServer) -> None:
    ask(model(server, structured="none"), schema=SCHEMA)
    assert "response_format" not in server.asked[0].body


def test_options_that_a_server_refuses_are_left_out_and_the_limit_of_tokens_renamed(server: FaultServer) -> None:
    server.refuses = {"max_tokens": 400, "temperature": 400, "seed": 400}
    chat = model(server)
    assert isinstance(ask(chat, seed=3, max_tokens=50), Said)
    sent = server.asked[-1].body
    assert sent["max_completion_tokens"] == 50
    assert not {"max_tokens", "temperature", "seed", "response_format"} & set(sent)
    before = server.total
    assert isinstance(ask(chat, seed=3), Said)
    assert server.total == before + 1


def test_what_is_refused_for_another_reason_is_not_remembered(server: FaultServer) -> None:
    # The text names the option, but without it the answer is the same: so the option was not the reason.
    server.refuses = {"messages": 400, "response_format": 400}
    chat = model(server)
    server.plan = lambda asked: "400"
    assert isinstance(ask(chat, schema=SCHEMA), CallError)
    server.refuses, server.plan = {}, None
    ask(chat, schema=SCHEMA)
    assert "response_format" in server.asked[-1].body


# Money.


def test_the_price_is_that_of_the_tokens_counted(server: FaultServer) -> None:
    found = ask(model(server, usd_per_million_input=2, usd_per_million_output=8))
    assert isinstance(found, Said)
    assert (found.input_tokens, found.output_tokens) == (500, 20)
    # 500 x 2 + 20 x 8 = 1160 millionths of a dollar.
    assert found.usd == pytest.approx(0.00116)
    assert found.cost.usd == found.usd
    assert found.cost.seconds > 0


def test_a_server_that_does_not_count_is_paid_by_a_rough_count(server: FaultServer) -> None:
    server.usage = False
    found = ask(model(server, usd_per_million_input=3, usd_per_million_output=3))
    assert isinstance(found, Said)
    # "What is it?" has 11 characters, 11 // 3 = 3 tokens; a third of the answer's characters for the answer.
    assert found.usd == pytest.approx((3 + len(found.text) // 3) * 3 / 1e6)
    assert found.input_tokens == 0


def test_an_unknown_price_counts_nothing_and_a_refusal_costs_what_it_took(server: FaultServer) -> None:
    assert ask(model(server)).cost.usd == 0
    server.plan = lambda asked: "refusal"
    found = ask(model(server, usd_per_million_input=2, usd_per_million_output=8))
    assert found.cost.usd == pytest.approx(0.00116)


# Event loops, threads, calls at once.


def test_each_event_loop_has_a_client_that_ends_with_it(server: FaultServer) -> None:
    chat = model(server)
    seen: list[Any] = []

    async def twice() -> None:
        await chat.complete(QUESTION)
        await chat.complete(QUESTION)
        seen.extend(chat._clients.values())

    asyncio.run(twice())
    assert len(seen) == 1
    anyio.run(twice)
    threads = [threading.Thread(target=lambda: asyncio.run(twice())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.calls == {"ok": 10}
    assert len(chat._clients) == 0
    assert all(client.is_closed() for client in seen)


def test_calls_go_out_at_the_same_time(server: FaultServer) -> None:
    server.hold = 32
    chat = model(server, timeout_s=20)

    async def many() -> None:
        await asyncio.gather(*(chat.complete(QUESTION) for _ in range(32)))

    asyncio.run(many())
    assert server.most_at_once == 32


def test_a_call_that_is_given_up_leaves_the_model_usable(server: FaultServer) -> None:
    server.plan = lambda asked: "silence" if asked.number == 0 else "ok"
    chat = model(server, timeout_s=30)

    async def give_up() -> Said:
        async with anyio.create_task_group() as group:
            group.start_soon(chat.complete, QUESTION)
            while not server.calls["silence"]:
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        return await chat.complete(QUESTION)

    assert asyncio.run(give_up()).text


# The key.


def everything_about(error: BaseException) -> str:
    return "".join([*traceback.format_exception(error), repr(error), str(error), repr(vars(error))])


@pytest.mark.parametrize("kind", ["400", "401", "403", "404", "429", "500", "reset", "silence", "307"])
def test_the_key_is_sent_and_never_told(server: FaultServer, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.plan = lambda asked: kind  # its errors repeat the header
    chat = model(server, key_env="SOME_KEY", timeout_s=0.2 if kind == "silence" else 5)
    found = ask(chat)
    assert server.asked[0].headers["Authorization"] == f"Bearer {KEY}"
    assert isinstance(found, CallError)
    told = everything_about(found) + caplog.text + repr(chat) + repr(vars(chat)) + chat.endpoint.model_dump_json()
    assert KEY not in told
    assert KEY[:12] not in told


def test_a_wrong_key_is_an_error_that_names_the_variable(server: FaultServer) -> None:
    server.key = "another"
    assert "check the environment variable SOME_KEY" in str(ask(model(server, key_env="SOME_KEY")))
    assert "name the variable of a key in key_env" in str(ask(model(server)))


def test_without_a_key_nothing_of_the_environment_is_sent(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "BASE_URL"):
        monkeypatch.setenv(f"OPENAI_{name}", "someone")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer someone")
    assert isinstance(ask(model(server)), Said)
    assert "someone" not in str(server.asked[0].headers)
    assert isinstance(ask(model(server, key_env="SOME_KEY")), Said)
    assert server.asked[1].headers["Authorization"] == f"Bearer {KEY}"
    assert "someone" not in str(server.asked[1].headers)


def test_a_missing_key_is_the_users_to_set(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = model(server, key_env="NO_SUCH_KEY")
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        asyncio.run(chat.complete(QUESTION))
    monkeypatch.setenv("NO_SUCH_KEY", "two words")
    with pytest.raises(ConfigError, match="holds blanks") as caught:
        asyncio.run(chat.complete(QUESTION))
    assert "two words" not in str(caught.value)
    monkeypatch.setenv("NO_SUCH_KEY", f"{KEY}\n")  # as files end
    assert isinstance(ask(chat), Said)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"base_url": "localhost:8000"}, ConfigError),
        ({"base_url": "file:///etc/passwd"}, ConfigError),
        ({"base_url": f"https://user:{KEY}@example.com/v1"}, ConfigError),
        ({"base_url": f"https://example.com/v1?key={KEY}"}, ConfigError),
        ({"base_url": "https://example.com/v1", "key_env": KEY}, ConfigError),
        ({"base_url": "https://example.com/v1", "api_key": KEY}, ValidationError),
        ({"base_url": "https://example.com/v1", "concurrency": KEY}, ValidationError),
    ],
    ids=["no scheme", "file", "password", "query", "key as name", "key as field", "key as number"],
)
def test_an_endpoint_that_cannot_be_is_refused_without_quoting_a_key(
    fields: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        Endpoint(**fields)
    assert KEY not in str(caught.value)


def test_texts_from_outside_are_cut_cleaned_and_free_of_the_key() -> None:
    text = clean("one\ttwo\n" + KEY + " \x1b[31m" + "x" * 5000, KEY)
    assert text.startswith("one two [key] [31mxxx")
    assert len(text) == 300
    assert text.isprintable()


# What is read of a reply.


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b"null", b'"text"', b'{"choices": 3}', b'{"choices": [{}]}', b"\xff\xfe", b"[" * 100_000],
    ids=lambda body: repr(body[:12]),
)
def test_bytes_that_are_no_completion_are_none(body: bytes) -> None:
    assert read_completion(body) is None
    assert read_decision(body) is None


def test_an_answer_that_used_up_its_tokens_is_told_apart() -> None:
    found = read_completion(b'{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}')
    assert found is not None
    assert (found.empty, found.cut) == (True, True)
    filtered = read_completion(b'{"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}')
    assert filtered is not None
    assert filtered.refusal == "the server's content filter"


def test_a_decision_is_asked_for_beside_the_chat(server: FaultServer) -> None:
    questions = {"label": {"type": "choice", "instructions": "Which?", "criteria": {"red": None, "green": None}}}

    async def once(chat: ChatModel) -> Any:
        return await chat.decide("a sky", questions, {})

    found = asyncio.run(once(model(server)))
    assert found.probabilities["label"].keys() == {"red", "green"}
    assert (found.input_tokens, found.output_tokens) == (400, 0)
    root = Endpoint(base_url=server.base_url.removesuffix("/v1"))
    assert asyncio.run(once(ChatModel(root, "m"))).probabilities == found.probabilities
    assert [asked.path for asked in server.asked] == ["/v1/systemone"] * 2


def test_a_server_without_decisions_is_an_error_that_says_so(server: FaultServer) -> None:
    server.decides = False
    try:
        with pytest.raises(CallError, match="has no /v1/systemone") as caught:
            asyncio.run(model(server).decide("a sky", {"label": {"type": "choice", "criteria": {}}}, {}))
    finally:
        server.decides = True
    assert caught.value.retry_after_s is None
