"""Every image is encoded once, whoever asks and whenever, and what was encoded once is never encoded again."""

from __future__ import annotations

import io
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from secondlook.agents import embedder as module
from secondlook.agents.embedder import Embedder
from secondlook.agents.embedding_cache import EmbeddingCache, default_cache_folder
from secondlook.agents.encoder import Encoder, EncoderSpec, OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.fakes import ToyEncoder
from secondlook.agents.photo import Photo

EMPTY = b""
TEXT = b"this is not an image, whatever it is called"


def noise(seed: int, size: int = 24) -> bytes:
    """Bytes of a PNG whose content depends on the seed."""
    rng = np.random.default_rng(seed)
    pixels = (rng.integers(0, 256, 3) * 0.6 + rng.integers(0, 100, (size, size, 3))).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def photos(*seeds: int, size: int = 24) -> list[Photo]:
    return [Photo.of(noise(seed, size), name=f"{seed}.png") for seed in seeds]


class Counting(ToyEncoder):
    """Remembers how many images each pass encoded."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.passes: list[int] = []

    def encode(self, tensors: Sequence[object]) -> NDArray[np.float32]:
        self.passes.append(len(tensors))
        return super().encode(tensors)  # type: ignore[arg-type]


Make = Callable[..., Embedder]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Embedder] = []

    def one(encoder: Encoder | None = None, **more: object) -> Embedder:
        made.append(Embedder(encoder or Counting(), **more))  # type: ignore[arg-type]
        return made[-1]

    yield one
    for embedder in made:
        embedder.close()


def passes(embedder: Embedder) -> list[int]:
    assert isinstance(embedder.encoder, Counting)
    return embedder.encoder.passes


def test_an_image_is_encoded_once_whoever_asks(make: Make) -> None:
    embedder = make()
    first = embedder.embed(photos(1, 2))
    again = embedder.embed(photos(2, 3, 1))  # other Photo objects of the same bytes
    assert passes(embedder) == [2, 1]
    assert embedder.encoded == 3
    np.testing.assert_array_equal(first.vectors, again.vectors[[2, 0]])


def test_an_image_that_stands_twice_in_a_batch_is_encoded_once(make: Make) -> None:
    embedder = make()
    found = embedder.embed(photos(1, 1, 2, 1))
    assert passes(embedder) == [2]
    np.testing.assert_array_equal(found.vectors[0], found.vectors[3])
    embedder.prepare(photos(5, 5, 5))
    assert len(embedder._ready) == 1


def test_threads_that_ask_for_the_same_images_share_one_pass(make: Make) -> None:
    embedder = make()
    start = threading.Barrier(4)

    def ask(_: int) -> NDArray[np.float32]:
        start.wait()
        return embedder.embed(photos(*range(20))).vectors

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert embedder.encoded == 20
    for vectors in found:
        np.testing.assert_array_equal(vectors, found[0])


def test_no_photo_no_vector_no_pass(make: Make) -> None:
    embedder = make()
    found = embedder.embed([])
    assert len(found.vectors) == 0
    assert found.errors == ()
    assert found.ok.tolist() == []
    assert passes(embedder) == []


def test_unreadable_images_stand_as_errors_among_readable_ones(make: Make, tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    gone.write_bytes(noise(9))
    bad = [Photo.of(EMPTY, name="empty.jpg"), Photo.of(TEXT, name="text.jpg"), Photo.of(gone)]
    gone.unlink()
    good = photos(1, 2)
    embedder = make()
    embedder.prepare([bad[0], good[0], bad[1], good[1], bad[2]])
    found = embedder.embed([bad[0], good[0], bad[1], good[1], bad[2]])
    assert found.ok.tolist() == [1, 3]
    assert np.isnan(found.vectors[[0, 2, 4]]).all()
    np.testing.assert_array_equal(found.vectors[[1, 3]], make().embed(photos(1, 2)).vectors)
    empty, _, text, _, missing = found.errors
    assert empty is not None
    assert empty.startswith("empty.jpg")
    assert text is not None
    assert text.startswith("text.jpg")
    assert missing is not None
    assert "gone.png" in missing
    assert embedder.embed(bad).vectors.shape == (3, 1), "without any vector D is not known"


def test_two_unreadable_images_of_the_same_bytes_both_fail(make: Make) -> None:
    found = make().embed([Photo.of(TEXT), Photo.of(TEXT)])
    assert all(found.errors)


def test_views_are_embedded_apart(make: Make) -> None:
    embedder = make()
    whole, zoom = embedder.embed(photos(1)), embedder.embed(photos(1), "zoom")
    assert np.abs(whole.vectors - zoom.vectors).max() > 1e-3
    assert embedder.encoded == 2
    np.testing.assert_array_equal(embedder.embed(photos(1), "zoom").vectors, zoom.vectors)
    np.testing.assert_array_equal(embedder.embed(photos(1)).vectors, whole.vectors)
    assert embedder.encoded == 2


def test_a_view_that_is_not_there_is_the_users_mistake(make: Make) -> None:
    with pytest.raises(ConfigError, match="no view 'corner'"):
        make().embed(photos(1), "corner")


@settings(max_examples=20)
@given(
    seeds=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    batch_size=st.integers(1, 5),
    prepared=st.booleans(),
)
def test_neither_batch_size_nor_preparation_changes_a_vector(seeds: list[int], batch_size: int, prepared: bool) -> None:
    plain, other = Embedder(Counting()), Embedder(Counting(), batch_size=batch_size)
    given_photos = photos(*seeds)
    if prepared:
        other.prepare(given_photos)
    np.testing.assert_allclose(other.embed(given_photos).vectors, plain.embed(photos(*seeds)).vectors, atol=1e-6)
    assert max(passes(other)) <= batch_size
    assert sum(passes(other)) == len(set(seeds))
    assert not other._ready
    plain.close()
    other.close()


def test_the_real_encoder_gives_the_same_vectors_in_any_batch(make: Make, tiny_clip: Path) -> None:
    encoder = OpenClipEncoder(EncoderSpec(model=str(tiny_clip)), "cpu")
    together = make(encoder, batch_size=16).embed(photos(*range(10))).vectors
    ahead = make(encoder, batch_size=3)
    batch = photos(*range(10))
    ahead.prepare(batch)
    np.testing.assert_allclose(ahead.embed(batch).vectors, together, atol=1e-5)
    np.testing.assert_allclose(make(encoder, batch_size=1).embed(photos(*range(10))).vectors, together, atol=1e-5)


@pytest.mark.parametrize("view", ["whole", "zoom"])
def test_a_large_photo_has_one_vector_whatever_was_asked_for_before(view: str, make: Make) -> None:
    large = noise(3, size=1300)  # above the 1,024 pixels that are kept
    alone = make().embed([Photo.of(large)], view).vectors
    prepared, photo = make(), Photo.of(large)
    prepared.prepare([photo])
    assert max(photo.pixels().size) == 1024, "photos wait small, so that a batch of large ones fits into memory"
    prepared.embed([photo])
    photo.release()
    np.testing.assert_array_equal(prepared.embed([photo], view).vectors, alone)
    after_zoom, photo = make(), Photo.of(large)
    after_zoom.embed([photo], "top_left")
    np.testing.assert_array_equal(after_zoom.embed([photo], view).vectors, alone)


def test_what_was_prepared_is_let_go_of(make: Make) -> None:
    embedder = make()
    embedder.prepare(photos(1, 2))
    assert len(embedder._ready) == 2
    embedder.embed(photos(1, 2))
    assert not embedder._ready
    # The next batch holds an image of this one: it was prepared when its vector was not known yet, and is by now.
    repeated = photos(3, 4)
    embedder.prepare(repeated)
    inputs = dict(embedder._ready)
    embedder.embed(photos(3))
    embedder._ready.update(inputs)
    embedder.embed(repeated)
    assert not embedder._ready


def test_memory_forgets_the_oldest_and_encodes_it_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    embedder = make()
    first = embedder.embed(photos(0, 1, 2, 3, 4)).vectors
    assert len(embedder._memory) == 3
    np.testing.assert_array_equal(embedder.embed(photos(4, 3, 2)).vectors, first[[4, 3, 2]])
    assert embedder.encoded == 5
    np.testing.assert_array_equal(embedder.embed(photos(0)).vectors, first[:1])
    assert embedder.encoded == 6


def test_preparing_and_embedding_at_once_is_safe_while_memory_overflows(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    embedder = make()
    batches = [photos(*range(i, i + 4)) for i in range(12)]
    expected = [make().embed(batch).vectors for batch in batches]
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(embedder.prepare, batches[0])
        for batch, after, vectors in zip(batches, [*batches[1:], []], expected, strict=True):
            coming.result()
            coming = pool.submit(embedder.prepare, after)
            np.testing.assert_allclose(embedder.embed(batch).vectors, vectors, atol=1e-6)
        coming.result()


def test_a_cache_is_read_by_the_next_embedder(make: Make, tmp_path: Path) -> None:
    first = make(cache=EmbeddingCache(tmp_path)).embed(photos(1, 2)).vectors
    second = make(cache=EmbeddingCache(tmp_path))
    second.prepare(photos(1, 2))
    assert not second._ready, "what is cached is not even decoded"
    np.testing.assert_array_equal(second.embed(photos(2, 1)).vectors, first[::-1])
    assert second.encoded == 0
    second.embed(photos(1), "zoom")
    assert second.encoded == 1, "another view has another key"
    other = make(Counting(seed=1), cache=EmbeddingCache(tmp_path))
    assert np.abs(other.embed(photos(1)).vectors - first[:1]).max() > 1e-3
    assert other.encoded == 1, "another encoder has another key"


def test_thumbnails_of_what_is_decoded_are_kept(make: Make, tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    embedder = make(cache=cache, thumbnails=True)
    batch = [*photos(1, 2, size=300), Photo.of(TEXT)]
    embedder.prepare(batch)
    digests = [photo.digest for photo in batch]
    kept = cache.thumbnails(digests)
    assert set(kept) == set(digests[:2])
    picture = Image.open(io.BytesIO(kept[digests[0]]))
    assert picture.format == "JPEG"
    assert max(picture.size) == 100, "whole blocks of 3 x 3 pixels are averaged"
    make(cache=EmbeddingCache(tmp_path / "none")).prepare(batch)
    with EmbeddingCache(tmp_path / "none") as without:
        assert without.thumbnails(digests) == {}


WRITER = """
import sys
from pathlib import Path
import numpy as np
from secondlook.agents.embedding_cache import EmbeddingCache
folder, number = Path(sys.argv[1]), int(sys.argv[2])
sys.stdin.readline()
with EmbeddingCache(folder) as cache:
    for i in range(150):
        cache.add_embeddings({f"shared {i}": np.full(4, i, np.float32), f"{number} {i}": np.full(4, i, np.float32)})
