"""The rendered leaves: reproducible, with a ground truth, and quick."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from secondlook.leaves import LABELS, Leaf, render_leaf, write_leaves
from secondlook.scenes import SCENES
from secondlook.strangers import draw_stranger, write_strangers


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32)


@pytest.mark.parametrize("label", LABELS)
def test_the_same_leaf_and_view_give_the_same_image(label: str) -> None:
    first = render_leaf(Leaf.grow(label, 5), view=2, size=96)
    second = render_leaf(Leaf.grow(label, 5), view=2, size=96)
    assert first.image.tobytes() == second.image.tobytes()
    assert np.array_equal(first.lesion_mask, second.lesion_mask)


def test_views_and_seeds_and_labels_differ() -> None:
    images = {
        render_leaf(Leaf.grow(label, seed), view, 64).image.tobytes()
        for label in LABELS
        for seed in (0, 1)
        for view in (0, 1)
    }
    assert len(images) == len(LABELS) * 4


def test_views_of_one_leaf_share_its_geometry_and_lesions() -> None:
    leaf = Leaf.grow("scab", 3)
    shares = [r.lesion_mask.sum() / r.leaf_mask.sum() for r in (render_leaf(leaf, view, 128) for view in range(4))]
    # Foreshortening does not change the share of the blade that is sick; the frame cuts a little of it.
    assert max(shares) - min(shares) < 0.06


@pytest.mark.parametrize("label", LABELS)
def test_lesions_lie_inside_the_leaf_and_only_on_sick_ones(label: str) -> None:
    for seed in range(6):
        rendered = render_leaf(Leaf.grow(label, seed), size=128)
        assert not (rendered.lesion_mask & ~rendered.leaf_mask).any()
        assert 0.08 < rendered.leaf_mask.mean() < 0.8
        assert rendered.lesion_mask.any() == (label != "healthy")


def test_lesions_differ_from_the_leaf_around_them() -> None:
    for label in ("black-rot", "rust", "scab"):
        rendered = render_leaf(Leaf.grow(label, 2), size=192)
        array = pixels(rendered.image)
        sick, sound = array[rendered.lesion_mask], array[rendered.leaf_mask & ~rendered.lesion_mask]
        # Scab is dark; rust and black rot are redder than green tissue.
        gap = (
            sound.mean() - sick.mean()
            if label == "scab"
            else np.ptp([d[:, 0].mean() - d[:, 1].mean() for d in (sick, sound)])
        )
        assert gap > 8, label


def test_the_size_is_the_size() -> None:
    rendered = render_leaf(Leaf.grow("rust", 0), size=80)
    assert rendered.image.size == (80, 80)
    assert rendered.image.mode == "RGB"
    assert rendered.lesion_mask.shape == rendered.leaf_mask.shape == (80, 80)


def test_an_unknown_label_is_named() -> None:
    with pytest.raises(ValueError, match=r"black-rot, healthy, rust, scab, got 'mildew'"):
        Leaf.grow("mildew", 0)


def test_write_leaves_keeps_groups_together(tmp_path: Path) -> None:
    folder = write_leaves(tmp_path / "leaves", leaves_per_label=2, views=3, size=32)
    with (folder / "index.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(LABELS) * 2 * 3
    assert {row["label"] for row in rows} == set(LABELS)
    assert len({row["group"] for row in rows}) == len(LABELS) * 2
    for row in rows:
        assert Image.open(folder / row["path"]).size == (32, 32)
        assert row["path"].startswith(f"{row['label']}/{row['group']}_")


def test_strangers_are_reproducible_and_of_both_kinds(tmp_path: Path) -> None:
    folder = write_strangers(tmp_path / "strangers", 6, seed=4, size=32)
    assert {path.parent.name for path in folder.glob("*/*.jpg")} == {"non-leaf", "other-plant"}
    assert draw_stranger("other-plant", 1, 48).tobytes() == draw_stranger("other-plant", 1, 48).tobytes()
    assert draw_stranger("other-plant", 1, 48).tobytes() != draw_stranger("other-plant", 2, 48).tobytes()


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_every_scene_fills_its_frame(scene) -> None:  # type: ignore[no-untyped-def]
    for seed in range(3):
        image = scene(np.random.default_rng(seed), 40)
        assert image.size == (40, 40)
        assert image.mode == "RGB"


def test_a_hundred_images_are_quick() -> None:
    begin = time.process_time()
    for seed in range(25):
        for label in LABELS:
            render_leaf(Leaf.grow(label, seed))
    # 1,000 images of 256 px take under 60 s on one core; twice that is allowed here for a busy machine.
    assert time.process_time() - begin < 12
