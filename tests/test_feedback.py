"""Feedback: from a run and a reviewer's CSV to standings, holds and back to accepting, on real models and runs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from command import Ran, run_cli
from toy import LABELS, evaluated, toy, toy_image

from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.errors import ConfigError
from secondlook.eval.evaluate import evaluate, triage
from secondlook.eval.feedback import Feedback, open_feedback, sampled
from secondlook.eval.fit import fit
from secondlook.eval.tally import Row, read_rows
from secondlook.orchestrator.binding import changed_parts
from secondlook.orchestrator.build import load_pipeline
from secondlook.orchestrator.fitted import INDEX_FOLDER, MODEL_FILE
from secondlook.orchestrator.ledger import TRACK_FILE, read_ledger


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the model, to be written to."""
    return Path(shutil.copytree(toy().model, tmp_path / "model"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A triage of the 36 test images."""
    t, out = toy(), tmp_path_factory.mktemp("feedback") / "run"
    with EmbeddingCache(t.home / "cache") as store:
        triage(t.data / "test", t.model, out, cache=store, report=False)
    return out


def rows_of(run: Path) -> list[Row]:
    return list(read_rows(run / "verdicts.jsonl"))


def truth_of(row: Row) -> str:
    return row.id.split("/")[0]


def write(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def told(path: Path, rows: list[Row]) -> Path:
    return write(path, ("id", "label"), [(row.id, truth_of(row)) for row in rows])


def standing(found: Feedback, agent: str, look: int, scope: str = "all") -> tuple[int, float]:
    [one] = [s for s in found.standings if (s.agent, s.look, s.scope) == (agent, look, scope)]
    return one.n, one.accuracy.value


def test_an_evaluation_brings_every_agent_and_the_system_their_standing(model: Path) -> None:
    run, evaluation = evaluated()
    found = open_feedback(model, run=run)
    assert (found.n, found.known, found.seen) == (36, 36, 0)
    from secondlook.orchestrator.trust import Memory

    plain = open_feedback(model, memory=Memory(half_life=None))
    assert standing(plain, "secondlook", 0) == (36, pytest.approx(evaluation.metrics["acc/top1"]))
    again = sum(len(row.looks) > 1 for row in rows_of(run))
    asked = {(s.agent, s.look): s.n for s in plain.standings}
    assert asked == {
        ("secondlook", 0): 36, ("zero-shot", 1): 36, ("linear-head", 1): 36,
        ("zero-shot", 2): again, ("linear-head", 2): again, ("neighbour-vote", 2): again,
    }  # fmt: skip


def test_the_same_feedback_twice_writes_nothing_new(model: Path, run: Path, tmp_path: Path) -> None:
    truths = told(tmp_path / "t.csv", rows_of(run)[:9])
    first = open_feedback(model, run=run, truths=truths)
    size = (model / TRACK_FILE).stat().st_size
    second = open_feedback(model, run=run, truths=truths)
    assert first.written > 0
    assert (second.written, (model / TRACK_FILE).stat().st_size) == (0, size)
    assert [s.model_dump_json() for s in second.standings] == [s.model_dump_json() for s in first.standings]


def test_truths_may_be_named_by_path_and_come_in_parts(model: Path, run: Path, tmp_path: Path) -> None:
    rows = rows_of(run)
    by_path = [(str(row.path), truth_of(row)) for row in rows[:20]]
    assert open_feedback(model, run=run, truths=write(tmp_path / "a.csv", ("path", "label"), by_path)).known == 20
    found = open_feedback(model, run=run, truths=told(tmp_path / "b.csv", rows[20:]))
    assert (found.known, standing(found, "linear-head", 1)[0]) == (36, 36)


def test_a_copy_of_the_verdicts_table_is_read_by_its_column_truth(model: Path, run: Path, tmp_path: Path) -> None:
    with (run / "verdicts.csv").open() as file:
        lines = list(csv.DictReader(file))
    for line in lines[:5]:
        line["truth"] = "red"
    table = write(tmp_path / "t.csv", tuple(lines[0]), [tuple(line.values()) for line in lines])
    found = open_feedback(model, run=run, truths=table)
    assert found.known == 5
    truths = {e.case: e.truth for e in read_ledger(model / TRACK_FILE) if e.kind == "entry" and e.truth}
    assert set(truths.values()) == {"red"}


def test_a_mistyped_truth_is_put_right_by_the_next_file(model: Path, run: Path, tmp_path: Path) -> None:
    row = rows_of(run)[0]
    wrong = next(label for label in LABELS if label != row.label)
    for label, accuracy in ((wrong, 0.0), (row.label, 1.0)):
        truths = write(tmp_path / "t.csv", ("id", "label"), [(row.id, str(label))])
        found = open_feedback(model, run=run, truths=truths)
        n, value = standing(found, "secondlook", 0, "accepted" if row.action == "accept" else "review")
        assert (n, value) == (1, accuracy)


# -- what the known cases stand for


def test_each_known_case_stands_for_its_kind() -> None:
    # 8 accepted, 2 known; 2 in review, both known. Of 10, the accepted are .8: each weighs .8 * 4 / 2 = 1.6,
    # each of review .2 * 4 / 2 = .4; their mean is 1.
    cases = [f"{i}" for i in range(10)]
    found = sampled(cases, dict.fromkeys(("0", "1", "8", "9"), "x"), set(cases[:8]))
    assert (found[True].weight, found[False].weight) == pytest.approx((1.6, 0.4))
    assert {sample.scope for sample in found.values()} == {"all"}


def test_truths_from_review_alone_say_nothing_of_all(model: Path, run: Path, tmp_path: Path) -> None:
    rows = rows_of(run)
    reviewed = [row for row in rows if row.action == "review"]
    assert 0 < len(reviewed) < len(rows)
    found = open_feedback(model, run=run, truths=told(tmp_path / "t.csv", reviewed))
    assert standing(found, "linear-head", 1)[0] == 0
    assert standing(found, "linear-head", 1, "review")[0] == len(reviewed)
    accepted = len(rows) - len(reviewed)
    assert found.notes[0] == (
        f"None of the {accepted} accepted cases has a known truth, so their error rate is unknown. "
        "Have 15 of them checked, drawn at random."
    )


def test_without_a_truth_belief_is_watched_all_the_same(model: Path, run: Path) -> None:
    found = open_feedback(model, run=run)
    assert (found.n, found.known, found.written) == (36, 0, 36)
    entries = [e for e in read_ledger(model / TRACK_FILE) if e.kind == "entry"]
    assert all(e.agent == "secondlook" and e.signs is not None for e in entries)


# -- bad input


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (("id", "label"), [("nobody.png", "red")], r"not in the run: nobody.png \(line 2\)"),
        (("id", "label"), [("{0}", "purple")], "line 2: 'purple' is no label of the model"),
        (("id", "label"), [("{0}", "red"), ("{0}", "red")], "line 3: there is another row for"),
        (("id", "answer"), [("{0}", "red")], "has no column truth or label"),
        (("name", "label"), [("{0}", "red")], "has no column id or path"),
        (("id", "label"), [], "holds no row"),
        (("id", "label", "label"), [("{0}", "red", "red")], "two columns label"),
        (("path", "label"), [("elsewhere.png", "red")], "not in the run"),
    ],
)
def test_a_file_of_truths_that_cannot_be_is_named(
    model: Path, run: Path, tmp_path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]], message: str
) -> None:
    first = rows_of(run)[0].id
    truths = write(tmp_path / "t.csv", header, [tuple(cell.format(first) for cell in row) for row in rows])
    with pytest.raises(ConfigError, match=message) as error:
        open_feedback(model, run=run, truths=truths)
    assert error.value.remedy
    assert not (model / TRACK_FILE).exists()


def test_a_file_that_is_not_text_or_not_there_is_named(model: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"id,label\n\xff\xfe\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        open_feedback(model, run=run, truths=tmp_path / "t.csv")
    with pytest.raises(ConfigError, match="There is no file"):
        open_feedback(model, run=run, truths=tmp_path / "none.csv")
    # A quote that is never closed would make one cell of all lines below it.
    (tmp_path / "t.csv").write_text('id,label\n"' + rows_of(run)[0].id + ",red\n")
    with pytest.raises(ConfigError, match="unexpected end of data"):
        open_feedback(model, run=run, truths=tmp_path / "t.csv")
    with pytest.raises(ConfigError, match="holds no verdicts"):
        open_feedback(model, run=tmp_path)


def test_a_run_of_another_model_is_refused(model: Path, run: Path) -> None:
    found = json.loads((model / MODEL_FILE).read_text())
    found["notes"] = ["another"]
    (model / MODEL_FILE).write_text(json.dumps(found))
    with pytest.raises(ConfigError, match="was judged by the model"):
        open_feedback(model, run=run)


def test_images_that_the_model_was_fitted_on_are_left_out(model: Path, tmp_path: Path) -> None:
    t = toy()
    with EmbeddingCache(t.home / "cache") as store:
        evaluate(t.data, t.model, tmp_path / "r", cache=store, split="calibration", allow_seen=True, report=False)
    found = open_feedback(model, run=tmp_path / "r")
    assert (found.n, found.written) == (0, 0)
    assert found.seen == 84
    assert "84 cases were used to fit the model and are left out." in found.notes


# -- what triage makes of it


def judged(model: Path, out: Path, **more: object) -> dict[str, int]:
    t = toy()
    with EmbeddingCache(t.home / "cache") as store:
        found = triage(t.data / "test", model, out, cache=store, report=False, **more)  # type: ignore[arg-type]
    return {"accepted": found.accepted, **found.reasons}


def edit_calibrator(model: Path) -> None:
    """Make the first look's head a little less sure, as an editor could."""
    found = json.loads((model / MODEL_FILE).read_text())
    found["calibrators"]["linear-head"]["1"] = {"kind": "temperature", "temperature": 1.1}
    (model / MODEL_FILE).write_text(json.dumps(found))


def test_an_edited_calibrator_sends_to_review_until_trust_is_earned_again(model: Path, tmp_path: Path) -> None:
    before = judged(model, tmp_path / "before")
    edit_calibrator(model)
    held = judged(model, tmp_path / "held")
    assert before["accepted"] > 0
    assert held["accepted"] == 0
    assert held["unproven"] == pytest.approx(before["accepted"], abs=3)
    [row] = [row for row in rows_of(tmp_path / "held") if row.reason == "unproven"][:1]
    assert "the calibrator of linear-head has changed since it was measured: 0 of at least 15" in row.why
    # Every second image is told as the model says, so that the head has earned its trust again.
    rows = rows_of(tmp_path / "held")
    truths = write(tmp_path / "t.csv", ("id", "label"), [(row.id, str(row.label)) for row in rows])
    assert open_feedback(model, run=tmp_path / "held", truths=truths).unproven == ()
    assert judged(model, tmp_path / "after")["accepted"] == held["unproven"]


def test_a_run_judged_before_a_part_changed_is_no_feedback_for_what_it_is_now(model: Path, tmp_path: Path) -> None:
    from secondlook.retrieval.index import MANIFEST

    judged(model, tmp_path / "r")
    manifest = model / INDEX_FOLDER / MANIFEST
    manifest.write_text(manifest.read_text().replace('"content": "', '"content": "0'))
    with pytest.raises(ConfigError, match="have changed since"):
        open_feedback(model, run=tmp_path / "r")
    pipeline = load_pipeline(model)
    assert {c for u in pipeline.watch.unproven for c in u.changed} == {"index"}  # type: ignore[union-attr]
    pipeline.close()


def test_another_encoder_is_refused_without_a_ledger_and_held_back_with_one(model: Path, tmp_path: Path) -> None:
    from tiny_clip import write_tiny_clip

    found = json.loads((model / MODEL_FILE).read_text())
    clip = write_tiny_clip(tmp_path / "clip")
    config = json.loads((clip / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {**config.get("preprocess_cfg", {}), "mean": [0.4, 0.4, 0.4]}
    (clip / "open_clip_config.json").write_text(json.dumps(config))
    found["config"]["encoder"]["model"] = str(clip)
    (model / MODEL_FILE).write_text(json.dumps(found))
    with pytest.raises(ConfigError, match="was fitted with the encoder"):
        load_pipeline(model)
    (model / TRACK_FILE).touch()
    assert judged(model, tmp_path / "r")["accepted"] == 0
    now = open_feedback(model)
    assert {part for column in now.unproven for part in column.changed} == {"encoder"}
    assert changed_parts("encoder:a", "encoder:b") == ("encoder",)


def test_without_an_alarm_there_is_nothing_to_acknowledge(model: Path) -> None:
    run, _ = evaluated()
    found = open_feedback(model, run=run, acknowledge="me")
    assert any("no alarm to acknowledge" in note for note in found.notes)
    assert "acknowledgement" not in (model / TRACK_FILE).read_text()
    with pytest.raises(ConfigError, match="5,000 characters"):
        open_feedback(model, acknowledge="x" * 5000)


def test_names_that_a_ledger_cannot_keep_are_refused(model: Path, run: Path, tmp_path: Path) -> None:
    long = Path(shutil.copytree(run, tmp_path / "long"))
    lines = (long / "verdicts.jsonl").read_text().splitlines()
    first = json.loads(lines[0]) | {"group": "x" * 5000}
    (long / "verdicts.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
    with pytest.raises(ConfigError, match="cannot be kept: group"):
        open_feedback(model, run=long)


def test_a_kill_at_any_byte_loses_nothing_that_the_same_command_does_not_bring_back(model: Path) -> None:
    run, _ = evaluated()
    open_feedback(model, run=run)
    whole = (model / TRACK_FILE).read_bytes()
    for cut in (1, len(whole) // 3, len(whole) - 1):
        (model / TRACK_FILE).write_bytes(whole[:cut])
        open_feedback(model, run=run)
        assert (model / TRACK_FILE).read_bytes() == whole


def test_an_alarm_holds_acceptance_until_it_is_acknowledged(model: Path, tmp_path: Path, run: Path) -> None:
    # A hundred pictures, each of them said to be something else than the model says: reviewers of another mind.
    folder = tmp_path / "new"
    folder.mkdir()
    for i in range(60):
        toy_image(LABELS[i % 3], 500 + i).save(folder / f"{i}.png")
    t = toy()
    with EmbeddingCache(t.home / "cache") as store:
        triage(folder, model, tmp_path / "r", cache=store, report=False)
    rows = [(row.id, next(x for x in LABELS if x != row.label)) for row in rows_of(tmp_path / "r")]
    found = open_feedback(model, run=tmp_path / "r", truths=write(tmp_path / "t.csv", ("id", "label"), rows))
    assert "the error rate of accepted cases" in {alarm.what for alarm in found.alarms}
    held = judged(model, tmp_path / "held")
    assert held["accepted"] == 0
    assert held["drift"] > 0
    assert open_feedback(model, acknowledge="the reviewers were wrong").alarms == ()
    assert judged(model, tmp_path / "after")["accepted"] == held["drift"]


def test_a_fit_onto_the_same_folder_keeps_the_ledger(model: Path) -> None:
    run, _ = evaluated()
    written = open_feedback(model, run=run).written
    before = (model / TRACK_FILE).read_bytes()
    t = toy()
    fit(t.data, model, config=t.config.model_copy(update={"target_risk": 0.2}))
    assert (model / TRACK_FILE).read_bytes() == before
    found = open_feedback(model)
    assert found.entries == written
    # Another model: its own verdicts begin anew, agents that are made as before go on.
    assert standing(found, "secondlook", 0)[0] == 0
    assert standing(found, "linear-head", 1)[0] == 36


def test_a_ledger_elsewhere_is_read_where_it_is_named(model: Path, tmp_path: Path) -> None:
    run, _ = evaluated()
    open_feedback(model, run=run, ledger=tmp_path / "own.jsonl")
    assert not (model / TRACK_FILE).exists()
    assert judged(model, tmp_path / "r", ledger=tmp_path / "own.jsonl")["accepted"] > 0
    with pytest.raises(ConfigError, match="There is no ledger"):
        judged(model, tmp_path / "r2", ledger=tmp_path / "none.jsonl")


# -- the command


def command(*arguments: object) -> Ran:
    return run_cli("feedback", *arguments)


def test_the_command_prints_standings_and_one_json_object(model: Path) -> None:
    run, _ = evaluated()
    ran = command(run, "--model", model)
    assert (ran.code, ran.err) == (0, "")
    for word in ("36 cases, 36 with a known truth", "Living track records", "neighbour-vote", "verdict"):
        assert word in ran.out
    found = json.loads(command("--model", model, "--json").out, parse_constant=pytest.fail)
    assert {s["agent"] for s in found["standings"]} == {"secondlook", "zero-shot", "linear-head", "neighbour-vote"}
    assert "Living track records" in run_cli("show", model).out
    assert "Living track records" not in run_cli("show", toy().model).out


def test_the_command_ends_with_a_remedy(model: Path, tmp_path: Path) -> None:
    ran = command(tmp_path, "--model", model)
    assert ran.code == 2
    assert "holds no verdicts.jsonl" in ran.err
    assert "try:" in ran.err
    assert command("--model", model, "--acknowledge", " ").code == 2