"""


def test_processes_that_open_and_write_one_cache_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "new"), str(number)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        assert writer.communicate(timeout=60)[1] == ""
        assert writer.returncode == 0
    keys = [f"{who} {i}" for who in ("shared", 0, 1, 2) for i in range(150)]
    with EmbeddingCache(tmp_path / "new") as cache:
        found = cache.embeddings(keys)
    assert set(found) == set(keys)
    assert all(row.tolist() == [float(key.split()[1])] * 4 for key, row in found.items())


def test_more_keys_than_a_statement_takes(tmp_path: Path) -> None:
    rows = {str(i): np.array([i, 0.5], np.float32) for i in range(1001)}
    with EmbeddingCache(tmp_path) as cache:
        cache.add_embeddings(rows)
        found = cache.embeddings([*rows, *rows, "unknown"])
    assert {key: row.tolist() for key, row in found.items()} == {key: row.tolist() for key, row in rows.items()}


def test_what_is_in_the_cache_stays_as_it_was(tmp_path: Path) -> None:
    with EmbeddingCache(tmp_path) as cache:
        cache.add_embeddings({"a": np.ones(2, np.float32)})
        cache.add_embeddings({"a": np.zeros(2, np.float32)})
        assert cache.embeddings(["a"])["a"].tolist() == [1, 1]


def test_a_cache_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        EmbeddingCache(tmp_path / "cache")
    assert str(tmp_path / "cache") in caught.value.what
    assert "SECONDLOOK_CACHE" in caught.value.remedy


def test_a_cache_that_is_no_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "embeddings.sqlite").write_bytes(b"not a database, but long enough to be taken for one" * 40)
    with pytest.raises(ConfigError, match="not a database"):
        EmbeddingCache(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ConfigError, match="cannot be used"):
            EmbeddingCache(tmp_path / "below")
    finally:
        tmp_path.chmod(0o700)


def test_a_cache_that_fails_later_is_named_and_goes_on_afterwards(tmp_path: Path) -> None:
    row = {"a": np.ones(2, np.float32)}
    with EmbeddingCache(tmp_path) as cache:
        fail = "CREATE TEMP TRIGGER trouble BEFORE INSERT ON embeddings BEGIN SELECT RAISE(ABORT, 'disk trouble'); END"
        cache._db.execute(fail)  # in the middle of a transaction, as a disk fails
        with pytest.raises(ConfigError, match="cannot be used: disk trouble"):
            cache.add_embeddings(row)
        cache._db.execute("DROP TRIGGER trouble")
        cache.add_embeddings(row)
        assert set(cache.embeddings(["a"])) == {"a"}
    with pytest.raises(sqlite3.ProgrammingError):
        cache.embeddings(["a"])  # a bug, not the user's mistake


def test_the_cache_folder_is_the_users_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECONDLOOK_CACHE", str(tmp_path / "chosen"))
    with EmbeddingCache.default() as cache:
        assert cache.path == tmp_path / "chosen" / "embeddings.sqlite"
    monkeypatch.delenv("SECONDLOOK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "secondlook"
