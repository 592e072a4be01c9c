"""The run folder: whole lines only, one writer, nobody else's things touched."""

from __future__ import annotations

import csv
import json
import os
import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secondlook.agents.errors import ConfigError
from secondlook.eval.run_folder import LOCK, MANIFEST, TABLE, VERDICTS, Manifest, RunFolder, write_whole
from secondlook.orchestrator.verdict import LookTrail, Verdict

MANIFEST_A = Manifest(
    kind="triage",
    data="photos",
    model="abc",
    model_path="m",
    encoder="e",
    options={"second_look": True},
    version="0",
    created="now",
)


def verdict(name: str, label: str = "red", path: str | None = None) -> Verdict:
    trail = LookTrail(
        look=1,
        opinions=(),
        fused_by="log-linear pool",
        probs=(0.9, 0.1),
        trust=0.8,
        threshold=0.7,
        decision="accept",
        why="so",
    )
    return Verdict(
        id=name,
        path=path,
        labels=(label, "blue"),
        label=label,
        confidence=0.9,
        probs=(0.9, 0.1),
        prediction_set=(label,),
        action="accept",
        reason="trusted",
        why="so",
        trust=0.8,
        typicality=0.5,
        looks=(trail,),
        model="abc",
    )


def write_run(folder: Path, names: list[str]) -> bytes:
    with RunFolder(folder, MANIFEST_A) as run:
        for name in names:
            run.append(verdict(name))
    return (folder / VERDICTS).read_bytes()


def test_a_run_that_is_opened_again_knows_what_is_done_and_appends(tmp_path: Path) -> None:
    write_run(tmp_path / "run", ["a", "b"])
    with RunFolder(tmp_path / "run", MANIFEST_A) as run:
        assert run.done == {"a", "b"}
        run.append(verdict("c"), truth="blue")
        assert [(row.id, row.truth) for row in run.rows()] == [("a", None), ("b", None), ("c", "blue")]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1))
def test_a_kill_at_any_byte_loses_the_line_in_flight_and_no_other(tmp_path: Path, cut: float) -> None:
    folder = tmp_path / "run"
    whole = write_run(folder, [])
    if not whole:
        whole = write_run(folder, ["a", "ü", "c"])
    kept = whole[: round(cut * len(whole))]
    (folder / VERDICTS).write_bytes(kept)
    with RunFolder(folder, MANIFEST_A) as run:
        assert (folder / VERDICTS).read_bytes() == kept[: kept.rfind(b"\n") + 1]
        assert len(run.done) == kept.count(b"\n")
        for name in ("a", "ü", "c"):
            if name not in run.done:
                run.append(verdict(name))
    assert (folder / VERDICTS).read_bytes() == whole
    os.truncate(folder / VERDICTS, 0)


def test_a_last_line_without_its_end_is_torn_even_where_it_is_whole_json(tmp_path: Path) -> None:
    # Appended to as it is, two verdicts would stand on one line and neither could be read.
    whole = write_run(tmp_path / "run", ["a", "b"])
    (tmp_path / "run" / VERDICTS).write_bytes(whole[:-1])
    with RunFolder(tmp_path / "run", MANIFEST_A) as run:
        assert run.done == {"a"}
        run.append(verdict("b"))
    assert (tmp_path / "run" / VERDICTS).read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_named_and_nothing_after_it_is_thrown_away(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "run", ["a", "b", "c"])
    lines = whole.splitlines(keepends=True)
    damaged = lines[0] + b"{oops}\n" + lines[2]
    (tmp_path / "run" / VERDICTS).write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"verdicts.jsonl, line 2 is not a verdict"):
        RunFolder(tmp_path / "run", MANIFEST_A)
    assert (tmp_path / "run" / VERDICTS).read_bytes() == damaged


def test_a_second_writer_is_refused_until_the_first_has_closed(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", MANIFEST_A), pytest.raises(ConfigError, match="Another process is writing to"):
        RunFolder(tmp_path / "run", MANIFEST_A)
    RunFolder(tmp_path / "run", MANIFEST_A).close()


def test_a_refused_run_lets_go_of_the_lock(tmp_path: Path) -> None:
    write_run(tmp_path / "run", ["a"])
    for _ in range(2):
        with pytest.raises(ConfigError, match="holds another run"):
            RunFolder(tmp_path / "run", MANIFEST_A.model_copy(update={"model": "def"}))
    RunFolder(tmp_path / "run", MANIFEST_A).close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "evaluate"}, "now the kind is evaluate"),
        ({"data": "others"}, "now the data is others"),
        ({"model": "def"}, "now the model is def"),
        ({"options": {"second_look": False}}, "now second_look differs"),
        ({"options": {"second_look": False, "split": "test"}}, "now second_look and split differ"),
    ],
)
def test_another_run_is_refused_with_what_differs(tmp_path: Path, change: dict[str, object], says: str) -> None:
    write_run(tmp_path / "run", ["a"])
    with pytest.raises(ConfigError, match=says):
        RunFolder(tmp_path / "run", MANIFEST_A.model_copy(update=change))


