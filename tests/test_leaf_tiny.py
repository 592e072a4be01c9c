"""The model that ships with the package: small, loadable by open_clip, and good at what it was trained for."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from secondlook.check_leaf_tiny import Detector, LeafTiny, Scores, balanced_accuracy, together
from secondlook.leaf_pool import Pool, hold_out, read_split
from secondlook.leaf_texts import CLASSES, LeafTexts
from secondlook.leaves import LABELS, Leaf, render_leaf
from secondlook.strangers import draw_stranger

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "secondlook" / "assets" / "leaf-tiny"


@pytest.fixture(scope="module")
def tiny() -> LeafTiny:
    return LeafTiny.load(FOLDER)


@pytest.fixture(scope="module")
def rendered() -> Pool:
    # Seeds far below those the model was trained on: it has seen none of these leaves.
    drawn = [(render_leaf(Leaf.grow(label, seed), 0, 128), label) for seed in range(15) for label in LABELS]
    images = np.stack([np.asarray(leaf.image) for leaf, _ in drawn])
    return Pool(images, np.array([CLASSES.index(label) for _, label in drawn]), ("",) * len(drawn))


def test_the_folder_is_small_and_complete() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert {"open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12_000_000


def test_the_prompts_are_unit_vectors_and_apart(tiny: LeafTiny) -> None:
    cosines = tiny.prompts @ tiny.prompts.T
    assert np.allclose(np.diag(cosines), 1)
    assert cosines[~np.eye(len(CLASSES), dtype=bool)].max() < 0.9
    assert 1 < tiny.scale <= 100


def test_unknown_words_and_long_sentences_are_accepted() -> None:
    import open_clip

    tokenizer = open_clip.get_tokenizer(f"local-dir:{FOLDER}")
    tokens = tokenizer(["", "Ein Blatt, völlig gesund 🍏", "rust " * 100, "black-rot", "black rot"])
    assert tokens.shape == (5, 32)
    # The text tower pools at the highest id, which must be the end token, also after truncation.
    assert (tokens == tokens.max()).sum(dim=1).tolist() == [1] * 5
    assert tokens[3].tolist() == tokens[4].tolist()


def test_zero_shot_is_well_above_chance_on_new_rendered_leaves(tiny: LeafTiny, rendered: Pool) -> None:
    said = tiny.judge(tiny.embed(rendered.images), len(LABELS)).argmax(axis=1)
    assert balanced_accuracy(said, rendered.classes) > 0.75


@pytest.mark.parametrize("template", ["{}", "a photo of an apple leaf with {}.", "label: {}"])
def test_zero_shot_works_with_bare_labels_in_other_words(tiny: LeafTiny, rendered: Pool, template: str) -> None:
    import open_clip
    import torch

    tokenizer = open_clip.get_tokenizer(f"local-dir:{FOLDER}")
    with torch.inference_mode():
        vectors = tiny.model.encode_text(tokenizer([template.format(name) for name in LABELS]), normalize=True)
    said = (tiny.embed(rendered.images) @ vectors.double().numpy().T).argmax(axis=1)
    assert balanced_accuracy(said, rendered.classes) > 0.7


def test_rendered_strangers_score_higher_than_rendered_leaves(tiny: LeafTiny, rendered: Pool) -> None:
    strangers = np.stack([np.asarray(draw_stranger("non-leaf", seed, 128)) for seed in range(20)])
    vectors = tiny.embed(rendered.images)
    own = tiny.judge(vectors, 6)[:, 4:].sum(axis=1)
    strange = tiny.judge(tiny.embed(strangers), 6)[:, 4:].sum(axis=1)
    assert (strange > np.quantile(own, 0.9)).mean() > 0.8


def test_a_far_vector_scores_higher_than_a_near_one(tiny: LeafTiny) -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(tiny.prompts.shape[1])[:4]
    vectors = np.repeat(centres, 20, axis=0) + 0.02 * rng.standard_normal((80, tiny.prompts.shape[1]))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    detector = Detector.fit(vectors, np.repeat(np.arange(4), 20))
    scores = detector.score(tiny, np.stack([vectors[0], -vectors[0]]))
    assert scores.mahalanobis[1] > scores.mahalanobis[0]
    assert scores.neighbour[1] > scores.neighbour[0]
    known = Scores(*(np.arange(4.0),) * 3)
    assert together(known, known).tolist() == [0.0, 0.25, 0.5, 0.75]


def test_every_class_has_sentences_and_prompts() -> None:
    texts = LeafTexts.load()
    assert len(texts.sentences) == len(texts.prompts) == len(CLASSES)
    assert min(map(len, texts.sentences)) > 100
    # No sentence may stand for two classes.
    everything = [sentence for group in texts.sentences for sentence in set(group)]
    assert len(everything) == len(set(everything))


def test_hold_out_splits_by_group() -> None:
    classes = np.repeat(np.arange(4), 10)
    groups = tuple(f"{c}-{i // 2}" for c, i in zip(classes, list(range(10)) * 4, strict=True))
    first, second = hold_out(Pool(np.zeros((40, 2, 2, 3), np.uint8), classes, groups), 0.4, np.random.default_rng(0))
    assert not set(first.groups) & set(second.groups)
    assert np.bincount(second.classes).tolist() == [4, 4, 4, 4]


def test_zero_shot_on_the_test_photographs(tiny: LeafTiny) -> None:
    data = Path(os.environ.get("SECONDLOOK_DATA", ROOT.parent / "shared" / "data")) / "plantvillage-apple"
    if not (data / "index.csv").is_file():
        pytest.skip(f"no photographs at {data}; set SECONDLOOK_DATA to the folder that holds plantvillage-apple")
    photos = read_split(data, "test", 256)
    said = tiny.judge(tiny.embed(photos.images), len(LABELS)).argmax(axis=1)
    assert balanced_accuracy(said, photos.classes) >= 0.95
