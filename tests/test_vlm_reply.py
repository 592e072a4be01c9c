"""What a language model writes becomes an answer only where it is one: a table of ugly replies, and laws."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import UNIT

from secondlook.agents.case import Task
from secondlook.agents.errors import AgentError
from secondlook.agents.prediction import LEAST, MOST_REASON, Prediction
from secondlook.agents.vlm_reply import MOST_TEXT, read_judgement, read_stated

TASK = Task(
    labels=("healthy", "rust", "scab", "black-rot"),
    aliases={"rust": ("Rust", "cedar apple rust"), "black-rot": ("black rot", 'frogeye "leaf" spot', "黒腐病")},
)
WORDS = {word: k for k, label in enumerate(TASK.labels) for word in (label, *TASK.aliases.get(label, ()))}


def read(text: str) -> Prediction:
    return read_stated(text, TASK, "eye", 2, "f00d")


# -- a table of ugly replies


@dataclass(frozen=True)
class Readable:
    id: str
    text: str
    label: str
    confidence: float = 0.9
    reason: str = ""


READABLE = (
    Readable("plain", '{"label": "rust", "confidence": 0.9, "reason": "Orange."}', "rust", reason="Orange."),
    Readable("white space around the label", '{"label": " rust\\n", "confidence": 0.9}', "rust"),
    Readable("an alias of other case", '{"label": "Rust", "confidence": 0.9}', "rust"),
    Readable("an alias of several words", '{"label": "cedar apple rust", "confidence": 0.9}', "rust"),
    Readable("an alias with quotes", r'{"label": "frogeye \"leaf\" spot", "confidence": 0.9}', "black-rot"),
    Readable("an alias in another script", '{"label": "黒腐病", "confidence": 0.9}', "black-rot"),
    Readable("an alias in escapes", r'{"label": "\u9ed2\u8150\u75c5", "confidence": 0.9}', "black-rot"),
    Readable("a fence", '```json\n{"label": "rust", "confidence": 0.9}\n```', "rust"),
    Readable("a fence without a language", '```\n{"label": "rust", "confidence": 0.9}```', "rust"),
    Readable("a fence that never ends", '```json\n{"label": "rust", "confidence": 0.9}', "rust"),
    Readable("after prose", 'The leaf [see above] is ill: {"label": "rust", "confidence": 0.9}', "rust"),
    Readable("before prose", '{"label": "rust", "confidence": 0.9}\nI hope that helps!', "rust"),
    Readable("after a thought", '<think>scab? {"label": "scab"} {</think>{"label": "rust", "confidence": 0.9}', "rust"),
    Readable("after a thought the template began", 'or {scab}?</think>\n{"label": "rust", "confidence": 0.9}', "rust"),
    Readable("in a list", '[{"label": "rust", "confidence": 0.9}]', "rust"),
    Readable("twice the same", '{"label": "rust", "confidence": 0.9} {"confidence": 0.90, "label": "Rust"}', "rust"),
    Readable("a percentage", '{"label": "rust", "confidence": "90%"}', "rust"),
    Readable("a percentage apart", '{"label": "rust", "confidence": " 90.0 % "}', "rust"),
    Readable("a number in quotes", '{"label": "rust", "confidence": "0.9"}', "rust"),
    Readable("no confidence", '{"label": "rust"}', "rust", 1.0),
    Readable("confidence null", '{"label": "rust", "confidence": null}', "rust", 1.0),
    Readable("confidence 0", '{"label": "rust", "confidence": 0}', "rust", LEAST),
    Readable("confidence 1", '{"label": "rust", "confidence": 1}', "rust", 1.0),
    Readable("confidence 1e-1", '{"label": "rust", "confidence": 1e-1}', "rust", 0.1),
    Readable("keys of others", '{"label": "rust", "confidence": 0.9, "x": [{"label": "scab"}], "Label": 1}', "rust"),
    Readable("twice a key of others", '{"label": "rust", "confidence": 0.9, "x": 1, "x": 2, "y": {"a": 1, "a": 2}}',
             "rust"),
    Readable("a reason of braces", '{"label": "rust", "confidence": 0.9, "reason": "}{ {\\"label\\": 1}"}', "rust",
             reason='}{ {"label": 1}'),
    Readable("a reason of lines", '{"label": "rust", "confidence": 0.9, "reason": "a\\n\\tb\\u0000\\u202e c\\ud800"}',
             "rust", reason="a b c"),
    Readable("a reason that is no text", '{"label": "rust", "confidence": 0.9, "reason": ["orange"]}', "rust"),
)  # fmt: skip


@pytest.mark.parametrize("case", READABLE, ids=lambda case: case.id)
def test_a_reply_that_says_one_thing_is_read(case: Readable) -> None:
    found = read(case.text)
    k = TASK.labels.index(case.label)
    assert found.scores[k] == pytest.approx(case.confidence)
    assert sum(found.scores) == found.scores[k]
    assert (found.top, found.scale, found.reason) == (k, "stated", case.reason)
    assert (found.agent, found.look, found.prompt, found.again) == ("eye", 2, "f00d", False)


@dataclass(frozen=True)
class Refused:
    id: str
    text: str
    says: str


DEEP = 5_000
REFUSED = (
    Refused("nothing", "", "The reply is empty."),
    Refused("white space", " \n\t ", "The reply is empty."),
    Refused(
        "a refusal", "I'm sorry, but I can't help with that.", "no JSON object: \"I'm sorry, but I can't help with"
    ),
    Refused("another language", "Das Blatt ist gesund.", 'no JSON object: "Das Blatt ist gesund."'),
    Refused("the label alone", "rust", 'no JSON object: "rust"'),
    Refused("a JSON text", '"rust"', "no JSON object"),
    Refused("a list of labels", '["rust"]', "no JSON object"),
    Refused("no label", '{"confidence": 0.9}', "names no label"),
    Refused("label null", '{"label": null}', "names no label"),
    Refused("an empty object", "{}", "names no label"),
    Refused("key of other case", '{"Label": "rust"}', "names no label"),
    Refused("label within", '{"answer": {"label": "rust"}}', "names no label"),
    Refused("a foreign label", '{"label": "mildew"}', 'The label "mildew" is none of the task'),
    Refused("a label of other case", '{"label": "RUST"}', 'The label "RUST" is none'),
    Refused("a label and more", '{"label": "rust."}', 'The label "rust." is none'),
    Refused("a label with a space within", '{"label": "ru st"}', 'The label "ru st" is none'),
    Refused("two labels in one", '{"label": "rust or scab"}', 'The label "rust or scab" is none'),
    Refused("an empty label", '{"label": ""}', 'The label "" is none'),
    Refused("a label as its number", '{"label": 1}', "The label 1 is none"),
    Refused("a list of labels in the object", '{"label": ["rust"]}', r"The label \(a list\) is none"),
    Refused("an object for a label", '{"label": {"label": "rust"}}', r"The label \(an object\) is none"),
    Refused("label twice", '{"label": "rust", "label": "scab"}', "gives its label 2 times"),
    Refused("the same label twice", '{"label": "rust", "label": "rust"}', "gives its label 2 times"),
    Refused("confidence twice", '{"label": "rust", "confidence": 0.1, "confidence": 0.9}', "confidence 2 times"),
    Refused("two that differ in the label", '{"label": "rust"}{"label": "scab"}', "2 JSON objects that say different"),
    Refused("two that differ in confidence", '{"label": "rust"}{"label": "rust", "confidence": 0.5}', "say different"),
    Refused("an example first", '{"label": "..."} {"label": "rust"}', 'The label "..." is none'),
    Refused("95", '{"label": "rust", "confidence": 95}', "The confidence 95 is neither"),
    Refused("95 in quotes", '{"label": "rust", "confidence": "95"}', 'The confidence "95" is neither'),
    Refused("950 %", '{"label": "rust", "confidence": "950%"}', 'The confidence "950%" is neither'),
    Refused("95 % without quotes", '{"label": "rust", "confidence": 95%}', "broken or cut short"),
    Refused("a comma", '{"label": "rust", "confidence": "0,9"}', 'The confidence "0,9" is neither'),
    Refused("a word", '{"label": "rust", "confidence": "high"}', 'The confidence "high" is neither'),
    Refused("digits of another script", '{"label": "rust", "confidence": "٠.٩"}', "The confidence"),
    Refused("nan", '{"label": "rust", "confidence": NaN}', "The confidence NaN is neither"),
    Refused("nan in quotes", '{"label": "rust", "confidence": "nan"}', 'The confidence "nan" is neither'),
    Refused("infinite", '{"label": "rust", "confidence": Infinity}', "The confidence Infinity is neither"),
    Refused("too large to be a number", '{"label": "rust", "confidence": 1e999}', "The confidence Infinity is neither"),
    Refused("too many digits", '{"label": "rust", "confidence": ' + "9" * 5000 + "}", "broken or cut short"),
    Refused("-1", '{"label": "rust", "confidence": -1}', "The confidence -1 is neither"),
    Refused("true", '{"label": "rust", "confidence": true}', "The confidence true is neither"),
    Refused("a list of confidences", '{"label": "rust", "confidence": [0.9]}', r"The confidence \(a list\) is neither"),
    Refused("cut short", '{"label": "rust", "confidence": 0.9, "reason": "Oran', "broken or cut short"),
    Refused("cut short around a whole one", '{"label": "rust", "box": {"label": "scab"}', "broken or cut short"),
    Refused("the end of one around a whole one", '"rust", "box": {"label": "scab"}}', "a brace that belongs to no"),
    Refused("prose with braces", 'Of {rust, scab}: {"label": "rust"}', "broken or cut short"),
    Refused("single quotes", "{'label': 'rust'}", "broken or cut short"),
    Refused("a comma too many", '{"label": "rust",}', "broken or cut short"),
    Refused("a comment", '{"label": "rust" /* sure */}', "broken or cut short"),
    Refused("a line break in a text", '{"label": "rust", "reason": "a\nb"}', "broken or cut short"),
    Refused("a thought without an end", '<think>is it {"label": "rust"}', "ends before its thinking does"),
    Refused("a thought within a label", '{"label": "ru<think> </think>st"}', "broken or cut short"),
    Refused("answers before and after a thought", '{"label": "rust"}<think></think>{"label": "scab"}', "say different"),
    Refused("between thoughts", '<think></think>{"label": "rust"}<think></think>{"label": "scab"}', "say different"),
    Refused("very deep objects", '{"a":' * DEEP + "1" + "}" * DEEP, "too deeply nested"),
    Refused("very deep lists", '{"label": "rust", "x": ' + "[" * DEEP + "]" * DEEP + "}", "too deeply nested"),
    Refused("very long", '{"label": "rust"}' + " " * MOST_TEXT, "holds 100,017 characters; at most 100,000"),
    Refused("of 1 MB", "x" * 2**20, "holds 1,048,576 characters"),
    Refused("what no screen shows", "\x00\u202e\ud800", r'no JSON object: "\\u0000\\u202e\\ud800"'),
)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_any_other_reply_is_refused_in_a_sentence(case: Refused) -> None:
    with pytest.raises(AgentError, match=case.says) as refused:
        read(case.text)
    check_sentence(str(refused.value))


def check_sentence(said: str) -> None:
    """Of a limited length and printable, so that it can stand in any table, log or terminal."""
    assert said.isprintable()
    assert len(said) < 700, "80 characters of a reply, each of which may take six to be shown, and the sentence"
    assert said.endswith(".")


def test_a_long_reason_is_cut() -> None:
    found = read(json.dumps({"label": "rust", "reason": "word " * 1000}))
    assert found.reason == ("word " * 1000)[:MOST_REASON]
    assert Prediction.model_validate_json(found.model_dump_json()) == found


def test_labels_that_differ_in_white_space_alone_are_told_apart() -> None:
    task = Task(labels=("rust", "rust ", " scab"))
    said = ('"rust"', '" rust"', '"rust "', '" scab"')
    assert [read_stated(f'{{"label": {label}}}', task, "eye", 1).top for label in said] == [0, 0, 1, 2]
    with pytest.raises(AgentError, match='"scab" is none'):
        read_stated('{"label": "scab"}', task, "eye", 1)


# -- judgements and letters


@pytest.mark.parametrize(
    ("step", "again"),
    [("", False), (', "next": null', False), (', "next": "accept"', False), (', "next": "look again"', True)],
)
def test_a_judge_may_ask_for_another_look(step: str, again: bool) -> None:
    text = f'{{"label": "rust", "confidence": 0.9, "reason": "Both say so."{step}}}'
    found = read_judgement(text, TASK, "judge", 1, "f00d")
    assert found.again == again
    assert found.model_copy(update={"again": False}) == read_stated(text, TASK, "judge", 1, "f00d")


@pytest.mark.parametrize("step", ['"Look again"', '"look again "', '"stop"', "true", "1", '["accept"]', '{"a": 1}'])
def test_what_a_judge_may_not_ask_for_is_no_judgement(step: str) -> None:
    text = f'{{"label": "rust", "next": {step}}}'
    with pytest.raises(AgentError, match="The next step") as refused:
        read_judgement(text, TASK, "judge", 1)
    check_sentence(str(refused.value))
    assert read(text).again is False, "an agent that is no judge is not asked"


def test_a_judge_that_asks_for_both_is_refused() -> None:
    for text in ('{"label": "rust", "next": "accept", "next": "look again"}',
                 '{"label": "rust", "next": "accept"} {"label": "rust", "next": "look again"}'):  # fmt: skip
        with pytest.raises(AgentError, match=r"2 times|different things"):
            read_judgement(text, TASK, "judge", 1)


# -- laws

MARKS = ("{", "}", "[", "]", '"', ":", ",", "\\", "\n", " ", "```json\n", "<think>", "</think>", "null", "NaN")
PIECES = st.sampled_from(MARKS) | st.sampled_from(
    ('"label"', '"label": ', '{"label": "', '"}', "confidence", "reason", '"next": "look again"', "0.5", "95%",
     "\ud800", '"rust"', "rust", "Rust", "scab", "healthy", '{"label": "scab"}', '{"label": "rust", "confidence": 1}')
)  # fmt: skip
KEYS = st.sampled_from(["label", "confidence", "reason", "next"]) | st.text(max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8) | st.sampled_from(sorted(WORDS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=6,
)
TEXTS = st.one_of(
    st.text(), st.lists(PIECES | st.text(max_size=3), max_size=14).map("".join), JSON.map(json.dumps)
)  # fmt: skip


def check_any(text: str) -> None:
    for reader in (read_stated, read_judgement):
        try:
            found = reader(text, TASK, "eye", 1)
        except AgentError as error:
            check_sentence(str(error))
        else:
            said = [word for word, k in WORDS.items() if k == found.top]
            assert any(written in text for word in said for written in (json.dumps(word)[1:-1], word, escaped(word)))
            assert LEAST <= found.scores[found.top] <= 1
            assert Prediction.model_validate_json(found.model_dump_json().encode()) == found
            assert not found.reason or found.reason.isprintable()


def escaped(word: str) -> str:
    return json.dumps(word, ensure_ascii=True)[1:-1]


@settings(max_examples=200)
@given(TEXTS)
def test_any_text_gives_a_prediction_whose_label_it_holds_or_an_error(text: str) -> None:
    check_any(text)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(TEXTS)
def test_ten_thousand_texts_give_a_prediction_whose_label_they_hold_or_an_error(text: str) -> None:
    check_any(text)


REASONS = st.text(st.characters(categories=["L", "N", "P", "S"]) | st.sampled_from(' "\\{}'), max_size=40)
OTHERS = st.dictionaries(st.sampled_from(["box", "other", "Label", "next"]), JSON, max_size=2)
PROSE = st.sampled_from(["", "\n", "It is scab: ", "```\n", '<think>{"label": "scab"}</think>', "a list [1]"])
SHARES = UNIT | st.none()


@st.composite
def replies(draw: st.DrawFn) -> tuple[str, int, float | None, str]:
    """A reply as a server may send it, with what it says."""
    word, sure, reason = draw(st.sampled_from(sorted(WORDS))), draw(SHARES), draw(REASONS)
    said: dict[str, Any] = {"label": word, "confidence": sure, "reason": reason, **draw(OTHERS)}
    keys = draw(st.permutations(list(said)))
    indent, ascii_only = draw(st.sampled_from([None, 2])), draw(st.booleans())
    text = json.dumps({key: said[key] for key in keys}, indent=indent, ensure_ascii=ascii_only)
    return draw(PROSE) + text + draw(st.sampled_from(["", "\n```", " That is all."])), WORDS[word], sure, reason


@given(replies())
def test_what_a_valid_reply_says_is_what_is_read(reply: tuple[str, int, float | None, str]) -> None:
    text, label, sure, reason = reply
    found = read(text)
    assert found.top == label
    assert found.scores[label] == max(LEAST, 1.0 if sure is None else sure)
    assert found.reason == " ".join(reason.split())


DAMAGE = st.sampled_from(
    (
        *MARKS,
        "{}",
        "'",
        "\x00",
        "x",
        "}{",
        '"}',
        '{"label": ',
        '"label": ',
        '"label": "',
        '"x": "',
        '", "x": "',
        "\\u007b",
    )
)


@settings(max_examples=100)
@given(reply=replies(), damage=DAMAGE, data=st.data())
def test_damage_to_a_valid_reply_never_makes_it_say_another_label(
    reply: tuple[str, int, float | None, str], damage: str, data: st.DataObject
) -> None:
    """Cut anywhere, repeated, or with any of the marks of JSON put in anywhere; none of them holds a label."""
    text, label, _, _ = reply
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    head, middle, tail = text[:start], text[start:end], text[end:]
    cut = (head, middle + tail)
    repeated = (head + middle + middle + tail, text + head, text + text)
    put_in = (head + damage + middle + tail, head + damage + middle + damage + tail)
    for damaged in (*cut, *repeated, *put_in):
        for reader in (read_stated, read_judgement):
            with contextlib.suppress(AgentError):
                assert reader(damaged, TASK, "eye", 1).top == label, damaged