def test_version_and_notes_do_not_keep_a_run_from_being_resumed(tmp_path: Path) -> None:
    write_run(tmp_path / "run", ["a"])
    later = MANIFEST_A.model_copy(update={"version": "1", "created": "later", "notes": ("n",)})
    with RunFolder(tmp_path / "run", later) as run:
        assert run.manifest == MANIFEST_A


def test_a_folder_of_other_things_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("mine")
    (tmp_path / "thesis.tex").write_text("mine too")
    with pytest.raises(ConfigError, match="is not a run folder"):
        RunFolder(tmp_path, MANIFEST_A)
    assert sorted(p.name for p in tmp_path.iterdir()) == [LOCK, "thesis.tex"]
    assert (tmp_path / LOCK).read_text() == "mine"


def test_what_a_kill_in_the_first_moment_leaves_is_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    (tmp_path / f"{MANIFEST}.partial").write_text('{"kind"')
    RunFolder(tmp_path, MANIFEST_A).close()


@pytest.mark.parametrize("damage", ["", "[]", '{"kind": 1}', "\x00\xff"])
def test_a_damaged_manifest_is_named(tmp_path: Path, damage: str) -> None:
    write_run(tmp_path / "run", [])
    (tmp_path / "run" / MANIFEST).write_text(damage, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"manifest.json cannot be read"):
        RunFolder(tmp_path / "run", MANIFEST_A)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    # Root may write anywhere but below a file, and nobody below /proc.
    for place in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run"), tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match="cannot be written"):
            RunFolder(place, MANIFEST_A)


def test_a_full_disk_ends_the_run_with_a_sentence_and_the_same_run_goes_on(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "run", ["a"])
    run = RunFolder(tmp_path / "run", MANIFEST_A)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files stands in for a disk with room for ten bytes more.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, hard))
    try:
        with pytest.raises(ConfigError, match="cannot be written: File too large"):
            run.append(verdict("b"))
        run.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len((tmp_path / "run" / VERDICTS).read_bytes()) == len(whole) + 10
    with RunFolder(tmp_path / "run", MANIFEST_A) as again:
        assert again.done == {"a"}
    assert (tmp_path / "run" / VERDICTS).read_bytes() == whole


def test_verdicts_that_are_no_file_are_not_read_for_ever(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [])
    (tmp_path / "run" / VERDICTS).unlink()
    (tmp_path / "run" / VERDICTS).symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"verdicts.jsonl is not a file"):
        RunFolder(tmp_path / "run", MANIFEST_A)


def test_cells_that_a_spreadsheet_would_run_are_quoted(tmp_path: Path) -> None:
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "plain", "a=b"]
    with RunFolder(tmp_path / "run", MANIFEST_A) as run:
        for name in names:
            run.append(verdict(name, label="=cmd|' /C calc'!A0", path=name), truth="=cmd|' /C calc'!A0")
        table = run.write_table()
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [*(f"'{name}" for name in names[:7]), "plain", "a=b"]
    assert not [cell for row in rows for cell in row.values() if cell[:1] in ("=", "+", "-", "@", "\t", "\r", "\n")]
    assert {row["label"] for row in rows} == {row["truth"] for row in rows} == {"'=cmd|' /C calc'!A0"}


def test_the_table_holds_a_line_for_each_verdict_in_order(tmp_path: Path) -> None:
    write_run(tmp_path / "run", ["b", "a"])
    with RunFolder(tmp_path / "run", MANIFEST_A) as run:
        run.write_table()
    lines = (tmp_path / "run" / TABLE).read_text().splitlines()
    assert lines == [
        "id,path,group,label,confidence,action,reason,trust,typicality,prediction_set,truth",
        "b,,,red,0.9,accept,trusted,0.8,0.5,red,",
        "a,,,red,0.9,accept,trusted,0.8,0.5,red,",
    ]


def test_a_message_that_quotes_half_a_character_can_be_written_and_read_back(tmp_path: Path) -> None:
    odd = verdict("a").model_copy(update={"why": "\udcff.jpg is empty", "path": "\udcff.jpg"})
    with RunFolder(tmp_path / "run", MANIFEST_A) as run:
        run.append(odd)
        assert [row.path for row in run.rows()] == ["?.jpg"]


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    for line in write_run(tmp_path / "run", ["a", 'quo"te', "new\nline"]).splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_writing_whole_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_whole(tmp_path / "file", text)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "new")]
