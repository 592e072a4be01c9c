"""Recorded answers: both forms of file are read as they are, and what cannot be read is refused in a sentence."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondlook.agents.case import Case, Evidence
from secondlook.agents.errors import ConfigError
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Failure, Prediction, stated
from secondlook.agents.recorded import RecordedAgent
from secondlook.eval import answer_rows
from secondlook.eval.recorded_answers import RecordedAnswers, labels_said, read_answers

HEADER = "case,agent,look,label,confidence,probs,seconds,usd,truth,group,kind,calls"


def read(tmp_path: Path, *lines: str, header: str = HEADER) -> RecordedAnswers:
    path = tmp_path / "answers.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return read_answers(path)


TWO = ("a,vlm,1,rust,.9,,,,rust,,,", "b,vlm,1,scab,.8,,,,scab,,,")
"""Two cases of two labels, so that a third row can be tried."""


def with_row(tmp_path: Path, row: str) -> RecordedAnswers:
    return read(tmp_path, *TWO, row)


# -- the agent


def test_a_recorded_agent_says_what_its_record_says_of_each_look_and_case() -> None:
    first, second = stated("vlm", 1, 0, 0.8, 2), stated("vlm", 2, 1, 0.9, 2)
    down = Failure(agent="vlm", look=2, error="down")
    agent = RecordedAgent("vlm", {1: {"a": first}, 2: {"a": second, "b": down}})
    cases = [Case(id=name, photo=Photo.of(b"", name=name)) for name in ("b", "a")]
    again = [case.model_copy(update={"evidence": Evidence()}) for case in cases]
    missing, found = asyncio.run(agent.predict(cases))
    assert found == first
    assert isinstance(missing, Failure)
    assert "no answer is recorded" in missing.error
    assert asyncio.run(agent.predict(again)) == [down, second]


def test_a_record_of_another_agent_is_refused() -> None:
    with pytest.raises(ValueError, match="expected agent 'vlm' at look 2, got 'vlm' at look 1"):
        RecordedAgent("vlm", {2: {"a": stated("vlm", 1, 0, 0.8, 2)}})


# -- the long format


def test_a_long_table_gives_outcomes_truth_groups_and_costs(tmp_path: Path) -> None:
    answers = read(
        tmp_path,
        "a,vlm,1,rust,95%,,2.5,0.001,rust,leaf-1,,",
        'a,neighbour-vote,1,scab,,"{""scab"": 0.7, ""rust"": 0.3}",0.5,0,,,,',
        "b,vlm,,,,,4.0,,scab,leaf-1,,",
        'b,neighbour-vote,1,,,"[0.5, 0.5]",0.5,0,,,,',
        "b,vlm,2,scab,0.6,,1,0.002,,,,3",
        "b,published,1,scab,0.6,,1,0.002,,,,",
    )
    assert answers.labels == ("rust", "scab")
    assert answers.cases == ("a", "b")
    assert answers.truth.tolist() == [0, 1]
    assert answers.groups == ("leaf-1", "leaf-1")
    assert answers.grouped
    assert answers.columns == ("vlm", "neighbour-vote", "vlm@2"), "first looks, then second looks"
    assert answers.outcomes["vlm"] == [
        stated("vlm", 1, 0, 0.95, 2),
        Failure(agent="vlm", look=1, error="it gave no label"),
    ]
    vote = answers.outcomes["neighbour-vote"]
    assert vote[0] == Prediction(agent="neighbour-vote", scale="vote", scores=(0.3, 0.7))
    assert vote[1] == Prediction(agent="neighbour-vote", scale="vote", scores=(0.5, 0.5))
    assert answers.outcomes["vlm@2"][0] == Failure(agent="vlm", look=2, error="no answer is recorded")
    assert [spent.kind for spent in answers.spent.values()] == ["vlm", "vote", "vlm"]
    assert [spent.calls.tolist() for spent in answers.spent.values()] == [[1, 1], [0, 0], [1, 3]]
    assert answers.spent["vlm"].seconds.tolist() == [2.5, 4.0]
    np.testing.assert_array_equal(answers.spent["vlm"].usd, [0.001, np.nan])
    assert answers.spent["vlm@2"].seconds.tolist() == [0, 1], "what was never asked took nothing"
    assert answers.published is not None
    assert answers.published.tolist() == [-1, 1]


def test_truth_may_stand_in_rows_of_its_own(tmp_path: Path) -> None:
    header = "case,agent,look,label,confidence,probs,seconds,usd"
    lines = ("a,vlm,1,x,,,,", "a,truth,,y,,,,", "b,truth,,x,,,,", "b,vlm,1,x,,,,", "c,truth,,x,,,,")
    answers = read(tmp_path, *lines, header=header)
    assert answers.cases == ("a", "b"), "a case of which nobody said anything is no case"
    assert answers.truth.tolist() == [1, 0]


def test_asked_again_the_agents_say_what_the_file_said(tmp_path: Path) -> None:
    answers = read(tmp_path, *TWO, "b,vlm,2,rust,.7,,,,,,,", "a,head,2,rust,.7,,,,,,head,")
    assert answers.ask() == dict(answers.outcomes)
    assert list(answers.ask()) == list(answers.columns)
    assert {name: agent.name for name, agent in zip(("vlm",), answers.agents(1), strict=True)} == {"vlm": "vlm"}


def test_the_label_that_was_said_stays_the_top_one_of_equal_shares(tmp_path: Path) -> None:
    answers = with_row(tmp_path, 'a,head,1,scab,,"{""rust"": 0.5, ""scab"": 0.5}",,,,,head,')
    outcome = answers.outcomes["head"][0]
    assert isinstance(outcome, Prediction)
    assert (outcome.scale, outcome.top) == ("probability", 1)
    assert outcome.scores == pytest.approx((0.5, 0.5))


@given(st.floats(0, 1), st.sampled_from(["{}", "{:.17f}", " {} "]))
def test_a_confidence_is_read_as_it_is_written(confidence: float, form: str) -> None:
    cells = answer_rows._Cells(Path("x.csv"), 2, {"confidence": form.format(confidence).strip()})
    assert cells.share("confidence") == pytest.approx(confidence, abs=1e-16)


# -- stated fallbacks


def test_a_label_that_nobody_truly_has_is_a_failure_and_a_note(tmp_path: Path) -> None:
    answers = with_row(tmp_path, "a,vlm,2,blight,.9,,,,,,,")
    assert answers.columns == ("vlm",)
    assert answers.notes == (
        "vlm@2: 1 of 2 cases failed: it said 'blight', which is no label here.",
        "vlm@2: 1 of 2 cases failed: no answer is recorded.",
        "vlm@2 never answered and is left out.",
    )
    shares = with_row(tmp_path, 'a,head,1,rust,,"{""rust"": 0.6, ""blight"": 0.4}",,,,,,')
    assert "it gave a share to 'blight'" in shares.notes[0]
    none = with_row(tmp_path, 'a,head,1,rust,,"{""rust"": 1, ""blight"": 0}",,,,,,')
    assert none.outcomes["head"][0] == Prediction(agent="head", scale="probability", scores=(1.0, 0.0))


def test_where_only_some_answers_have_shares_all_count_by_label_and_confidence(tmp_path: Path) -> None:
    rows = ('a,head,1,rust,,"{""rust"": 0.6, ""scab"": 0.4}",,,,,,', "b,head,1,rust,.8,,,,,,,")
    answers = read(tmp_path, *TWO, *rows)
    assert answers.outcomes["head"] == [stated("head", 1, 0, 0.6, 2), stated("head", 1, 0, 0.8, 2)]
    assert "1 of 2 answers" in answers.notes[0]


def test_shares_that_are_rounded_are_divided_by_their_sum(tmp_path: Path) -> None:
    answers = with_row(tmp_path, 'a,head,1,rust,,"{""rust"": 0.66, ""scab"": 0.33}",,,,,,')
    outcome = answers.outcomes["head"][0]
    assert isinstance(outcome, Prediction)
    assert outcome.scores == pytest.approx((2 / 3, 1 / 3))


def test_an_agent_that_is_constant_is_named_and_one_without_answers_left_out(tmp_path: Path) -> None:
    lines = [
        "a,vlm,1,rust,90%,,,,rust,,,",
        "b,vlm,1,rust,.9,,,,scab,,,",
        "a,mute,1,,,,,,rust,,,",
        "z,truth,1,rust,,,,,,,,",
    ]
    answers = read(tmp_path, *lines)
    assert answers.columns == ("vlm",)
    assert answers.cases == ("a", "b")
    assert answers.notes == (
        "Cases of which nothing but the truth is known are left out: 1.",
        "vlm says .9 to everything, which tells nothing beyond its label.",
        "vlm always says 'rust', which tells nothing about a case.",
        "mute: 1 of 2 cases failed: it gave no label.",
        "mute: 1 of 2 cases failed: no answer is recorded.",
        "mute never answered and is left out.",
    )


def test_a_label_is_the_same_whether_a_letter_is_one_sign_or_two(tmp_path: Path) -> None:
    one, two = "F\u00e4ule", "Fa\u0308ule"
    shares = json.dumps({two: 0.75, "scab": 0.25}).replace('"', '""')
    answers = read(tmp_path, f'a,vlm,1,{two},,"{shares}",,,{one},,,', f"b,vlm,1,{one},.9,,,,scab,,,")
    assert answers.labels == (one, "scab")
    assert [outcome.top for outcome in answers.outcomes["vlm"] if isinstance(outcome, Prediction)] == [0, 0]


# -- refused


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('a,head,1,rust,,"{""rust"": 0.6, ""scab"": 0.3}",,,,,,', "line 4: probs add up to 0.9, not to 1"),
        ('a,head,1,rust,,"{""rust"": NaN, ""scab"": 1}",,,,,,', "line 4: probs is"),
        ('a,head,1,rust,,"{""rust"": 1.5, ""scab"": -0.5}",,,,,,', "line 4: probs is"),
        ('a,head,1,rust,,"{""rust"": 0.5, ""rust"": 0.5}",,,,,,', "line 4: probs is"),
        ('a,head,1,rust,,"{""rust"": true}",,,,,,', "line 4: probs is"),
        ("a,head,1,rust,,rust,,,,,,", "line 4: probs is 'rust'"),
        ("a,head,1,rust,," + "[" * 40_000 + ",,,,,,", "line 4: probs is"),
        ("a,head,1,rust,," + "1" * 60_000 + ",,,,,,", "probs has 60,000 characters"),
        ('a,head,1,scab,,"{""rust"": 0.6, ""scab"": 0.4}",,,,,,', "not the label of its highest share"),
        ("a,head,1,rust,95,,,,,,,", "confidence is '95'"),
        ("a,head,1,rust,nan,,,,,,,", "confidence is 'nan'"),
        ("a,head,1,rust,high,,,,,,,", "confidence is 'high'"),
        ("a,head,1,rust,-1%,,,,,,,", "confidence is '-1%'"),
        ("a,head,1,rust,.9,,-1,,,,,", "seconds is '-1'"),
        ("a,head,1,rust,.9,,,inf,,,,", "usd is 'inf'"),
        ("a,head,3,rust,.9,,,,,,,", "look is '3'"),
        ("a,head,1,rust,.9,,1e300,,,,,", "seconds is '1e300'"),
        ("a,vlm,2,rust,.9,,,,,,,\nb,vlm,2,rust,.9,,,,,,vote,", "lines 4 and 5: 'vlm' is of two kinds, none and vote"),
        ("a,head,x,rust,.9,,,,,,,", "look is 'x'"),
        ("a,vlm,1,rust,.9,,,,,,,", "lines 2 and 4: two answers of 'vlm' for case 'a' at look 1"),
        ("a,vlm@2,1,rust,.9,,,,,,,", "has an @ in its name"),
        ("a,head,1,rust,.9,,,,scab,,,", "the truth of case 'a' is 'scab', and was 'rust' before"),
        ("a,truth,,,,,,,,,,", "the true label of case 'a' is empty"),
        ("c,vlm,1,rust,.9,,,,,,,", "does not say the true label of 'c'"),
        (",vlm,1,rust,.9,,,,,,,", "case or agent is empty"),
        ("a,head,1,rust,.9,,,,,,robot,", "kind is 'robot'"),
        ("a,head,1,rust", "4 values for 12 columns"),
        ("a,head,1," + "r" * 201 + ",.9,,,,,,,", "label has 201 characters"),
        ('a,head,1,"rust', "line 4: unexpected end of data"),
    ],
)
def test_a_row_that_cannot_be_meant_is_refused_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_row(tmp_path, row)
    assert message in str(caught.value)
    assert "answers.csv" in caught.value.what
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"path,label\nx,y\n", "no recorded answers"),
        (b"case,agent,label,label\n", "two columns 'label'"),
        (b"case;agent;label;truth\na;vlm;rust;rust\n", "Put commas between the columns"),
        (b"Category,A@2,A@2_confidence,A,A_confidence,A_1,A_1_confidence\n", "has a column 'A@2' for an agent"),
        (b"Category,,_confidence\n", "has a column '' for an agent"),
        (b"case,agent,label\n", "no answer of any agent"),
        (b"case,agent,label,truth\na,vlm,rust,rust\nb,vlm,rust,rust\n", "1 true label: rust"),
        (b"case,agent,label,truth\na,vlm,x,rust\nb,vlm,,scab\n", "no agent ever gave one of the labels"),
        (b"case,agent,label,truth\na,published,x,rust\nb,published,,scab\n", "no answer of any agent"),
        ("case,agent,label,truth\na,vlm,Fäule,Fäule\n".encode("latin-1"), "not UTF-8 (byte"),
        (b"\xff\xfec\x00a\x00", "not UTF-8 (byte 0)"),
        (b'case,agent,label\n"' + b"x" * 200_000 + b'",b,c\n', "field larger than field limit"),
    ],
)
def test_a_file_that_holds_no_answers_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "answers.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_answers(path)
    assert message in str(caught.value)
    assert "answers.csv" in caught.value.what
    assert caught.value.remedy


def test_a_row_over_several_lines_is_named_by_its_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 4: look is '3'"):
        with_row(tmp_path, '"a\n\nb",head,3,rust,.9,,,,,,,')


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="There is no file"):
        read_answers(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="is not a file"):
        read_answers(tmp_path)
    monkeypatch.setattr(answer_rows, "MAX_BYTES", 2**20)
    (tmp_path / "large.csv").write_bytes(bytes(2**20 + 1))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        read_answers(tmp_path / "large.csv")
    monkeypatch.setattr(answer_rows, "MAX_ROWS", 1)
    with pytest.raises(ConfigError, match="more than 1 answers"):
        read(tmp_path, *TWO)


def test_more_agents_than_a_panel_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than 64 agents"):
        read(tmp_path, *TWO, *(f"a,agent-{i},1,rust,,,,,,,," for i in range(70)))


# -- wide tables


def test_a_wide_table_is_known_by_its_columns(tmp_path: Path) -> None:
    header = (
        "id,Category,RAG,RAG_confidence,RAG_response,RAG_time,RAG_cost,Llama_1,Llama_1_confidence,Llama,Llama_confidence,"
        "Orchestrator_Re_Evaluation_agent_1,Orchestrator,Orchestrator_confidence,Orchestrator_time"
    )
    response = json.dumps([{"category": "y", "confidence": 0.75}, {"category": "x", "confidence": 0.25}])
    quoted = '"' + response.replace('"', '""') + '"'
    lines = (f"1,x,y,0.75,{quoted},1.5,0,x,0.9,y,0.8,look again,x,0.9,3", f"2,y,y,0.75,{quoted},1.5,0,x,0.9,y,0.8,,,,3")
    answers = read(tmp_path, *lines, header=header)
    assert answers.columns == ("neighbour-vote", "Llama", "Llama@2")
    assert answers.outcomes["neighbour-vote"][0] == Prediction(
        agent="neighbour-vote", scale="vote", scores=(0.25, 0.75)
    )
    assert answers.outcomes["Llama@2"][0] == stated("Llama", 2, 1, 0.8, 2)
    assert answers.published is not None
    assert answers.published.tolist() == [0, -1]
    assert answers.published_spent is not None
    assert answers.published_spent.calls.tolist() == [2, 2], "one to say what to look at again, one to decide"


def test_the_published_answers_are_read_whole(data_folder: Path) -> None:
    folder = data_folder / "orchestrator-agent-trust"
    zero_shot, with_retrieval = (
        read_answers(folder / f"{name}.csv") for name in ("case1_zero_shot", "case3_trust_rag")
    )
    assert zero_shot.columns == ("Qwen", "GPT")
    assert with_retrieval.columns == ("neighbour-vote", "Qwen", "GPT", "Qwen@2", "GPT@2")
    for answers in (zero_shot, with_retrieval):
        assert len(answers.cases) == 160
        assert answers.labels == ("black-rot", "healthy", "rust", "scab")
        assert not answers.notes
        assert not answers.grouped
    # Counted in the file: the vote is right in 154 of 160.
    assert int((labels_said(with_retrieval.outcomes["neighbour-vote"]) == with_retrieval.truth).sum()) == 154
