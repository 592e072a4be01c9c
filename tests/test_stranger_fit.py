"""What finds strangers is chosen by a rule, on labels held out and on strangers given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from sklearn.metrics import average_precision_score, roc_auc_score
from tiny_clip import write_tiny_clip
from toy import toy

from secondlook.agents.case import Case
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.embedder import Embedder
from secondlook.agents.encoder import EncoderSpec, OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.photo import Photo
from secondlook.agents.strangeness import SCORES
from secondlook.agents.stranger_scores import DEFAULT, fit_stranger_scores
from secondlook.agents.typicality import Typicality
from secondlook.eval.embedded import Embedded
from secondlook.eval.fit import fit
from secondlook.eval.stranger_fit import GAIN, GIVEN, Trial, choose, choose_stranger_scores, embed_strangers
from secondlook.orchestrator.fitted import load_model, load_seen
from secondlook.show import print_model

DIM, LABELS = 16, ("a", "b", "c", "d")
NOBODY = Case(id="nobody", photo=Photo.of(np.zeros((2, 2), np.uint8)))


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def split(n: int, seed: int, noise: float = 0.35) -> Embedded:
    """Two images a group, around the axes of their labels."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) // 2 % len(LABELS)
    vectors = unit(2 * np.eye(len(LABELS), DIM)[truth] + rng.normal(0, noise, (n, DIM)))
    return Embedded((NOBODY,) * n, vectors, truth, tuple(f"{seed}-{i // 2}" for i in range(n)))


def words(negatives: int = 0) -> TextClassifier:
    return TextClassifier(
        np.eye(len(LABELS), DIM, dtype=np.float32), np.eye(DIM, dtype=np.float32)[-negatives:][:negatives], 5.0
    )


def test_a_held_out_label_is_measured_as_if_it_had_never_been() -> None:
    train, calibration = split(160, 1), split(120, 2)
    choice = choose_stranger_scores(train, calibration, LABELS, words(), names=("mahalanobis", "negatives"))
    rows = {row.scores: row for row in choice.table}
    assert set(rows[DEFAULT].sets) == {f"without {label}" for label in LABELS}
    # By hand, without c: label d takes its number, its words go, and half of the own images rank the other half.
    keep = train.truth != 2
    rest = np.where(train.truth > 2, train.truth - 1, train.truth)[keep]
    fewer = replace(words(), vectors=np.delete(words().vectors, 2, axis=0))
    scores = fit_stranger_scores(train.vectors[keep], rest, fewer, names=("mahalanobis",))
    own, strange = (
        scores.of(calibration.vectors[rows])[:, 0] for rows in (calibration.truth != 2, calibration.truth == 2)
    )
    oracle = roc_auc_score(np.repeat([0, 1], [len(own), len(strange)]), np.concatenate([own, strange]))
    found = rows["mahalanobis",].sets["without c"]
    assert found.n == len(strange)
    # Ranks among half of the own images are coarser than the scores.
    assert found.auroc == pytest.approx(oracle, abs=0.02)


def test_a_combination_is_measured_as_typicality_makes_one_of_it() -> None:
    rng = np.random.default_rng(0)
    own = {"mahalanobis": rng.normal(size=60), "energy": rng.normal(size=60)}
    strange = {name: rng.normal(1, 1, 40) for name in own}
    trial = Trial(own, strange, np.arange(60) % 2)  # type: ignore[arg-type]
    found = trial.separation(("mahalanobis", "energy"))
    areas, precisions = [], []
    for fold in range(2):
        ref, held = [np.stack(list(own.values()), 1)[i::2] for i in (1 - fold, fold)]
        typicality = Typicality.fit(ref)
        said = -np.concatenate([typicality.of(held), typicality.of(np.stack(list(strange.values()), 1))])
        truth = np.repeat([0, 1], [30, 40])
        areas.append(roc_auc_score(truth, said))
        precisions.append(average_precision_score(truth, said))
    assert found.auroc == pytest.approx(np.mean(areas))
    assert found.aupr == pytest.approx(np.mean(precisions))
    assert 0 < found.fpr95 < 1


def trial_of(**shifts: float) -> Trial:
    """Independent scores that are normal on 400 own images, and on 400 strangers too but for a shift."""
    rng = np.random.default_rng(5)
    own = {name: rng.normal(size=400) for name in shifts}
    strange = {name: rng.normal(shift, 1, 400) for name, shift in shifts.items()}
    return Trial(own, strange, np.arange(400) % 2)  # type: ignore[arg-type]


def test_the_best_score_is_taken_and_what_adds_to_it() -> None:
    # AUROC of a shift s is Phi(s / sqrt 2): .94 for 2.2, .92 for 2; two of independent noise are better than one.
    trial = trial_of(mahalanobis=1, negatives=0, energy=2.2, entropy=2, knn_cosine=0)
    names = ("mahalanobis", "negatives", "energy", "entropy", "knn_cosine")
    choice = choose({"without a": trial, "without b": trial}, names)
    assert choice.scores == ("energy", "entropy")
    found = {row.scores: row.mean for row in choice.table}
    assert found[choice.scores] >= found["energy",] + GAIN
    assert found["energy",] == pytest.approx(0.94, abs=0.02)


