"""A photo is read once, decoded once, the right way up in RGB, or refused in a sentence that names it."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from bad_images import BAD_IMAGES, encoded, frames, noise, png_of_zeros
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import secondlook.agents.photo as photo_module
from secondlook.agents.crop import GROUPS
from secondlook.agents.errors import ConfigError, ImageError
from secondlook.agents.photo import Photo

RED, WHITE = (255, 0, 0), (255, 255, 255)
DATA = Path(os.environ.get("SECONDLOOK_DATA") or Path(__file__).parents[1].parent / "shared" / "data")


def mean(image: Image.Image) -> float:
    return float(np.asarray(image).mean())


def rgb_of(data: bytes) -> np.ndarray:
    return np.asarray(Photo.of(data).pixels())


# What is refused, and how


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_file_is_refused_in_a_sentence_that_names_it(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(BAD_IMAGES[name].make())
    with pytest.raises(ImageError) as refusal:
        Photo.of(path).pixels()
    assert BAD_IMAGES[name].says in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_bomb_is_refused_from_its_header_without_decoding_it() -> None:
    import tracemalloc

    data = BAD_IMAGES["bomb.png"].make()
    tracemalloc.start()
    with pytest.raises(ImageError, match="30000 x 30000"):
        Photo.of(data).pixels()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6  # one byte a pixel would be 900 MB


def test_between_pillows_limit_and_ours_an_image_opens_without_a_warning() -> None:
    # Pillow warns from 89,478,486 pixels on; 9,500 x 9,480 = 90,060,000 is above that and below 100 million.
    # Cut short, so that getting as far as the pixels shows that the limits let it pass, without 90 MB of them.
    assert Image.MAX_IMAGE_PIXELS is not None
    assert Image.MAX_IMAGE_PIXELS < 9_500 * 9_480 < 100_000_000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="damaged or cut short"):
            Photo.of(png_of_zeros(9_500, 9_480)[:100]).pixels()


def test_a_failure_is_remembered_and_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.write_bytes(b"")
    photo = Photo.of(path)
    with pytest.raises(ImageError, match="empty") as first:
        photo.pixels()
    path.write_bytes(encoded(noise(), "PNG"))
    with pytest.raises(ImageError, match="empty") as second:
        photo.pixels()
    assert str(first.value) == str(second.value)
    assert photo.digest == hashlib.sha256(b"").hexdigest()


def test_a_file_that_vanishes_or_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "leaf.png"
    path.write_bytes(encoded(noise(), "PNG"))
    vanished, changed = Photo.of(path), Photo.of(path)
    assert changed.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(encoded(noise(seed=1), "PNG"))
    with pytest.raises(ImageError, match=r"leaf\.png: has changed"):
        changed.pixels()
    path.unlink()
    with pytest.raises(ImageError, match=r"leaf\.png: cannot be read \(No such file"):
        vanished.pixels()
    with pytest.raises(ImageError, match="No such file"):
        _ = vanished.digest


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_one_may_not_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(noise(), "PNG"))
    path.chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        Photo.of(path).pixels()


def test_a_pipe_named_as_an_image_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        Photo.of(tmp_path / "pipe.jpg").pixels()


def test_a_file_beyond_the_limit_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_module, "MAX_BYTES", 2**20)
    path = tmp_path / "long.bmp"
    with path.open("wb") as file:
        file.truncate(2**40)  # a terabyte of holes: reading it all would end the test run
    with pytest.raises(ImageError, match="larger than 1 MiB"):
        Photo.of(path).pixels()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("no/such/leaf.jpg", "No such file"),
        (".", "is a folder"),
        ("https://example.org/leaf.jpg", "is a URL"),
        (Path("http://example.org/leaf.jpg"), "is a URL"),
        ("s3://bucket/leaf.jpg", "is a URL"),
        ("a" * 5000, "name too long"),
        ("leaf\0.jpg", "null"),
        ([[0, 0], [0, 0]], "cannot be made of list"),
        (None, "cannot be made of NoneType"),
        (np.zeros((16, 16, 3), np.float32), r"expected uint8 \[H, W, 3\].* got float32 \(16, 16, 3\)"),
        (np.zeros((3, 16, 16), np.uint8), r"got uint8 \(3, 16, 16\)"),
        (np.zeros((2, 16, 16, 3), np.uint8), r"got uint8 \(2, 16, 16, 3\)"),
        (np.zeros((0, 16, 3), np.uint8), "holds no pixel"),
    ],
    ids=str,
)
def test_what_the_user_can_put_right_is_a_config_error_with_a_remedy(source: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refusal:
        Photo.of(source)  # type: ignore[arg-type]
    assert refusal.value.remedy


KINDS = {
    "JPEG": lambda: encoded(noise(), "JPEG"),
    "CMYK": lambda: encoded(noise().convert("CMYK"), "JPEG"),
    "PNG": lambda: encoded(noise(), "PNG"),
    "palette": lambda: encoded(noise().quantize(16), "PNG"),
    "WEBP": lambda: encoded(noise(), "WEBP"),
    "LZW": lambda: encoded(noise(), "TIFF", compression="tiff_lzw"),
    "TIFF": lambda: encoded(noise(), "TIFF"),
    "BMP": lambda: encoded(noise(), "BMP"),
    "GIF": lambda: frames("GIF", 2),
    "APNG": lambda: frames("PNG", 2),
    "PPM": lambda: encoded(noise(), "PPM"),
    "MPO": lambda: frames("MPO", 2),
}


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**32), where=st.sampled_from([60, 400, None]))
def test_whatever_is_done_to_a_file_it_decodes_or_is_refused(kind: str, seed: int, where: int | None) -> None:
    data, rng = bytearray(KINDS[kind]()), random.Random(seed)
    for _ in range(rng.choice([1, 2, 8])):
        data[rng.randrange(len(data[:where]))] = rng.choice([0, 1, 255, rng.randrange(256)])
    try:
        image = Photo.of(bytes(data)).pixels()
    except ImageError:
        return
    assert image.mode == "RGB"


# What is decoded, and how


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_exif_orientation_comes_out_upright(turn: int) -> None:
    # The eight orientations as the standard draws them: what the camera stored of a scene with a red top-left corner.
    scene = Image.new("RGB", (32, 16), "blue")
    scene.paste(RED, (0, 0, 8, 8))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Transpose that leads from the scene to what is stored
    stored = scene if turn == 1 else scene.transpose(Image.Transpose(undo[turn]))
    exif = Image.Exif()
    exif[0x0112] = turn
    image = Photo.of(encoded(stored, "PNG", exif=exif)).pixels()
    assert image.size == (32, 16)
    assert image.getpixel((2, 2)) == RED
    assert image.getpixel((30, 14)) == (0, 0, 255)


def test_an_orientation_in_a_jpeg_is_obeyed_too_and_an_unreadable_one_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert Photo.of(encoded(noise(64, 48), "JPEG", exif=exif)).pixels().size == (48, 64)
    damaged = encoded(noise(64, 48), "PNG", exif=b"Exif\0\0no such thing")
    assert Photo.of(damaged).pixels().size == (64, 48)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    # 65535 / 257 = 255, 32896 / 257 = 128, 257 / 257 = 1; clipping would make all but the last 255.
    values = np.repeat(np.array([[65535, 32896, 257, 0]], np.uint16), 8, axis=0).repeat(2, axis=1)
    for kind in ("PNG", "TIFF", "PPM"):
        rgb = rgb_of(encoded(Image.fromarray(values), kind))
        assert rgb[0, ::2, 0].tolist() == [255, 128, 1, 0], kind
        assert (rgb == rgb[..., :1]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.float32([0, 0.5, 1]), [0, 128, 255]),  # 0.5 * 255 = 127.5, rounds to even: 128
        (np.float32([0, 100, 255]), [0, 100, 255]),
        (np.float32([0, 500, 1000]), [0, 2, 4]),  # within 16 bits: 500 / 257 = 1.9, 1000 / 257 = 3.9
        (np.float32([-1, 0, 1]), [0, 128, 255]),
        (np.float32([0, 50_000, 100_000]), [0, 128, 255]),
        (np.int32([0, 100, 255]), [0, 100, 255]),
        (np.int32([0, 32896, 65535]), [0, 128, 255]),
    ],
    ids=["unit", "byte", "word", "signed", "beyond", "small ints", "large ints"],
)
def test_floats_and_32_bit_integers_are_scaled_by_what_they_hold(values: np.ndarray, expected: list[int]) -> None:
    tile = np.repeat(np.repeat(values[None], 8, axis=0), 4, axis=1)
    assert rgb_of(encoded(Image.fromarray(tile), "TIFF"))[0, ::4, 0].tolist() == expected


def test_floats_that_are_no_numbers_are_refused() -> None:
    tile = np.full((8, 8), np.nan, np.float32)
    with pytest.raises(ImageError, match="not numbers"):
        rgb_of(encoded(Image.fromarray(tile), "TIFF"))


def test_cmyk_palette_gray_and_one_bit_become_rgb() -> None:
    red = Image.new("RGB", (16, 16), RED)
    assert rgb_of(encoded(red.convert("CMYK"), "JPEG", quality=95))[8, 8] == pytest.approx(RED, abs=4)
    assert tuple(rgb_of(encoded(red.quantize(4), "PNG"))[8, 8]) == RED
    assert tuple(rgb_of(encoded(red.convert("L"), "PNG"))[8, 8]) == (76, 76, 76)  # 0.299 * 255 = 76.2
    assert tuple(rgb_of(encoded(Image.new("1", (16, 16), 1), "PNG"))[8, 8]) == WHITE


def test_transparency_is_laid_over_white() -> None:
    # Half transparent black over white: 255 * (1 - 128 / 255) = 127.
    for mode in ("RGBA", "LA"):
        clear = Image.new(mode, (16, 16), (0, 0, 0, 128) if mode == "RGBA" else (0, 128))
        assert rgb_of(encoded(clear, "PNG"))[0, 0] == pytest.approx((127, 127, 127), abs=1)
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([0, 0, 0, *RED])
    palette.paste(1, (8, 0, 16, 16))
    rgb = rgb_of(encoded(palette, "PNG", transparency=0))
    assert (tuple(rgb[0, 0]), tuple(rgb[0, 15])) == (WHITE, RED)
    rgb = rgb_of(encoded(palette, "PNG", transparency=bytes([0, 255])))
    assert (tuple(rgb[0, 0]), tuple(rgb[0, 15])) == (WHITE, RED)
    rgb = rgb_of(encoded(Image.new("RGB", (16, 16), RED), "PNG", transparency=RED))
    assert tuple(rgb[0, 0]) == WHITE


def test_a_phones_two_frame_jpeg_is_its_first_frame() -> None:
    left, right = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), "blue")
    assert rgb_of(encoded(left, "MPO", save_all=True, append_images=[right]))[8, 8] == pytest.approx(RED, abs=4)


def test_path_bytes_image_and_array_give_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "leaf.png"
    noise().save(path)
    sources = [path, str(path), path.read_bytes(), noise(), np.asarray(noise())]
    photos = [Photo.of(source) for source in sources]
    assert len({photo.pixels().tobytes() for photo in photos}) == 1
    # A file is known by its bytes, wherever they come from; a picture without a file by its pixels.
    assert len({photo.digest for photo in photos[:3]}) == 1
    assert len({photo.digest for photo in photos[3:]}) == 1
    assert photos[0].digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [photo.name for photo in photos] == ["leaf.png", "leaf.png", "image", "image", "image"]
    assert Photo.of(photos[0]) is photos[0]


def test_arrays_are_gray_rgb_or_rgba_and_are_copied() -> None:
    array = np.full((16, 24), 7, np.uint8)
    photo = Photo.of(array)
    array[:] = 200
    assert photo.pixels().size == (24, 16)
    assert mean(photo.pixels()) == 7
    clear = np.zeros((16, 24, 4), np.uint8)
    assert mean(Photo.of(clear).pixels()) == 255
    assert Photo.of(np.zeros((16, 24, 3), np.uint8)[:, ::-1]).pixels().size == (24, 16)


def test_pictures_of_other_pixels_or_another_shape_have_other_digests() -> None:
    pictures = [np.zeros((16, 32), np.uint8), np.zeros((32, 16), np.uint8), np.ones((16, 32), np.uint8)]
    assert len({Photo.of(picture).digest for picture in pictures}) == 3


def test_a_digest_of_a_file_needs_no_decoding(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("not an image")
    assert Photo.of(path).digest == hashlib.sha256(b"not an image").hexdigest()


def test_pixels_are_decoded_once_until_released(tmp_path: Path) -> None:
    path = tmp_path / "leaf.png"
    noise().save(path)
    photo = Photo.of(path)
    first = photo.pixels()
    path.unlink()
    assert photo.pixels() is first
    assert photo.digest
    photo.release()
    with pytest.raises(ImageError, match="No such file"):
        photo.pixels()


def test_many_threads_share_one_decoding() -> None:
    photo, seen = Photo.of(encoded(noise(800, 800), "JPEG")), []
    threads = [threading.Thread(target=lambda: seen.append(id(photo.pixels()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len(set(seen)) == 1


def test_shrinking_keeps_the_shape_and_the_digest_and_stays() -> None:
    photo = Photo.of(encoded(noise(400, 200), "PNG"))
    digest = photo.digest
    photo.shrink(100)
    assert photo.pixels().size == (100, 50)
    small = photo.pixels().tobytes()
    photo.release()
    assert photo.pixels().tobytes() == small
    assert photo.digest == digest
    photo.shrink(1024)
    assert photo.pixels().size == (100, 50)


def test_views_are_the_named_parts_of_the_image() -> None:
    scene = Image.new("RGB", (96, 48), "blue")
    scene.paste(RED, (0, 0, 4, 4))
    photo = Photo.of(scene)
    assert photo.view("whole") is photo.pixels()
    assert photo.view("zoom").size == (72, 36)  # three quarters of each side
    corners = [view for view in GROUPS["five_crop"] if view != "centre"]
    assert {photo.view(view).size for view in GROUPS["five_crop"]} == {(64, 32)}
    assert [corner for corner in corners if photo.view(corner).getpixel((0, 0)) == RED] == ["top_left"]
    with pytest.raises(ConfigError, match="no view 'sideways'"):
        photo.view("sideways")


def test_a_thumbnail_is_a_small_jpeg_of_the_whole() -> None:
    data = Photo.of(encoded(noise(400, 200), "PNG")).thumbnail(112)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (100, 50)), "whole blocks of 4 x 4 pixels are averaged"
    assert len(data) < 8_000


def test_a_photo_travels_to_another_process_as_its_source(tmp_path: Path) -> None:
    path = tmp_path / "leaf.png"
    noise().save(path)
    photo = Photo.of(path, name="a leaf")
    photo.pixels()
    copy = pickle.loads(pickle.dumps(photo))
    assert len(pickle.dumps(photo)) < 1_000
    assert (copy.name, copy.path, copy.digest) == ("a leaf", path, photo.digest)
    assert copy.pixels().tobytes() == photo.pixels().tobytes()


def test_the_empty_file_found_in_the_wild_is_refused() -> None:
    path = DATA / "bad" / "empty.jpg"
    if not path.exists():
        pytest.skip(f"no shared data at {DATA}")
    with pytest.raises(ImageError, match=r"empty\.jpg: is empty"):
        Photo.of(path).pixels()
