"""Holds: what has changed is not trusted until it has earned it, and what drifts is not until somebody looked."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_world import toy_model

from secondlook.agents.prediction import Failure, Prediction
from secondlook.orchestrator.binding import bind, changed_parts, digest_of_arrays, short
from secondlook.orchestrator.fitted import Model
from secondlook.orchestrator.gate import units_needed
from secondlook.orchestrator.hold import Watch, living_records, open_watch
from secondlook.orchestrator.ledger import Entry, LedgerWriter, Signs
from secondlook.orchestrator.trust import FINAL, SYSTEM, LivingRecords, Sample
from secondlook.orchestrator.yardstick import ErrorRate, Yardstick

PARTS = {"encoder": "e1", "prompt": "p1", "arrays": "a1", "index": "i1"}
NEEDED = 45
"""Units that a target of 5 % at delta .1 takes without an error: .95^45 = .099."""


def bindings(**parts: str) -> dict[str, str]:
    calibrators = toy_model().calibrators
    return bind(calibrators, **{**PARTS, **parts})


def model(wrong: float = 3, n: int = 98) -> Model:
    """Of a recorded error of (3 + 1) / (98 + 2) = .04 at every look."""
    errors = {name: ErrorRate(wrong=wrong, n=n) for name in bindings()}
    yardstick = Yardstick(errors=errors, confidence=(0.9, 0.92, 0.95, 0.97) * 25, agreement=(0.8, 0.9) * 50)
    return toy_model().model_copy(update={"bindings": bindings(), "yardstick": yardstick})


def watch(found: Model, now: dict[str, str], truths: str = "", **more: object) -> Watch:
    """After a case a letter: r is right, w is wrong, f a failure; all at the first look of `scripted`."""
    records = living_records(found, now, ())
    tell(records, truths, **more)
    return Watch(found, now, records)


def tell(records: LivingRecords, truths: str, start: int = 0, **more: object) -> None:
    said = Prediction(agent="scripted", scale="probability", scores=(0.8, 0.1, 0.1))
    label = records.labels[0]
    for i, letter in enumerate(truths, start):
        outcome = Failure(agent="scripted", error="no") if letter == "f" else said
        truth = records.labels[1] if letter == "w" else label
        records.update(f"{i}", "scripted", 1, outcome, truth, **more)  # type: ignore[arg-type]


def tell_verdicts(records: LivingRecords, truths: str, confidence: float = 0.93, start: int = 0) -> None:
    """The system's own: r and w accepted, with a truth; - without one; R and W from review."""
    for i, letter in enumerate(truths, start):
        truth = None if letter == "-" else records.labels[letter in "wW"]
        records.record(
            Entry(
                case=f"s{i}", agent=SYSTEM, look=FINAL, binding=records.bindings[SYSTEM], label=records.labels[0],
                confidence=0.9, truth=truth, accepted=letter in "rw-",
                signs=Signs(confidence=confidence + i % 3 / 100, agreement=0.85),
            )
        )  # fmt: skip


# -- bindings


def test_a_binding_changes_with_each_of_its_parts_and_names_it() -> None:
    for part in ("encoder", "prompt", "arrays", "index"):
        now = bindings(**{part: "changed"})
        assert changed_parts(bindings()["scripted@2"], now["scripted@2"]) == (part,)
        # A first look is shown no neighbours.
        assert (now["scripted"] == bindings()["scripted"]) == (part == "index")


def test_the_arithmetic_of_a_gpu_is_no_change() -> None:
    assert bindings(encoder="e1-bfloat16") == bindings()


def test_the_systems_binding_covers_all_columns_and_the_models_numbers() -> None:
    same = short(bindings(), "m")[SYSTEM]
    assert same == short(bindings(), "m")[SYSTEM]
    assert len({same, short(bindings(index="new"), "m")[SYSTEM], short(bindings(), "other")[SYSTEM]}) == 3


def test_arrays_have_a_digest_of_names_kinds_shapes_and_numbers() -> None:
    import numpy as np

    one = {"a": np.zeros((2, 3)), "b": np.ones(2)}
    others = [
        {"a": np.zeros((3, 2)), "b": np.ones(2)},
        {"a": np.zeros((2, 3), np.float32), "b": np.ones(2)},
        {"b": np.zeros((2, 3)), "a": np.ones(2)},
        {"a": np.zeros((2, 3)), "b": np.array([1.0, 1.0000001])},
    ]
    assert digest_of_arrays(one) == digest_of_arrays(dict(reversed(one.items())))
    assert len({digest_of_arrays(one), *map(digest_of_arrays, others)}) == 5


# -- unproven


def test_what_is_as_it_was_measured_is_held_by_nothing() -> None:
    found = watch(model(), bindings())
    assert (found.unproven, found.alarms, found.at(1), found.at(2), found.changed) == ((), (), None, None, None)


def test_a_model_of_an_earlier_version_without_bindings_is_held_by_nothing() -> None:
    assert watch(toy_model(), bindings()).at(1) is None