def test_three_at_the_most_are_taken() -> None:
    names = ("mahalanobis", "negatives", "energy", "entropy", "knn_cosine")
    choice = choose({"without a": trial_of(**dict.fromkeys(names, 0.8))}, names)
    assert len(choice.scores) == 3


def test_without_a_clear_gain_the_scores_by_default_stand() -> None:
    trial = trial_of(mahalanobis=3, negatives=3, energy=4, entropy=0)
    choice = choose({"without a": trial}, ("mahalanobis", "negatives", "energy", "entropy"))
    found = {row.scores: row.mean for row in choice.table}
    assert found["energy",] > found["mahalanobis",]
    assert max(found.values()) < found[DEFAULT] + GAIN
    assert choice.scores == DEFAULT


def test_the_strangers_given_count_as_much_as_all_labels_held_out() -> None:
    near, far = trial_of(mahalanobis=0, negatives=0, energy=1), trial_of(mahalanobis=3, negatives=0, energy=0)
    names = ("mahalanobis", "negatives", "energy")
    row = next(r for r in choose({"without a": near, "without b": near, GIVEN: far}, names).table)
    held_out, given = row.sets["without a"].auroc, row.sets[GIVEN].auroc
    assert row.mean == pytest.approx((held_out + given) / 2)


def test_the_same_seed_chooses_the_same_and_every_score_is_in_the_table() -> None:
    once, again = (choose_stranger_scores(split(80, 1), split(60, 2), LABELS, words(2), seed=4) for _ in range(2))
    assert once.model_dump_json() == again.model_dump_json()
    assert {(name,) for name in SCORES} <= {row.scores for row in once.table}


def test_two_labels_leave_one_and_that_is_enough() -> None:
    both = [replace(part, truth=part.truth % 2) for part in (split(80, 1), split(60, 2))]
    classifier = replace(words(), vectors=words().vectors[:2])
    choice = choose_stranger_scores(*both, ("x", "y"), classifier)
    assert set(choice.table[0].sets) == {"without x", "without y"}


def gray(n: int, seed: int = 0) -> list[Photo]:
    rng = np.random.default_rng(seed)
    return [Photo.of(rng.integers(0, 256, (24, 24), np.uint8), name=f"gray {i}") for i in range(n)]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    clip = write_tiny_clip(tmp_path_factory.mktemp("clip"))
    return Embedder(OpenClipEncoder(EncoderSpec(model=str(clip)), "cpu"))


def test_strangers_that_cannot_be_read_are_counted_and_too_few_are_refused(embedder: Embedder) -> None:
    broken = Photo.of(b"not a picture", name="broken")
    found = embed_strangers([*gray(6), broken], embedder, set())
    assert found.vectors.shape[0] == len(found.digests) == 6
    assert len(found.notes) == 1
    assert found.notes[0].startswith("1 of 7 strangers could not be read: broken: ")
    with pytest.raises(ConfigError, match=r"4 of 5 strangers can be read.*broken"):
        embed_strangers([*gray(4), broken], embedder, set())


def test_an_own_image_is_no_stranger(embedder: Embedder) -> None:
    photos = gray(6)
    with pytest.raises(ConfigError, match="gray 2 is an image of the data set"):
        embed_strangers(photos, embedder, {photos[2].digest})


def test_of_too_many_strangers_some_are_looked_at(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secondlook.eval.stranger_fit.MOST_GIVEN", 6)
    photos = gray(13)
    found = embed_strangers(photos, embedder, set())
    assert found.digests == {photo.digest for photo in photos[::3]}


@pytest.mark.slow
def test_fit_keeps_the_choice_shows_it_and_remembers_the_strangers(tmp_path: Path) -> None:
    t = toy()
    for i, photo in enumerate(gray(12)):
        image = photo.pixels()
        assert isinstance(image, Image.Image)
        image.save(tmp_path / f"{i}.png")
    photos = [Photo.of(path) for path in sorted(tmp_path.glob("*.png"))]
    model = fit(t.data, tmp_path / "model", config=t.config, strangers=photos)
    again, arrays = load_model(tmp_path / "model")
    assert again.strangers == model.strangers
    assert arrays.strangers.names == model.strangers.scores
    assert all(row.sets[GIVEN].n == 12 for row in model.strangers.table)
    assert {photo.digest for photo in photos} <= load_seen(tmp_path / "model")
    console = Console(width=200, record=True, quiet=False, file=(tmp_path / "shown").open("w"))
    print_model(model, console)
    shown = console.export_text()
    assert "What finds strangers" in shown
    assert " + ".join(model.strangers.scores) in shown
