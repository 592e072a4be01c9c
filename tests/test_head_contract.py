"""Every head of a panel, with its defaults, on rendered leaves seen by the packaged encoder: one suite for all.

A new member of `AnyHead` is covered by being there. Heads that descend a gradient are fitted once in the quick run;
what fits them again is slow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors.numpy import load_file, save_file
from scipy.special import softmax

from secondlook.agents.case import Task
from secondlook.agents.clip_zero_shot import text_classifier
from secondlook.agents.encoder import OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.head import Head, HeadSpec
from secondlook.agents.heads import AnyHead
from secondlook.agents.lessons import Lessons
from secondlook.leaves import LABELS, Leaf, render_leaf

Singles = NDArray[np.float32]
TEMPLATES = ("a photo of {}", "a close-up photo of {}")
TRAIN, FRESH, UNKNOWN = range(5), range(5, 11), range(11, 14)
"""Leaves of each label: to learn from, each photographed twice; to be judged; and without a label."""


def kinds() -> tuple[type[HeadSpec], ...]:
    union = get_args(AnyHead)[0]
    return get_args(union) or (union,)


def each(slow_where_it_trains: bool = False) -> pytest.MarkDecorator:
    """Every head; those that descend a gradient only in the slow run where the test fits them once more."""
    marks = [pytest.mark.slow]
    params = [
        pytest.param(kind, id=kind().kind, marks=marks if kind.trains and slow_where_it_trains else [])  # type: ignore[attr-defined]
        for kind in kinds()
    ]
    return pytest.mark.parametrize("kind", params)


@cache
def encoder() -> OpenClipEncoder:
    return OpenClipEncoder(device="cpu")


@cache
def seen(leaves: range) -> tuple[Singles, NDArray[np.intp], tuple[str, ...]]:
    """Embeddings, label indices and leaves of photographs."""
    views = range(2 if leaves == TRAIN else 1)
    which = [(label, leaf, view) for leaf in leaves for label in LABELS for view in views]
    images = [render_leaf(Leaf.grow(label, leaf), view, 96).image for label, leaf, view in which]
    vectors = encoder().encode([encoder().preprocess(image) for image in images])
    truth = np.array([LABELS.index(label) for label, _, _ in which], dtype=np.intp)
    return vectors, truth, tuple(f"{label} {leaf}" for label, leaf, _ in which)


@cache
def everything(kind: type[HeadSpec]) -> Lessons:
    """40 photographs of 20 leaves, with captions, others without labels, and an encoder where the head learns words."""
    vectors, truth, leaves = seen(TRAIN)
    task = Task(labels=LABELS)
    captions = [f"a photo of {task.phrases_of(LABELS[y])[0]}" for y in truth]
    return Lessons(
        vectors,
        truth,
        leaves,
        task,
        text_classifier(encoder(), task, TEMPLATES),
        templates=TEMPLATES,
        encoder=encoder() if kind.learns_words else None,
        captions=encoder().encode_texts(captions),
        unlabelled=seen(UNKNOWN)[0],
    )


@cache
def fitted(kind: type[HeadSpec]) -> Head:
    return kind().fit(everything(kind))  # type: ignore[call-arg]


def fit(kind: type[HeadSpec], lessons: Lessons) -> Head:
    return kind().fit(lessons)  # type: ignore[call-arg]


def attempt(kind: type[HeadSpec], lessons: Lessons) -> tuple[Head | None, ConfigError]:
    """Fit, or say why not."""
    try:
        return fit(kind, lessons), ConfigError("")
    except ConfigError as error:
        return None, error


def test_kinds_and_names_are_different() -> None:
    specs: list[Any] = [kind() for kind in kinds()]  # type: ignore[call-arg]
    assert len({spec.kind for spec in specs}) == len({spec.name for spec in specs}) == len(specs)


@each()
def test_a_spec_is_the_same_after_json(kind: type[HeadSpec]) -> None:
    spec: Any = kind()  # type: ignore[call-arg]
    adapter: TypeAdapter[Any] = TypeAdapter(AnyHead)
    assert adapter.validate_json(adapter.dump_json(spec)) == spec
    assert adapter.validate_python({"kind": spec.kind}) == spec
    with pytest.raises(ValueError, match="surplus"):
        adapter.validate_python({"kind": spec.kind, "surplus": 1})


@each()
def test_a_head_tells_most_of_the_labels_of_leaves_it_has_not_seen(kind: type[HeadSpec]) -> None:
    vectors, truth, _ = seen(FRESH)
    logits = fitted(kind).logits(vectors)
    assert logits.shape == (len(vectors), len(LABELS))
    assert logits.dtype == np.float64
    assert np.isfinite(logits).all()
    # Chance is 1 in 4; a head that believes the labels to be ordered does not get all of these.
    assert (logits.argmax(axis=1) == truth).mean() > 0.6


@each()
def test_a_saved_head_has_the_same_logits(kind: type[HeadSpec], tmp_path: Path) -> None:
    head, file = fitted(kind), tmp_path / "head.safetensors"
    save_file({name: np.copy(array, order="C") for name, array in head.tensors.items()}, file)
    again = kind().load(load_file(file))  # type: ignore[call-arg]
    vectors = seen(FRESH)[0]
    np.testing.assert_array_equal(again.logits(vectors), head.logits(vectors))
    assert set(again.tensors) == set(head.tensors)


@each()
def test_arrays_that_are_missing_are_named(kind: type[HeadSpec]) -> None:
    with pytest.raises(KeyError) as error:
        kind().load({})  # type: ignore[call-arg]
    assert error.value.args[0] in fitted(kind).tensors


@each()
def test_a_rows_logits_are_its_own(kind: type[HeadSpec]) -> None:
    vectors, head = seen(FRESH)[0], fitted(kind)
    before, together = vectors.copy(), head.logits(vectors)
    alone = np.concatenate([head.logits(vectors[i : i + 1]) for i in range(len(vectors))])
    # Matrix products of other sizes add in another order: single precision, times the scale of the logits.
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5 * np.abs(together).max())
    np.testing.assert_array_equal(vectors, before)
    assert head.logits(vectors[:0]).shape == (0, len(LABELS))


@each()
def test_what_are_no_embeddings_is_refused(kind: type[HeadSpec]) -> None:
    head, vectors = fitted(kind), seen(FRESH)[0].copy()
    with pytest.raises(ValueError, match=r"embeddings: expected \[N, 128\], got \(24, 127\)"):
        head.logits(vectors[:, 1:])
    with pytest.raises(ValueError, match=r"embeddings: expected \[N, 128\], got \(128,\)"):
        head.logits(vectors[0])
    vectors[3, 5] = np.nan
    with pytest.raises(ValueError, match="embeddings: row 3 is not finite"):
        head.logits(vectors)


@each(slow_where_it_trains=True)
def test_the_same_seed_gives_the_same_numbers(kind: type[HeadSpec]) -> None:
    again, head = fit(kind, everything(kind)), fitted(kind)
    for name, array in head.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], array)


@each(slow_where_it_trains=True)
def test_the_order_of_the_images_does_not_matter(kind: type[HeadSpec]) -> None:
    lessons, vectors = everything(kind), seen(FRESH)[0]
    order = np.random.default_rng(1).permutation(len(lessons))
    shuffled = fit(kind, lessons.part(order)).logits(vectors)
    probs = softmax(fitted(kind).logits(vectors), axis=1)
    # A gradient's many steps let rounding grow.
    np.testing.assert_allclose(softmax(shuffled, axis=1), probs, atol=2e-2 if kind.trains else 1e-3)


Change = Callable[[Lessons], Lessons]


def shots(each_label: int) -> Change:
    """Keep the first images of each label, each of another leaf."""

    def change(lessons: Lessons) -> Lessons:
        # Views of a leaf follow one another: every second one.
        return lessons.part([i for y in range(4) for i in np.flatnonzero(lessons.truth == y)[::2][:each_label]])

    return change


@pytest.mark.parametrize("change", [shots(1), shots(2)], ids=["one shot", "two shots"])
@each(slow_where_it_trains=True)
def test_few_shots_are_better_than_guessing(kind: type[HeadSpec], change: Change) -> None:
    vectors, truth, _ = seen(FRESH)
    logits = fit(kind, change(everything(kind))).logits(vectors)
    assert np.isfinite(logits).all()
    assert (logits.argmax(axis=1) == truth).mean() > 0.4


@each(slow_where_it_trains=True)
def test_one_leaf_a_label_leaves_nothing_to_choose_by(kind: type[HeadSpec]) -> None:
    lessons = everything(kind)
    one = replace(lessons, groups=tuple(LABELS[y] for y in lessons.truth))
    vectors, truth, _ = seen(FRESH)
    assert (fit(kind, one).logits(vectors).argmax(axis=1) == truth).mean() > 0.4


@each(slow_where_it_trains=True)
def test_copies_of_one_image_blow_nothing_up(kind: type[HeadSpec]) -> None:
    lessons = shots(1)(everything(kind))
    copies = lessons.part(np.repeat(np.arange(4), 5))
    logits = fit(kind, copies).logits(seen(FRESH)[0])
    assert np.isfinite(logits).all()


@each(slow_where_it_trains=True)
def test_two_labels_will_do(kind: type[HeadSpec]) -> None:
    lessons = everything(kind)
    two = replace(
        lessons.part(lessons.truth < 2),
        task=Task(labels=LABELS[:2]),
        classifier=replace(lessons.classifier, vectors=lessons.classifier.vectors[:2]),
    )
    vectors, truth, _ = seen(FRESH)
    logits = fit(kind, two).logits(vectors[truth < 2])
    assert logits.shape == (12, 2)
    assert (logits.argmax(axis=1) == truth[truth < 2]).mean() > 0.7


@each(slow_where_it_trains=True)
def test_a_label_without_images_is_named_or_left_to_its_words(kind: type[HeadSpec]) -> None:
    lessons = everything(kind)
    head, refused = attempt(kind, lessons.part(lessons.truth != 3))
    if head is None:
        assert repr(LABELS[3]) in refused.what
    else:
        logits = head.logits(seen(FRESH)[0])
        assert logits.shape == (24, 4)
        assert np.isfinite(logits).all()


@each(slow_where_it_trains=True)
def test_without_captions_and_unlabelled_images_it_learns_or_says_what_to_add(kind: type[HeadSpec]) -> None:
    head, refused = attempt(kind, replace(everything(kind), captions=None, unlabelled=None))
    if head is None:
        assert refused.remedy
    else:
        assert np.isfinite(head.logits(seen(FRESH)[0])).all()


@each()
def test_words_are_not_learned_without_an_encoder(kind: type[HeadSpec]) -> None:
    if kind.learns_words:
        with pytest.raises(ConfigError):
            fit(kind, replace(everything(kind), encoder=None))
    else:
        assert everything(kind).encoder is None


@each()
def test_the_tensors_are_plain_numbers(kind: type[HeadSpec]) -> None:
    for name, array in fitted(kind).tensors.items():
        assert isinstance(array, np.ndarray), name
        assert array.dtype.kind in "fiub", name
        assert np.isfinite(array).all(), name
