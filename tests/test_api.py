"""Three lines of Python: whatever holds one image is judged, lazily and from anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import numpy as np
import pytest
from PIL import Image
from toy import LABELS, toy, toy_image

import secondlook
from secondlook import ConfigError, SecondLook, Verdict
from secondlook.agents.photo import Photo


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecondLook]:
    with SecondLook.load(toy().model, cache=tmp_path_factory.mktemp("cache"), batch_size=4) as loaded:
        yield loaded


@pytest.fixture
def image() -> Image.Image:
    return toy_image("red", 700)


def test_the_front_door_has_three_names() -> None:
    assert sorted(secondlook.__all__) == ["ConfigError", "SecondLook", "Verdict"]
    assert all(hasattr(secondlook, name) for name in secondlook.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Secondlook'"):
        secondlook.Secondlook  # noqa: B018


def test_a_path_bytes_an_image_and_an_array_get_the_same_verdict(
    look: SecondLook, image: Image.Image, tmp_path: Path
) -> None:
    path = tmp_path / "leaf.png"
    image.save(path)
    forms = [path, str(path), path.read_bytes(), image, np.asarray(image), Photo.of(path)]
    verdicts = [look(form) for form in forms]
    assert [v.id for v in verdicts] == ["leaf.png", "leaf.png", "image", "image", "image", "leaf.png"]
    for verdict in verdicts:
        assert isinstance(verdict, Verdict)
        assert verdict.label == verdicts[0].label
        assert verdict.probs == pytest.approx(verdicts[0].probs, abs=1e-6)
        assert verdict.confidence == max(verdict.probs or ())
        assert verdict.action in ("accept", "review")
        assert verdict.model == look.model.digest


def test_a_batch_of_mixed_forms_keeps_its_order(look: SecondLook, tmp_path: Path) -> None:
    path = tmp_path / "leaf.png"
    toy_image("blue", 701).save(path)
    images = [path, toy_image("green", 702), b"broken", np.asarray(toy_image("red", 703)), str(path)]
    verdicts = list(look.triage(images))
    assert [v.id for v in verdicts] == [str(path), "1", "2", "3", str(path)]
    assert verdicts[0].probs == pytest.approx(verdicts[4].probs, abs=1e-6)
    assert [v.reason == "no_outcome" for v in verdicts] == [False, False, True, False, False]
    assert "not an image" in verdicts[2].why


def test_arrays_may_come_as_one_batch_and_one_image_is_one_case(look: SecondLook, image: Image.Image) -> None:
    batch = np.stack([np.asarray(toy_image(label, 704)) for label in LABELS])
    assert len(list(look.triage(batch))) == 3
    single = look(image)
    for form in (np.asarray(image), image.tobytes()):
        assert len(list(look.triage(form))) == 1
    assert next(look.triage(np.asarray(image))).probs == pytest.approx(single.probs, abs=1e-6)


def test_a_folder_is_judged_in_the_order_of_its_paths(look: SecondLook) -> None:
    found = [v.id for v in look.triage(toy().data / "test")]
    assert found == sorted(p.relative_to(toy().data / "test").as_posix() for p in (toy().data / "test").rglob("*.png"))


def test_no_images_no_verdicts(look: SecondLook) -> None:
    assert list(look.triage([])) == []


def test_a_generator_is_read_no_further_than_two_batches_ahead(look: SecondLook) -> None:
    taken = 0

    def images() -> Iterator[Image.Image]:
        nonlocal taken
        for i in range(40):
            taken += 1
            yield toy_image("green", 710 + i % 3)

    stream = look.triage(images())
    assert taken == 0
    for done in range(1, 41):
        next(stream)
        batches = -(-done // 4)
        assert taken <= 4 * (batches + 1)
    assert next(stream, None) is None


def test_a_stream_can_be_left_in_the_middle(look: SecondLook, image: Image.Image) -> None:
    stream = look.triage(image for _ in range(20))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert look(image).label


def test_it_works_within_a_running_event_loop(look: SecondLook, image: Image.Image) -> None:
    async def within() -> tuple[str | None, int]:
        return look(image).label, len(list(look.triage([image, image])))

    assert anyio.run(within) == (look(image).label, 2)


def test_the_group_of_an_image_keeps_its_own_kind_from_being_evidence(look: SecondLook) -> None:
    train = next((toy().data / "train" / "red").glob("*.png"))
    group = f"red-{train.stem.partition('_')[0]}"
    verdict = look(train, group=group)
    assert verdict.group == group
    assert group not in {neighbour.group for neighbour in verdict.evidence}


def test_what_was_fitted_can_be_read(look: SecondLook) -> None:
    assert look.model.task.labels == LABELS
    assert look.model.records[0].accuracy.n > 0


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("nowhere.jpg", "nowhere.jpg: No such file"),
        ("https://example.org/leaf.jpg", "is a URL; images are not fetched"),
        (np.zeros((4, 4, 3)), "expected uint8"),
        (7, "cannot be made of int"),
        (Path(), "is a folder"),
    ],
)
def test_what_is_no_image_at_all_is_refused(look: SecondLook, form: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        look(form)  # type: ignore[arg-type]
    assert caught.value.remedy


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a model folder"):
        SecondLook.load(tmp_path, cache=tmp_path / "cache")
    with pytest.raises(ConfigError, match="There is no device 'gpu'"):
        SecondLook.load(toy().model, device="gpu")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_size: expected 1 or more, got 0"):
        SecondLook.load(toy().model, batch_size=0)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"embedding cache .* cannot be used"):
        SecondLook.load(toy().model, cache=tmp_path / "file")


def test_without_a_cache_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Image.Image) -> None:
    monkeypatch.setenv("SECONDLOOK_CACHE", str(tmp_path / "cache"))
    with SecondLook.load(toy().model, cache=False) as look:
        assert look(image).label
    assert not (tmp_path / "cache").exists()