def test_a_changed_index_holds_the_second_look_and_not_the_first() -> None:
    found = watch(model(), bindings(index="i2"))
    assert found.at(1) is None
    hold = found.at(2)
    assert hold is not None
    assert hold.reason == "unproven"
    assert hold.why == (
        "the index of scripted@2 has changed since it was measured: 0 of at least 45 cases or groups with a known "
        "truth are there."
    )
    assert found.changed is not None


@pytest.mark.parametrize(
    ("truths", "proven"),
    [
        ("r" * (NEEDED - 1), False),
        ("r" * NEEDED, True),
        # 4 errors of 45 at .04: P(X >= 4) = .110 is not significant at .1; 5 errors: .033 is.
        ("w" * 4 + "r" * 41, True),
        ("w" * 5 + "r" * 40, False),
        # A failure is no answer, and no proof.
        ("f" * 5 + "r" * 40, False),
    ],
)
def test_trust_is_earned_by_enough_cases_that_are_not_significantly_worse(truths: str, proven: bool) -> None:
    assert units_needed(0.05, 0.1) == NEEDED
    found = watch(model(), bindings(encoder="e2"), truths)
    assert ("scripted" not in {column.column for column in found.unproven}) == proven


def test_the_test_is_the_exact_binomial_one() -> None:
    from scipy.stats import binomtest

    found = watch(model(), bindings(encoder="e2"), "w" * 5 + "r" * 40)
    [column] = [column for column in found.unproven if column.column == "scripted"]
    assert column.p_value == pytest.approx(binomtest(5, 45, 0.04, alternative="greater").pvalue)
    assert "5 errors in 45 are more than the recorded 4.0% explains (p = 0.033)" in column.why


def test_groups_not_cases_earn_trust_and_review_alone_earns_none() -> None:
    grouped = watch(model(), bindings(encoder="e2"), "r" * 100, group="one leaf")
    assert {c.column: c.n for c in grouped.unproven}["scripted"] == 1
    reviewed = watch(model(), bindings(encoder="e2"), "r" * 100, sample=Sample("review"))
    assert {c.column: c.n for c in reviewed.unproven}["scripted"] == 0


# -- drift


def test_an_error_rate_that_doubles_raises_an_alarm_that_names_it() -> None:
    quiet = "r" * 24 + "w"
    assert watch(model(), bindings(), quiet * 12).alarms == ()
    found = watch(model(), bindings(), quiet * 4 + "rrrw" * 60)
    [alarm] = found.alarms
    assert alarm.what == "the error rate of scripted"
    assert alarm.why.startswith("the error rate of scripted moved from 3.1% (at most 7.7% by its record of 98) to 25")
    assert "once in 10,000 cases" in alarm.why
    hold = found.at(1)
    assert hold is not None
    assert hold.reason == "drift"


def test_an_alarm_ends_when_it_is_acknowledged_and_comes_back_when_nothing_is_done() -> None:
    found = watch(model(), bindings(), "rrrw" * 60)
    assert found.alarms
    found.records.acknowledge("new lamp")
    again = Watch(found.model, found.bindings, found.records)
    assert again.alarms == ()
    tell(again.records, "rrrw" * 60, start=1000)
    assert Watch(found.model, found.bindings, again.records).alarms


def test_accepted_cases_are_held_to_what_was_promised() -> None:
    found = watch(model(), bindings())
    tell_verdicts(found.records, ("r" * 9 + "w") * 100)
    [alarm] = found.alarms
    assert alarm.what == "the error rate of accepted cases"
    assert "at most 5.0% was promised" in alarm.why
    assert alarm.after == pytest.approx(0.1, abs=0.03)


def test_errors_in_review_do_not_count_against_the_promise() -> None:
    found = watch(model(), bindings())
    tell_verdicts(found.records, "rrrrWWWW" * 40)
    assert found.alarms == ()


def test_belief_that_falls_raises_an_alarm_without_any_truth() -> None:
    found = watch(model(), bindings())
    tell_verdicts(found.records, "-" * 100)
    before = Watch(found.model, found.bindings, found.records)
    assert before.alarms == ()
    tell_verdicts(found.records, "-" * 100, confidence=0.6, start=100)
    [alarm] = found.alarms
    assert alarm.what == "the confidence at the first look"
    assert "moved from a median of 0.935 on 100 held-out cases to 0.61" in alarm.why


def test_a_watch_reads_the_ledger_in_the_model_folder(tmp_path: Path) -> None:
    from toy_world import toy_arrays

    arrays, found = toy_arrays(), model()
    now = open_watch(tmp_path, found, arrays, "e1")
    assert len(now.records) == 0
    with LedgerWriter(tmp_path / "track.jsonl") as writer:
        tell(living_records(found, now.bindings, (), writer), "rw")
    assert len(open_watch(tmp_path, found, arrays, "e1").records) == 2
