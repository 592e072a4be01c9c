"""ComCLIP: parts that fit the words count, and a case without parts is plain zero-shot."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from secondlook.agents.case import MOST_BOXES, Box, Case, Evidence, Task
from secondlook.agents.clip_zero_shot import ClipZeroShot, TextClassifier, text_classifier
from secondlook.agents.com_clip import ComClip, composed_logits
from secondlook.agents.crop import box_view
from secondlook.agents.embedder import Embedder
from secondlook.agents.errors import ConfigError
from secondlook.agents.fakes import ToyEncoder
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Failure, Outcome, Prediction
from secondlook.eval.cases import read_dataset

TASK = Task(labels=("red", "blue", "green"))
LEFT, RIGHT = Box(left=0, top=0, right=0.5, bottom=1), Box(left=0.5, top=0, right=1, bottom=1)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class World:
    """A toy encoder, and labels whose vectors are the means of pictures of their colour."""

    def __init__(self) -> None:
        self.embedder = Embedder(ToyEncoder(dim=32), threads=1)
        photos = [Photo.of(Image.new("RGB", (32, 32), label)) for label in TASK.labels]
        vectors = self.embedder.embed(photos).vectors
        self.words = TextClassifier(vectors, np.zeros((0, 32), np.float32), 20.0)

    def agent(self, **options: Sequence[str]) -> ComClip:
        return ComClip(self.embedder, self.words, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def picture(*, half: str = "red", rest: str = "gray", side: int = 32) -> Photo:
    image = Image.new("RGB", (side, side), rest)
    image.paste(Image.new("RGB", (side // 2, side), half), (0, 0))
    return Photo.of(image)


def ask(agent: ComClip | ClipZeroShot, cases: Sequence[Case]) -> list[Outcome]:
    return anyio.run(agent.predict, cases)


def scores(outcome: Outcome) -> NDArray[np.float64]:
    assert isinstance(outcome, Prediction)
    assert outcome.scale == "logit"
    return np.array(outcome.scores)


def test_without_boxes_it_is_zero_shot_at_either_look(world: World) -> None:
    cases = [Case(id="a", photo=picture()), Case(id="b", photo=picture(half="blue"))]
    again = [case.model_copy(update={"evidence": Evidence(views=("zoom", "top_left"))}) for case in cases]
    for asked in (cases, again):
        plain = ask(ClipZeroShot(world.embedder, world.words, "com-clip"), asked)
        for one, other in zip(ask(world.agent(), asked), plain, strict=True):
            np.testing.assert_allclose(scores(one), scores(other), atol=1e-4)


def naive(
    image: NDArray[np.float32],
    parts: NDArray[np.float32],
    fit: NDArray[np.float64],
    words: NDArray[np.float32],
    c: float,
) -> list[float]:
    found = []
    for k, t in enumerate(words.astype(np.float64)):
        w = np.exp(fit[:, k] - fit[:, k].max())
        f = image + (w / w.sum()) @ parts.astype(np.float64)
        found.append(c * float(f @ t) / float(np.linalg.norm(f)))
    return found


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 5), st.floats(0.1, 100))
def test_logits_are_those_of_the_formula_written_out(seed: int, s: int, k: int, c: float) -> None:
    rng = np.random.default_rng(seed)
    images, parts, t = unit(rng.normal(size=(2, 8))), unit(rng.normal(size=(s, 8))), unit(rng.normal(size=(k, 8)))
    words = TextClassifier(t, np.zeros((0, 8), np.float32), c)
    fit = words.logits(parts)
    expected = [naive(image, parts, fit, t, c) for image in images]
    found = composed_logits(images, parts, fit, words)
    np.testing.assert_allclose(found, expected, atol=1e-4 * c)
    assert np.abs(found).max() <= c
    order = rng.permutation(s)
    np.testing.assert_allclose(composed_logits(images, parts[order], fit[order], words), found, atol=1e-5 * c)


def test_a_part_that_is_the_whole_image_changes_nothing(world: World) -> None:
    # f + f is f, once it is normalised.
    plain = Case(id="a", photo=picture())
    boxed = plain.model_copy(update={"boxes": (Box(left=0, top=0, right=1, bottom=1),)})
    one, other = ask(world.agent(), [plain, boxed])
    np.testing.assert_allclose(scores(other), scores(one), atol=1e-4)


def test_opposite_vectors_do_not_divide_by_nothing() -> None:
    words = TextClassifier(np.eye(2, dtype=np.float32), np.zeros((0, 2), np.float32), 10.0)
    image = np.array([[1.0, 0.0]], np.float32)
    found = composed_logits(image, -image, words.logits(-image), words)
    assert np.isfinite(found).all()


def test_a_box_on_what_the_label_names_speaks_for_it(world: World) -> None:
    case = Case(id="a", photo=picture(half="red", rest="gray"))
    boxed = case.model_copy(update={"boxes": (LEFT, RIGHT)})
    plain, composed = (scores(outcome) for outcome in ask(world.agent(), [case, boxed]))
    red, blue = 0, 1
    assert composed[red] - composed[blue] > plain[red] - plain[blue]


def test_a_box_with_a_word_of_its_own_is_weighted_by_it_for_every_label(world: World) -> None:
    photo = picture()
    word = world.embedder.encoder.encode_texts(["a photo of rust", "rust"]).mean(axis=0)
    boxes = (LEFT.model_copy(update={"word": "rust"}), RIGHT)
    agent = world.agent(templates=("a photo of {}", "{}"))
    (outcome,) = ask(agent, [Case(id="a", photo=photo, boxes=boxes)])
    image, *parts = (
        world.embedder.embed([photo], v).vectors[0] for v in ("whole", *(box_view(b.sides) for b in boxes))
    )
    stacked = np.stack(parts)
    fit = world.words.logits(stacked)
    fit[0] = 20.0 * float(stacked[0] @ unit(word))
    np.testing.assert_allclose(scores(outcome), naive(image, stacked, fit, world.words.vectors, 20.0), atol=1e-3)


def test_alone_and_in_a_batch_with_others_the_answer_is_the_same(world: World) -> None:
    cases = [
        Case(id="a", photo=picture(), boxes=(LEFT,)),
        Case(id="b", photo=Photo.of(b"no image", name="b")),
        Case(id="c", photo=picture(half="blue"), boxes=(LEFT, RIGHT, LEFT), evidence=Evidence(views=("zoom",))),
        Case(id="d", photo=picture(half="green")),
    ]
    together = ask(world.agent(), cases)
    assert [type(outcome) for outcome in together] == [Prediction, Failure, Prediction, Prediction]
    assert isinstance(together[1], Failure)
    assert "b:" in together[1].error
    for case, outcome in zip(cases, together, strict=True):
        (alone,) = ask(world.agent(), [case])
        if isinstance(outcome, Prediction):
            np.testing.assert_allclose(scores(alone), scores(outcome), atol=1e-4)
            assert isinstance(alone, Prediction)
            assert (alone.consistency is None) == (outcome.consistency is None) == (case.id != "c")


def test_boxes_are_encoded_once_and_words_are_remembered() -> None:
    class Counting(ToyEncoder):
        texts = 0

        def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
            self.texts += len(texts)
            return super().encode_texts(texts)

    encoder = Counting(dim=32)
    embedder = Embedder(encoder, threads=1)
    words = text_classifier(encoder, TASK, ["{}"])
    before = encoder.texts
    agent = ComClip(embedder, words)
    case = Case(id="a", photo=picture(), boxes=(LEFT.model_copy(update={"word": "rust"}), RIGHT))
    for _ in range(3):
        ask(agent, [case])
    embedder.close()
    assert embedder.encoded == 3, "the image and its two boxes"
    assert encoder.texts - before == 1


def test_templates_must_have_one_place(world: World) -> None:
    for templates in ((), ("a photo",), ("{} {}",)):
        with pytest.raises(ConfigError, match="template"):
            world.agent(templates=templates)


@pytest.mark.parametrize(
    "sides",
    [(0.5, 0, 0.5, 1), (0, 0, 1.2, 1), (-0.1, 0, 1, 1), (0, 0.9, 1, 0.1), (0, 0, float("nan"), 1), (10, 20, 200, 300)],
)
def test_a_box_lies_in_the_picture_and_has_an_area(sides: tuple[float, float, float, float]) -> None:
    with pytest.raises(ConfigError, match="A box cannot have the sides"):
        Box(left=sides[0], top=sides[1], right=sides[2], bottom=sides[3])


def test_words_and_numbers_of_boxes_have_limits() -> None:
    with pytest.raises(ValidationError, match="word"):
        Box(left=0, top=0, right=1, bottom=1, word="x" * 101)
    with pytest.raises(ValidationError, match="boxes"):
        Case(id="a", photo=Photo.of(b""), boxes=(LEFT,) * (MOST_BOXES + 1))


def table(folder: Path, cells: Sequence[str]) -> Path:
    """Write a data set with one image a cell, whose boxes the cell holds."""
    path = folder / "index.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "boxes"))
        for i, cell in enumerate(cells):
            Image.new("RGB", (16, 16), (i, 0, 0)).save(folder / f"{i}.png")
            writer.writerow((f"{i}.png", "ab"[i % 2], cell))
    return path


def test_boxes_are_read_from_a_column_of_the_data_set(tmp_path: Path) -> None:
    boxes = [{"left": 0.1, "top": 0, "right": 0.5, "bottom": 1, "word": " spot "}, LEFT.model_dump()]
    cases = read_dataset(table(tmp_path, [json.dumps(boxes), "", "[]"])).cases
    assert [len(row.case.boxes) for row in cases] == [2, 0, 0]
    assert cases[0].case.boxes == (Box(left=0.1, top=0, right=0.5, bottom=1, word="spot"), LEFT)


SIDES = '"left": 0, "top": 0, "right": 1, "bottom": 1'


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("[[0, 0, 1, 1]]", "box 1"),
        ("{" + SIDES + "}", "boxes are wrong"),
        ("[{" + SIDES + '}, {"left": 0}]', "box 2, top"),
        ("[{" + SIDES + ', "label": "a"}]', "box 1, label"),
        ('[{"left": "0", "top": 0, "right": 1, "bottom": 1}]', "box 1, left"),
        ('[{"left": 0, "top": 0, "right": 120, "bottom": 80}]', "cannot have the sides 0, 0, 120, 80"),
        ('[{"left": NaN, "top": 0, "right": 1, "bottom": 1}]', "cannot have the sides nan"),
        ("[{" + SIDES + ', "word": ""}]', "box 1, word"),
        ("no json", "JSON"),
        ("[" * 10_000, "JSON"),
        ("[" + ",".join(["{" + SIDES + "}"] * 33) + "]", "at most 32"),
        (" " * 5 + "[" + "0," * 10_000 + "0]", "20,003 characters"),
    ],
)
def test_a_wrong_cell_is_named_by_file_line_and_box(tmp_path: Path, cell: str, said: str) -> None:
    path = table(tmp_path, ["", cell])
    with pytest.raises(ConfigError, match=r"index\.csv, line 3: ") as found:
        read_dataset(path)
    assert said in str(found.value)
    assert "fractions" in found.value.remedy
    assert len(str(found.value)) < 600
