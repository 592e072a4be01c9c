"""The model folder: read as it was written, damage named, and never half of one in its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
from toy_world import ColourEncoder, colours, toy_arrays, toy_model, toy_searcher

from secondlook.agents.calibration import Calibrator
from secondlook.agents.case import digest_of
from secondlook.agents.errors import ConfigError
from secondlook.orchestrator.fitted import (
    ARRAYS_FILE,
    INDEX_FOLDER,
    MODEL_FILE,
    SEEN_FILE,
    Arrays,
    fresh_folder,
    load_model,
    load_seen,
    save_model,
)
from secondlook.retrieval.index import build_index

SEEN = {"b" * 64, "a" * 64}


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return toy_arrays()


@pytest.fixture
def folder(tmp_path: Path, arrays: Arrays) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    save_model(made, toy_model(), arrays, SEEN)
    return made


def assert_equal(a: object, b: object) -> None:
    """Compare dataclasses of arrays, the arrays bit by bit and their types too."""
    assert type(a) is type(b)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict) and isinstance(b, dict):
        assert set(a) == set(b)
        for name in a:
            assert_equal(a[name], b[name])
    elif is_dataclass(a):
        for field in fields(a):
            assert_equal(getattr(a, field.name), getattr(b, field.name))
    else:
        assert a == b


def test_a_model_is_read_as_it_was_written(folder: Path, arrays: Arrays) -> None:
    wanted = toy_model()
    model, found = load_model(folder)
    # Undefined figures are null in JSON and nan here, and nan is unequal to itself.
    assert model.model_dump_json() == wanted.model_dump_json()
    assert np.isnan(model.records[0].ece.value)
    assert np.isnan(model.gate.accepted_error)
    assert model.digest == wanted.digest
    assert_equal(found, arrays)
    assert list(found.heads) == list(arrays.heads)
    assert load_seen(folder) == SEEN


def test_a_field_that_a_later_version_adds_with_a_default_changes_no_digest() -> None:
    class Later(Calibrator):
        added: float = 1.0

    before = Calibrator(kind="temperature", temperature=2.0, n=9)
    assert digest_of(Later.model_validate(before.model_dump())) == digest_of(before)
    assert digest_of(Later(**before.model_dump() | {"added": 2.0})) != digest_of(before)


def test_a_digest_is_the_same_read_from_json_what_is_undefined_too() -> None:
    model = toy_model()
    assert type(model).model_validate_json(model.model_dump_json()).digest == model.digest
    assert digest_of(Calibrator.model_validate_json(Calibrator().model_dump_json())) == digest_of(Calibrator())


def test_the_digest_changes_with_what_was_learned_or_configured() -> None:
    model = toy_model()
    changed = [
        toy_model(threshold=0.71),
        model.model_copy(update={"config": model.config.model_copy(update={"seed": 1})}),
        model.model_copy(update={"second_look": False}),
    ]
    assert len({model.digest, *(m.model_validate(m.model_dump()).digest for m in changed)}) == 4


def truncate(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return damage


def rewrite(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = json.loads((folder / MODEL_FILE).read_text())
        (folder / MODEL_FILE).write_text(json.dumps(found | changes))

    return damage


def without_head(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / ARRAYS_FILE)
    save_file(
        {name: value for name, value in tensors.items() if name != "heads.linear-head.bias"}, folder / ARRAYS_FILE
    )


DAMAGES: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no folder": (shutil.rmtree, "is not a model folder: it holds no model.json", "secondlook fit"),
    "no model.json": (lambda f: (f / MODEL_FILE).unlink(), "is not a model folder", "secondlook fit"),
    "half of model.json": (truncate(MODEL_FILE), "cannot be read as a model folder", "run fit again"),
    "model.json is a list": (lambda f: (f / MODEL_FILE).write_text("[]") and None, "format None", "Run fit again"),
    "model.json is binary": (lambda f: (f / MODEL_FILE).write_bytes(b"\xff\xfe\x00") and None, "cannot be read", "fit"),
    "another format": (rewrite(format=99), "was written in format 99; this version reads format 4", "Run fit again"),
    "a field of another type": (rewrite(gate=3), "cannot be read as a model folder", "run fit again"),
    "an unknown field": (rewrite(surprise=1), "cannot be read as a model folder", "run fit again"),
    "no arrays": (lambda f: (f / ARRAYS_FILE).unlink(), ARRAYS_FILE, "run fit again"),
    "half of the arrays": (truncate(ARRAYS_FILE), ARRAYS_FILE, "run fit again"),
    "empty arrays": (lambda f: (f / ARRAYS_FILE).write_bytes(b"") and None, ARRAYS_FILE, "run fit again"),
    "an array is missing": (without_head, "heads.linear-head.bias", "run fit again"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_with_its_remedy(folder: Path, name: str) -> None:
    damage, what, remedy = DAMAGES[name]
    damage(folder)
    with pytest.raises(ConfigError) as caught:
        load_model(folder)
    assert what in caught.value.what
    assert str(folder) in caught.value.what
    assert remedy in caught.value.remedy


def test_a_missing_list_of_fitted_images_is_named(folder: Path) -> None:
    (folder / SEEN_FILE).unlink()
    with pytest.raises(ConfigError, match=SEEN_FILE):
        load_seen(folder)


def hidden(parent: Path) -> list[str]:
    return [path.name for path in parent.iterdir() if path.name.startswith(".")]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_appears_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "model"
    with fresh_folder(final) as place:
        (place / MODEL_FILE).write_text("new")
        assert not final.exists()
    assert snapshot(final) == {MODEL_FILE: b"new"}
    assert hidden(final.parent) == []
    assert final.stat().st_mode & 0o777 == 0o755


def test_an_old_model_is_replaced_when_the_new_one_is_whole(folder: Path) -> None:
    before = snapshot(folder)
    with fresh_folder(folder) as place:
        (place / MODEL_FILE).write_text("new")
        assert snapshot(folder) == before
    assert snapshot(folder) == {MODEL_FILE: b"new"}
    assert hidden(folder.parent) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_model_whole(folder: Path, error: type[BaseException]) -> None:
    before = snapshot(folder)

    def killed() -> None:
        with fresh_folder(folder) as place:
            (place / MODEL_FILE).write_text("half")
            raise error

    with pytest.raises(error):
        killed()
    assert snapshot(folder) == before
    assert hidden(folder.parent) == []


def test_the_old_model_is_whole_somewhere_at_every_moment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(folder)
    seen: list[bool] = []

    def watched(path: Path, **_: object) -> None:
        # Whatever is deleted, a whole model stands in the final place.
        seen.append(snapshot(folder) in (before, {MODEL_FILE: b"new"}))

    monkeypatch.setattr(shutil, "rmtree", watched)
    with fresh_folder(folder) as place:
        (place / MODEL_FILE).write_text("new")
    assert seen
    assert all(seen)


def test_what_is_not_a_model_folder_is_never_replaced(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "leaf.jpg").write_bytes(b"precious")
    for taken in (photos, photos / "leaf.jpg"):
        with pytest.raises(ConfigError, match="is not a model folder"), fresh_folder(taken):
            pytest.fail("the folder must not be written")
    assert snapshot(photos) == {"leaf.jpg": b"precious"}
    assert hidden(tmp_path) == []


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with fresh_folder(empty) as place:
        (place / MODEL_FILE).write_text("new")
    assert snapshot(empty) == {MODEL_FILE: b"new"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), fresh_folder(tmp_path / "file" / "model"):
        pytest.fail("there is no such place")


def test_a_model_folder_holds_no_pickle_of_ours(folder: Path) -> None:
    kinds = ("red", "green", "blue") * 20
    items = list(toy_searcher().index.store.all().items)
    build_index(folder / INDEX_FOLDER, items, colours(kinds, 1)[0], ColourEncoder.digest).close()
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    outside = {str(name) for name in names if name.parts[0] != INDEX_FOLDER}
    assert outside == {MODEL_FILE, ARRAYS_FILE, SEEN_FILE}
    for name in names:
        head = (folder / name).read_bytes()[:2]
        # Chroma's own reader, in Rust, takes data from its index_metadata.pickle and runs nothing.
        assert name.name == "index_metadata.pickle" or (head[:1] != b"\x80" and name.suffix not in (".pkl", ".pt"))
    assert {name.suffix for name in names} <= {".json", ".safetensors", ".txt", ".sqlite3", ".bin", ".pickle"}
