"""The panel that fit chooses: compared by cross-validation on train, and no head that does not help."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from secondlook.agents.case import Task
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.errors import ConfigError
from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.heads import KINDS
from secondlook.agents.lessons import Lessons
from secondlook.agents.linear_head import LinearHead, LinearSpec
from secondlook.eval.auto_panel import choose_panel
from secondlook.eval.embedded import Embedded
from secondlook.eval.learn import lessons_of
from secondlook.eval.panel_file import read_panel
from secondlook.orchestrator.config import Config

LABELS = ("a", "b", "c")


class Seen:
    """Scales what a case's own vector says of one of its halves."""

    def __init__(self, half: int) -> None:
        self.half = half

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        return 4.0 * embeddings[:, 3 * self.half : 3 * self.half + 3].astype(np.float64)

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        return {}


class SeenSpec(HeadSpec):
    """Learns nothing: knows one half of the vector, or raises."""

    kind: Literal["seen"] = "seen"
    half: int = 0
    broken: bool = False

    def fit(self, lessons: Lessons) -> Seen:
        if self.broken:
            raise ConfigError("It needs words.", "Give it words.")
        return Seen(self.half)

    def load(self, tensors: Tensors) -> Seen:
        return Seen(self.half)


def two_halves(n: int = 240, noise: float = 1.0) -> Lessons:
    """Each half of a vector says the label with errors of its own; the last numbers say nothing."""
    rng = np.random.default_rng(3)
    truth = np.arange(n) % 3
    said = [np.eye(3)[truth] + noise * rng.normal(size=(n, 3)) for _ in range(2)]
    rows = np.concatenate([*said, rng.normal(size=(n, 3))], axis=1)
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    words = np.eye(3, 9, k=6).astype(np.float32)  # look at the numbers that say nothing
    groups = tuple(f"g{i // 2}" for i in range(n))
    classifier = TextClassifier(words, np.zeros((0, 9), np.float32), 1.0)
    return Lessons(vectors, truth.astype(np.intp), groups, Task(labels=LABELS), classifier)


FIRST, SECOND = SeenSpec(name="first", half=0), SeenSpec(name="second", half=1)
NOISE = SeenSpec(name="noise", half=2)


def test_heads_with_errors_of_their_own_join_and_noise_and_copies_do_not() -> None:
    copy = SeenSpec(name="copy", half=0)
    chosen = choose_panel([NOISE, FIRST, copy, SECOND], two_halves(), 60)
    assert {spec.name for spec in chosen.panel} in ({"first", "second"}, {"copy", "second"})
    assert [row.name for row in chosen.table][-1] == "noise"
    assert sum(row.chosen for row in chosen.table) == 2
    assert "2 form the panel" in chosen.notes[0]


def test_the_table_holds_what_cross_validation_measured() -> None:
    lessons = two_halves(noise=0.05)
    (row,) = choose_panel([LinearSpec()], lessons, 60).table
    assert (row.name, row.kind, row.n, row.accuracy, row.chosen) == ("linear-head", "linear", 240, 1.0, True)
    assert 0 < row.nll < 0.05
    assert row.ece < 0.05


def test_what_cannot_be_fitted_is_named_and_the_others_are_compared() -> None:
    chosen = choose_panel([SeenSpec(name="words", broken=True), FIRST], two_halves(), 60)
    assert [spec.name for spec in chosen.panel] == ["first"]
    assert chosen.notes[1] == "words was not compared: It needs words."
    assert [row.n for row in chosen.table] == [240, 0]


def test_a_head_that_would_take_too_long_is_left_out_after_its_first_fold() -> None:
    now, fits = [0.0], []

    class Slow(SeenSpec):
        def fit(self, lessons: Lessons) -> Seen:
            now[0] += 3.0
            fits.append(self.name)
            return super().fit(lessons)

    # Six fits of three seconds: for one head there is time, for a second there is not.
    chosen = choose_panel([Slow(name="one"), Slow(name="two", half=1)], two_halves(), 20, clock=lambda: now[0])
    assert [spec.name for spec in chosen.panel] == ["one"]
    assert fits == ["one"] * 5 + ["two"]
    assert "it would take 18 s" in chosen.notes[1]


def test_without_folds_or_time_there_is_no_panel_and_the_remedy_is_named() -> None:
    lessons = two_halves(6)
    alone = Lessons(lessons.vectors, lessons.truth, ("g",) * 6, lessons.task, lessons.classifier)
    with pytest.raises(ConfigError, match="one group only"):
        choose_panel([FIRST], alone, 60)
    with pytest.raises(ConfigError, match="No head could be compared"):
        choose_panel([FIRST], two_halves(), -1)


def test_a_panel_is_read_from_kinds_a_file_or_auto(tmp_path: Any) -> None:
    file = tmp_path / "panel.yaml"
    file.write_text("candidates: [{kind: linear, name: one}, {kind: linear, name: two}]\n")
    assert [spec.name for spec in read_panel(str(file)).candidates] == ["one", "two"]
    assert read_panel("linear").panel == (LinearSpec(),)
    found = read_panel("auto").candidates
    assert {spec.model_dump()["kind"] for spec in found} == set(KINDS)
    assert [spec.trains for spec in found] == sorted(spec.trains for spec in found)
    assert Config(candidates=found).candidates == found


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("liner", "There is no head 'liner'"),
        ("panel: [{kind: linear, size: 3}]", "size"),
        ("panel: [{kind: magic}]", "panel"),
        ("agents: []", "other things"),
        ("[1", "not YAML"),
    ],
)
def test_what_is_no_panel_is_named(tmp_path: Any, text: str, what: str) -> None:
    file = tmp_path / "panel.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_panel(text if text == "liner" else str(file))
    assert what in str(error.value)


def test_boxes_are_looked_at_where_com_clip_is_named(tmp_path: Any) -> None:
    file = tmp_path / "panel.yaml"
    file.write_text("boxes: true\npanel: [{kind: gda}]\n")
    assert read_panel(str(file)).boxes
    assert read_panel("linear,com-clip").boxes
    assert not read_panel("linear").boxes
    file.write_text("boxes: 3\n")
    with pytest.raises(ConfigError, match="boxes is '3'"):
        read_panel(str(file))


def test_captions_of_the_train_split_reach_the_lessons_and_those_without_are_nan() -> None:
    class Words:
        """Encodes a text to a unit vector in the direction of its length."""

        def encode_texts(self, texts: Any) -> NDArray[np.float32]:
            return np.eye(9, dtype=np.float32)[[len(text) for text in texts]]

    plain = two_halves(6)
    split = Embedded((), plain.vectors, plain.truth, plain.groups, ("abc", "", " ", "ab", "", ""))
    found = lessons_of(split, plain.task, plain.classifier, Words()).captions  # type: ignore[arg-type]
    assert found is not None
    assert np.flatnonzero(np.isfinite(found).all(axis=1)).tolist() == [0, 3]
    assert found[0].argmax() == 3
    nothing = Embedded((), plain.vectors, plain.truth, plain.groups, ("",) * 6)
    assert lessons_of(nothing, plain.task, plain.classifier, Words()).captions is None  # type: ignore[arg-type]


def test_two_agents_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="Two agents are called 'linear-head'"):
        Config(panel=(LinearSpec(), LinearSpec()))


def test_a_linear_head_is_what_its_arrays_say() -> None:
    head = LinearSpec().fit(two_halves(60))
    assert isinstance(head, LinearHead)
    again = LinearSpec().load(head.tensors)
    rows = two_halves(9).vectors
    np.testing.assert_array_equal(again.logits(rows), head.logits(rows))
