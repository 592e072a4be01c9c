"""The subject of a picture: found where it stands out, and not invented where nothing does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from secondlook.agents.photo import Photo
from secondlook.agents.subject_mask import LEAST, MOST, SIDE, otsu, subject_mask, subject_view
from secondlook.leaves import LABELS, Leaf, render_leaf


def scene(side: int = 96) -> Image.Image:
    """Return a green disc with a brown spot, and a shadow beside it, on violet paper with grain."""
    rng = np.random.default_rng(0)
    image = Image.new("RGB", (side, side), (150, 140, 165))
    draw = ImageDraw.Draw(image)
    draw.ellipse((0.5 * side, 0.45 * side, 0.95 * side, 0.85 * side), fill=(60, 56, 66))
    draw.ellipse((0.2 * side, 0.2 * side, 0.7 * side, 0.7 * side), fill=(60, 120, 50))
    draw.ellipse((0.4 * side, 0.4 * side, 0.5 * side, 0.5 * side), fill=(110, 80, 50))
    grain = rng.normal(0, 4, size=(side, side, 1))
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def test_the_subject_is_found_with_its_spots_and_without_its_shadow() -> None:
    mask = subject_mask(scene())
    assert mask is not None
    disc = np.pi * 0.25**2  # radius a quarter of the side
    assert mask.mean() == pytest.approx(disc, abs=0.03)
    assert mask[43, 43], "the brown spot inside"
    assert not mask[75, 75], "the shadow"
    assert not mask[:10].any()


def test_drawn_leaves_are_found_where_they_were_drawn() -> None:
    overlaps = []
    for number in range(24):
        drawn = render_leaf(Leaf.grow(LABELS[number % 4], 7000 + number), view=number, size=128)
        mask = subject_mask(drawn.image)
        found = np.zeros_like(drawn.leaf_mask) if mask is None else mask
        overlaps.append((found & drawn.leaf_mask).sum() / (found | drawn.leaf_mask).sum())
    # One leaf in ten lies on soft patches of many colours, where colour alone need not find it.
    assert np.median(overlaps) > 0.9
    assert np.mean(np.array(overlaps) > 0.75) > 0.85


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (200, 200), "white"),
        Image.new("RGB", (200, 200), "black"),
        Image.new("L", (200, 200), 90).convert("RGB"),
        Image.linear_gradient("L").convert("RGB"),  # lightness alone
        Image.new("RGB", (1, 1), "green"),
        Image.new("RGB", (4000, 3), "green"),
        Image.new("RGB", (8, 8), "green"),
    ],
    ids=["white", "black", "gray", "gradient", "pixel", "line", "tiny"],
)
def test_where_nothing_stands_out_no_subject_is_invented_and_the_view_is_the_image(image: Image.Image) -> None:
    assert subject_mask(image) is None
    assert subject_view(image) is image


def test_a_speck_is_no_subject_and_neither_is_nearly_everything() -> None:
    speck = Image.new("RGB", (100, 100), "gray")
    speck.paste((0, 200, 0), (50, 50, 60, 60))  # 1 % of the picture
    assert subject_mask(speck) is None
    framed = Image.new("RGB", (100, 100), (0, 200, 0))
    ImageDraw.Draw(framed).rectangle((0, 0, 99, 99), outline="gray", width=3)
    assert subject_mask(framed) is None


def test_of_several_parts_the_one_near_the_centre_is_the_subject() -> None:
    image = Image.new("RGB", (100, 100), "gray")
    image.paste((0, 160, 0), (35, 35, 65, 65))
    image.paste((160, 0, 0), (0, 0, 99, 14))  # larger, along the border
    mask = subject_mask(image)
    assert mask is not None
    assert mask[50, 50]
    assert not mask[7, 50]


def test_the_surroundings_are_blurred_and_the_subject_is_not() -> None:
    image = scene(256)
    draw = ImageDraw.Draw(image)
    for x in range(0, 256, 16):
        draw.line((x, 0, x, 30), fill=(170, 160, 185), width=8)
    seen = subject_view(image)
    before, after = np.asarray(image, dtype=float), np.asarray(seen, dtype=float)
    assert seen.size == image.size
    np.testing.assert_array_equal(after[100:140, 80:120], before[100:140, 80:120])
    # The stripes above differ by 20; what is left of them after a blur of a tenth of the side is next to nothing.
    assert np.ptp(before[10, 40:216].mean(axis=1)) > 15
    assert after[10, 40:216].mean(axis=1).std() < 0.25 * before[10, 40:216].mean(axis=1).std()


def test_the_blur_grows_with_the_picture() -> None:
    # Seen at the same size, the view of a picture and that of its enlargement are nearly one.
    small = scene(128)
    large = small.resize((512, 512), Image.Resampling.BICUBIC)
    one = np.asarray(subject_view(small), dtype=float)
    other = np.asarray(subject_view(large).resize((128, 128), Image.Resampling.BOX), dtype=float)
    assert np.abs(one - other).mean() < 2


def test_a_photo_has_the_subject_among_its_views() -> None:
    photo = Photo.of(scene(300))
    assert photo.view("subject").tobytes() == subject_view(photo.pixels()).tobytes() != photo.pixels().tobytes()
    mask = subject_mask(photo.pixels())
    assert mask is not None
    assert max(mask.shape) == SIDE


PIXELS = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(lambda size: arrays(np.uint8, (*size, 3)))


@settings(max_examples=25)
@given(PIXELS)
def test_any_pixels_have_a_mask_of_a_sensible_size_or_none(pixels: NDArray[np.uint8]) -> None:
    image = Image.fromarray(pixels)
    mask = subject_mask(image)
    if mask is not None:
        assert mask.shape == pixels.shape[:2]
        assert LEAST <= mask.mean() <= MOST
    assert subject_view(image).size == image.size


@given(arrays(np.float64, st.integers(2, 60), elements=st.floats(-5, 5)))
def test_otsu_finds_the_largest_variance_between_two_classes(values: NDArray[np.float64]) -> None:
    threshold = otsu(values)
    if threshold is None:
        assert np.ptp(values) == 0
        return
    low = values <= threshold
    assert low.any()
    assert not low.all()

    def between(low: NDArray[np.bool_]) -> float:
        return float(low.mean() * (~low).mean() * (values[low].mean() - values[~low].mean()) ** 2)

    best = max(between(values <= v) for v in np.unique(values)[:-1])
    # The values are put into bins of a 128th of their range, so the best split is met nearly, not exactly.
    assert between(low) >= best - 3 * np.ptp(values) ** 2 / 128
