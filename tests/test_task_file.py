"""The other words for a label: read from the file of descriptions, and refused by name where they are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from secondlook.agents.case import Task
from secondlook.agents.errors import ConfigError
from secondlook.agents.vlm_reply import read_stated
from secondlook.eval.task_file import read_task

LABELS = ("healthy", "rust", "scab")


def task_of(folder: Path, text: str) -> Task:
    path = folder / "words.yaml"
    path.write_text(text, encoding="utf-8")
    return read_task(LABELS, path)


def test_other_words_for_a_label_are_read(tmp_path: Path) -> None:
    task = task_of(tmp_path, "aliases: {rust: [Rust, ' cedar apple rust ', 5], scab: ['no']}\n")
    assert task.aliases == {"rust": ("Rust", "cedar apple rust", "5"), "scab": ("no",)}
    assert task.phrases_of("rust") == ("rust",), "with aliases, the descriptions may be left out"
    assert Task.model_validate_json(task.model_dump_json()) == task


def test_they_stand_beside_descriptions_and_costs(tmp_path: Path) -> None:
    task = task_of(tmp_path, "labels: {rust: [a rust]}\ncosts: {rust: {scab: 2}}\naliases:\n  healthy: [fine]\n")
    assert (task.phrases["rust"], task.aliases) == (("a rust",), {"healthy": ("fine",)})
    assert task.costs is not None
    assert task.costs[1] == (1, 0, 2)


@pytest.mark.parametrize(
    "text", ["labels: {rust: [a rust]}", "labels: {rust: [a rust]}\naliases:", "costs: {rust: {scab: 2}}"]
)
def test_without_any_no_other_word_is_accepted(tmp_path: Path, text: str) -> None:
    assert task_of(tmp_path, text).aliases == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("aliases: [Rust]", "words.yaml: aliases is not a table of words by label"),
        ("aliases: Rust", "words.yaml: aliases is not a table of words by label"),
        ("aliases: {rust: Rust}", "aliases: rust is not a list of texts"),
        ("aliases: {rust: [[Rust]]}", "aliases: rust is not a list of texts"),
        ("aliases: {healthy: [yes]}", "aliases: healthy is not a list of texts"),
        ("aliases: {rust: ['']}", "aliases: rust has an empty word"),
        ("aliases: {rust: [Rust, ' ']}", "aliases: rust has an empty word"),
        ("aliases: {mildew: [Mildew]}", "words.yaml: Aliases of unknown labels: \\['mildew'\\]"),
        ("aliases: {rust: [ill], scab: [ill]}", "words.yaml: The alias 'ill' stands for more than one label"),
        ("aliases: {rust: [scab]}", "words.yaml: The alias 'scab' stands for more than one label"),
        ("aliases: {}", "has no `labels:`"),
        ("labels: {rust: [a rust]}\nalias: {rust: [Rust]}", "'alias' stands for nothing"),
    ],
)
def test_words_that_are_none_are_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        task_of(tmp_path, text)
    assert refused.value.remedy


def test_a_reply_may_use_them(tmp_path: Path) -> None:
    task = task_of(tmp_path, "aliases: {rust: [Rust, cedar apple rust]}\n")
    for word in ("rust", "Rust", "cedar apple rust"):
        assert read_stated(f'{{"label": "{word}"}}', task, "eye", 1).top == 1
