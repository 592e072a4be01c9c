"""Living track records: hand-worked standings, a ledger that survives kills, and replay that equals the live object."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secondlook.agents.errors import ConfigError
from secondlook.agents.prediction import Failure, Prediction
from secondlook.orchestrator.ledger import LONGEST_LINE, Acknowledgement, Entry, LedgerWriter, carried, read_ledger
from secondlook.orchestrator.trust import LivingRecords, Memory, Sample

LABELS = ("cat", "dog")
ALL = Memory(half_life=None)


def said(p_cat: float, look: int = 1) -> Prediction:
    return Prediction(agent="eye", look=look, scale="probability", scores=(p_cat, 1 - p_cat))


def records(recorded: float = float("nan"), **more: object) -> LivingRecords:
    return LivingRecords(LABELS, {"eye": "b1", "eye@2": "b2"}, {"eye": recorded}, **more)  # type: ignore[arg-type]


def filled(truths: str, recorded: float = float("nan"), confidence: float = 0.9) -> LivingRecords:
    """One case a letter, each called a cat: c is a cat, d is a dog."""
    found = records(recorded)
    for i, letter in enumerate(truths):
        found.update(f"{i}", "eye", 1, said(confidence), {"c": "cat", "d": "dog"}[letter])
    return found


# -- standings


def test_accuracy_and_overconfidence_by_hand() -> None:
    # Three of four right at a confidence of .9: accuracy .75, over-confident by .15.
    standing = filled("cccd").standing("eye", 1, ALL)
    assert (standing.n, standing.n_failed, standing.n_effective) == (4, 0, 4.0)
    assert standing.accuracy.value == 0.75
    assert standing.overconfidence == pytest.approx(0.15)


def test_the_interval_is_wilsons() -> None:
    from secondlook.eval.bootstrap import wilson

    found, oracle = filled("cccd" * 5).standing("eye", 1, ALL).accuracy, wilson(15, 20)
    assert (found.low, found.high) == pytest.approx((oracle.lo, oracle.hi))


def test_the_past_fades_by_half_lives() -> None:
    # Half-life of one case: the weights of wrong, right, right are 1/4, 1/2, 1, so accuracy is 1.5 / 1.75 = 6/7,
    # and the effective n (7/4)^2 / (21/16) = 7/3.
    standing = filled("dcc").standing("eye", 1, Memory(half_life=1))
    assert standing.accuracy.value == pytest.approx(6 / 7)
    assert standing.n_effective == pytest.approx(7 / 3)


def test_a_window_counts_the_last_cases_only() -> None:
    standing = filled("ddcc").standing("eye", 1, Memory(half_life=None, window=3))
    assert (standing.n, standing.accuracy.value) == (3, pytest.approx(2 / 3))


def test_precision_is_shrunk_towards_the_agents_own_accuracy_and_that_towards_its_record() -> None:
    # Recorded .8, worth 10 cases: the agent's own is (10 * .8 + 1) / (10 + 2) = 9/12 after one of two right.
    # The label's prior is worth 2 cases of that: (2 * .75 + 1) / (2 + 2) = 2.5/4.
    standing = filled("cd", recorded=0.8).standing("eye", 1, ALL)
    assert standing.precision["cat"].value == pytest.approx(2.5 / 4)
    from scipy.stats import beta

    assert standing.precision["cat"].low == pytest.approx(beta(2.5, 1.5).ppf(0.025))
    assert standing.precision["cat"].high == pytest.approx(beta(2.5, 1.5).ppf(0.975))


def test_a_label_never_said_has_no_precision() -> None:
    precision = filled("cd").standing("eye", 1, ALL).precision["dog"]
    assert math.isnan(precision.value)
    assert precision.n == 0


def test_where_nothing_is_known_every_figure_is_nan_with_its_n() -> None:
    found = records()
    found.update("1", "eye", 1, said(0.9), None)
    standing = found.standing("eye", 1)
    assert (standing.n, standing.n_effective) == (0, 0.0)
    assert math.isnan(standing.accuracy.value)
    assert math.isnan(standing.overconfidence)
    assert standing.precision == {}
    assert json.loads(standing.model_dump_json())["accuracy"]["value"] is None


def test_a_failure_is_counted_and_is_no_answer() -> None:
    found = filled("cc")
    found.update("9", "eye", 1, Failure(agent="eye", error="out of words"), "cat")
    standing = found.standing("eye", 1, ALL)
    assert (standing.n, standing.n_failed, standing.accuracy.value) == (2, 1, 1.0)
    assert [e.wrong for e in found.entries("eye")] == [False, False, True]


def test_cases_that_stand_for_several_count_as_several() -> None:
    # One right that stands for 1.5 cases and one wrong that stands for .5: accuracy 1.5 / 2, effective n 4 / 2.5.
    found = records()
    found.update("1", "eye", 1, said(0.9), "cat", sample=Sample("all", 1.5))
    found.update("2", "eye", 1, said(0.9), "dog", sample=Sample("all", 0.5))
    standing = found.standing("eye", 1, ALL)
    assert (standing.accuracy.value, standing.n_effective) == (0.75, pytest.approx(1.6))


def test_cases_from_review_alone_stand_for_themselves() -> None:
    found = filled("cc")
    found.update("9", "eye", 1, said(0.9), "dog", sample=Sample("review"))
    assert found.standing("eye", 1, ALL).accuracy.value == 1.0
    assert found.standing("eye", 1, ALL, "review").accuracy.value == 0.0


# -- updates


def test_a_second_update_supersedes_the_first_in_its_place() -> None:
    found = filled("cd")
    assert found.update("0", "eye", 1, said(0.9), "dog")
    assert [e.truth for e in found.entries("eye")] == ["dog", "dog"]


def test_an_update_that_says_nothing_new_is_ignored_and_none_takes_a_truth_away() -> None:
    found = filled("c")
    assert not found.update("0", "eye", 1, said(0.9), "cat")
    assert not found.update("0", "eye", 1, said(0.9), None)
    assert found.entries("eye")[0].truth == "cat"


def test_another_binding_begins_from_nothing() -> None:
    lines = list(filled("cccd")._entries.values())
    other = LivingRecords(LABELS, {"eye": "new"}, lines=lines)
    assert other.standing("eye", 1).n == 0
    assert len(other) == 4
    other.update("0", "eye", 1, said(0.9), "cat")
    assert (len(other), other.standing("eye", 1).n) == (5, 1)


def test_an_unknown_truth_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown label 'cow'"):
        records().update("1", "eye", 1, said(0.9), "cow")


# -- the file


def entries(n: int) -> list[Entry]:
    return [Entry(case=f"{i}", agent="eye", look=1, binding="b1", label="cat", confidence=0.9) for i in range(n)]


def test_a_torn_last_line_is_dropped_on_reading_and_cut_off_on_writing(tmp_path: Path) -> None:
    path = tmp_path / "track.jsonl"
    with LedgerWriter(path) as writer:
        for entry in entries(3):
            writer.append(entry)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert list(read_ledger(path)) == entries(3)[:2]
    with LedgerWriter(path) as writer:
        writer.append(entries(4)[3])
    assert list(read_ledger(path)) == [*entries(2), entries(4)[3]]


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_a_file_torn_anywhere_keeps_its_whole_lines(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "track.jsonl"
    with LedgerWriter(path) as writer:
        writer.append(entries(1)[0])
    path.write_bytes(path.read_bytes()[:cut])
    with LedgerWriter(path):
        assert path.read_bytes() == b""


def test_a_whole_line_that_is_none_of_a_ledger_is_named(tmp_path: Path) -> None:
    path = tmp_path / "track.jsonl"
    path.write_text(entries(1)[0].model_dump_json() + '\n{"kind":"entry","case":3}\n')
    with pytest.raises(ConfigError, match=r"track.jsonl, line 2 is not a line of a ledger: entry"):
        list(read_ledger(path))
    path.write_bytes(b"x" * (LONGEST_LINE + 1) + b"\n")
    with pytest.raises(ConfigError, match=r"line 1 is longer than"):
        list(read_ledger(path))


def test_a_missing_ledger_is_an_empty_one(tmp_path: Path) -> None:
    assert list(read_ledger(tmp_path / "none.jsonl")) == []


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path / "t"), pytest.raises(ConfigError, match="Another process is writing"):
        LedgerWriter(tmp_path / "t")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        LedgerWriter(tmp_path / "no" / "folder")


def test_a_ledger_is_carried_while_nobody_writes(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    with LedgerWriter(old) as writer:
        writer.append(entries(1)[0])
    with carried(old, new), pytest.raises(ConfigError, match="Another process"):
        LedgerWriter(old)
    assert list(read_ledger(new)) == entries(1)
    with carried(tmp_path / "none", tmp_path / "also-none"):
        pass


updates = st.lists(
    st.tuples(
        st.sampled_from("abcde"),
        st.sampled_from([1, 2]),
        st.one_of(st.none(), st.floats(0, 1)),
        st.sampled_from(["cat", "dog", None]),
        st.sampled_from([Sample(), Sample("review"), Sample("all", 1.5)]),
        st.sampled_from([None, "g1", "g2"]),
        st.integers(0, 9),
    ),
    max_size=25,
)


@given(told=updates, half_life=st.floats(0.5, 50))
def test_replaying_the_file_gives_the_same_state_as_the_live_object(
    tmp_path_factory: pytest.TempPathFactory, told: list[tuple], half_life: float
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "track.jsonl"
    with LedgerWriter(path) as writer:
        live = records(0.7, writer=writer)
        for case, look, p, truth, sample, group, dice in told:
            outcome = Failure(agent="eye", look=look, error="no") if p is None else said(p, look)
            live.update(case, "eye", look, outcome, truth, sample=sample, group=group)
            if dice == 0:
                live.acknowledge("somebody")
    replayed = records(0.7, lines=read_ledger(path))
    for name in ("eye", "eye@2"):
        assert replayed.entries(name) == live.entries(name)
        assert replayed.entries(name, since_seen=True) == live.entries(name, since_seen=True)
    assert replayed.acknowledged == live.acknowledged
    for look in (1, 2):
        a, b = (r.standing("eye", look, Memory(half_life=half_life)).model_dump_json() for r in (live, replayed))
        assert a == b
    assert np.isfinite(live.standing("eye", 1).n_effective)


def test_an_acknowledgement_divides_what_the_detectors_see() -> None:
    found = filled("cc")
    found.acknowledge("me")
    found.update("new", "eye", 1, said(0.9), "cat")
    assert [e.case for e in found.entries("eye", since_seen=True)] == ["new"]
    assert found.acknowledged == (Acknowledgement(by="me"),)
    assert found.standing("eye", 1).n == 3
