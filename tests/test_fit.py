"""Fit: the same data, the same model; nothing judged by what was fitted on it; nothing asked of the test split."""

from __future__ import annotations

from pathlib import Path

import anyio
import numpy as np
import pytest
from bad_images import write_bad_images
from toy import GROUPS, LABELS, toy, toy_config, toy_image, write_toy

from secondlook.agents.calibration import Calibrator
from secondlook.agents.case import Task
from secondlook.agents.errors import ConfigError
from secondlook.agents.prediction import Failure, Outcome, Prediction
from secondlook.eval.cases import read_dataset
from secondlook.eval.embedded import Embedded
from secondlook.eval.fit import choose_splits, fit
from secondlook.eval.held_out import ask_blocking, calibrate_all
from secondlook.eval.look_fit import LookFit, count_flips, fit_look
from secondlook.eval.record import SHRUNK_BY, track_record
from secondlook.eval.task_file import read_task, read_templates
from secondlook.orchestrator.fitted import load_model, load_seen
from secondlook.orchestrator.gate import Gate, LookData
from secondlook.orchestrator.trust_model import features, fit_trust

N_CALIBRATION = 2 * len(LABELS) * GROUPS["calibration"]


def test_what_fit_returns_is_what_the_folder_holds() -> None:
    t = toy()
    assert load_model(t.model)[0].model_dump_json() == t.fitted.model_dump_json()


def test_the_splits_are_recorded_with_cases_groups_and_digest() -> None:
    splits = toy().fitted.splits
    assert {name: (s.n, s.n_groups) for name, s in splits.items()} == {"train": (48, 24), "calibration": (84, 42)}
    assert len({s.digest for s in splits.values()}) == 2


def test_fit_is_deterministic_and_never_opens_an_image_of_the_test_split(tmp_path: Path) -> None:
    t = toy()
    data = write_toy(tmp_path / "data")
    for image in (data / "test").rglob("*.png"):
        image.write_bytes(b"not an image")
    again = fit(data, tmp_path / "model", config=t.config)
    assert again.digest == t.fitted.digest
    names = {p.name for p in (tmp_path / "model").iterdir()}
    assert names == {"model.json", "arrays.safetensors", "fitted_on.txt", "index"}
    for name in ("arrays.safetensors", "fitted_on.txt"):
        assert (tmp_path / "model" / name).read_bytes() == (t.model / name).read_bytes()


def test_the_images_that_were_used_are_remembered_by_digest() -> None:
    t = toy()
    used = {row.case.photo.digest for row in read_dataset(t.data).cases if row.split != "test"}
    assert load_seen(t.model) == used


def test_without_splits_groups_are_split_and_the_seed_is_said(tmp_path: Path) -> None:
    dataset = read_dataset(write_toy(tmp_path, splits=False))
    train, calibration, [note] = choose_splits(dataset, seed=7)
    assert "split by group 60/20/20 with seed 7" in note
    groups = [{row.case.group for row in part} for part in (train, calibration)]
    assert not groups[0] & groups[1]
    n = len(dataset.cases)
    assert (len(train) / n, len(calibration) / n) == (pytest.approx(0.6, abs=0.03), pytest.approx(0.2, abs=0.03))
    assert choose_splits(dataset, seed=7)[0] == train
    assert choose_splits(dataset, seed=8)[0] != train


def test_every_record_has_its_n_and_intervals_around_the_value() -> None:
    records = toy().fitted.records
    assert [(r.agent, r.look) for r in records] == [
        ("zero-shot", 1),
        ("linear-head", 1),
        ("zero-shot", 2),
        ("linear-head", 2),
        ("neighbour-vote", 2),
    ]
    for r in records:
        assert (r.n, r.n_failed) == (N_CALIBRATION, 0)
        for measure in (r.accuracy, r.ece):
            assert 0 <= measure.low <= measure.high <= 1
            assert measure.n > 0
        assert r.accuracy.low <= r.accuracy.value <= r.accuracy.high
        assert sum(p.n for p in r.precision.values()) == N_CALIBRATION


def test_images_that_cannot_be_read_are_left_out_with_a_note(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data")
    for split in ("train", "calibration"):
        write_bad_images(data / split / "red")
    (data / "index.csv").unlink()
    model = fit(data, tmp_path / "model", config=toy_config(toy().clip))
    assert {name: s.n for name, s in model.splits.items()} == {"train": 48, "calibration": 84}
    for split, n in (("train", 65), ("calibration", 101)):
        [note] = [note for note in model.notes if f"of {n} {split} images could not be read and were left out" in note]
        assert note.startswith("17 ")
        assert f"{split}/red/animated.gif: holds 3 frames" in note


def test_a_label_whose_images_are_all_unreadable_is_too_few_and_says_why(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data")
    for image in (data / "train" / "red").iterdir():
        image.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"of red \(0\).* 16 of 48 train images could not be read"):
        fit(data, tmp_path / "model", config=toy_config(toy().clip))
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_the_same_image_on_two_sides_is_refused(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data")
    (data / "index.csv").unlink()
    toy_image("red", 0).save(data / "calibration" / "red" / "copy.png")
    with pytest.raises(ConfigError, match="The same image stands in two splits"):
        fit(data, tmp_path / "model", config=toy_config(toy().clip))


def test_a_folder_with_more_than_a_model_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not a model folder: it holds thesis.tex"):
        fit(toy().data, tmp_path, config=toy().config)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


# -- no case is judged by what was fitted on it


def synthetic(n: int = 240, k: int = 3) -> tuple[Embedded, dict[str, list[Outcome]], np.ndarray]:
    """Answers of two agents about n cases in groups of two, with folds by group."""
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, k, n // 2), 2)
    outcomes: dict[str, list[Outcome]] = {}
    for agent, skill in (("a", 2.0), ("b", 1.0)):
        logits = rng.normal(0, 1, (n, k)) + skill * np.eye(k)[truth]
        outcomes[agent] = [Prediction(agent=agent, scale="logit", scores=tuple(row)) for row in logits]
    split = Embedded((), np.zeros((n, 1), np.float32), truth, tuple(f"g{i // 2}" for i in range(n)))
    return split, outcomes, np.repeat(np.arange(n // 2) % 5, 2)


def test_no_stage_tells_a_group_what_its_own_labels_are() -> None:
    # Stage by stage: given what the stage before it said, nothing in a group's own fold was fitted on its labels.
    split, outcomes, folds = synthetic()
    own, others = np.array([0, 1]), folds != 0
    truth = split.truth.copy()
    truth[own] = (truth[own] + 1) % 3
    changed = Embedded(split.cases, split.vectors, truth, split.groups)

    before, after = (calibrate_all(outcomes, y, folds, 3) for y in (split.truth, truth))
    assert [a.calibrator.kind for a in before] == [a.calibrator.kind for a in after]
    np.testing.assert_array_equal(after[0].probs[own], before[0].probs[own])
    assert (after[0].probs[others] != before[0].probs[others]).any()

    one, two = (fit_look(before, s, np.ones(len(truth)), folds).fitted for s in (split, changed))
    assert one.fusion.kind == "pool"
    assert two.fusion.kind == "pool"
    np.testing.assert_array_equal(two.beliefs[own], one.beliefs[own])
    assert (two.beliefs[others] != one.beliefs[others]).any()

    x = features(one.beliefs, np.stack([a.probs for a in before]), np.ones(len(truth)))
    right = one.beliefs.argmax(axis=1) == split.truth
    flipped = right.copy()
    flipped[own] = ~right[own]
    trusted, doubted = (fit_trust(x, r, folds)[1] for r in (right, flipped))
    np.testing.assert_array_equal(doubted[own], trusted[own])
    assert (doubted[others] != trusted[others]).any()


def test_failures_are_left_out_of_calibration_and_stay_nan() -> None:
    split, outcomes, folds = synthetic()
    outcomes["b"][3] = Failure(agent="b", error="broken")
    a, b = calibrate_all(outcomes, split.truth, folds, 3)
    assert np.isnan(b.probs[3]).all()
    assert not np.isnan(np.delete(b.probs, 3, axis=0)).any()
    assert (a.calibrator.n, b.calibrator.n) == (240, 239)


def test_an_agent_that_only_fails_is_recorded_as_such() -> None:
    split, outcomes, folds = synthetic()
    outcomes["b"] = [Failure(agent="b", error="broken")] * 240
    b = calibrate_all(outcomes, split.truth, folds, 3)[1]
    rng = np.random.default_rng(0)
    record = track_record("b", 1, b.probs, b.raw, split.truth, split.groups, LABELS, b.calibrator, rng)
    assert (record.n, record.n_failed) == (240, 240)
    assert np.isnan(record.accuracy.value)
    assert np.isnan(record.nll)


def test_a_record_counts_by_hand() -> None:
    # Four cases of two labels: right, right, wrong, failed. Accuracy 2/3; label 0 said twice, right once, shrunk by
    # two cases' worth of the overall 2/3: (1 + 2 * 2/3) / 4 = 7/12; label 1 said once, right: (1 + 4/3) / 3 = 7/9.
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [np.nan, np.nan]])
    truth = np.array([0, 1, 1, 0])
    rng = np.random.default_rng(0)
    record = track_record("a", 1, probs, probs, truth, list("wxyz"), ("no", "yes"), Calibrator(), rng)
    assert SHRUNK_BY == 2
    assert (record.n, record.n_failed, record.accuracy.n) == (4, 1, 3)
    assert record.accuracy.value == pytest.approx(2 / 3)
    assert record.precision["no"].value == pytest.approx(7 / 12)
    assert record.precision["yes"].value == pytest.approx(7 / 9)
    assert record.nll == pytest.approx(-np.log([0.9, 0.8, 0.4]).mean())
    assert record.brier == pytest.approx(np.mean([0.1**2 * 2, 0.2**2 * 2, 0.6**2 * 2]))


def test_flips_are_counted_among_the_cases_that_would_be_looked_at_again() -> None:
    truth = np.array([0, 0, 0, 0, 0, 0])
    typicality = np.array([1, 1, 1, 1, 1, 0.0])
    # Case 0 is accepted at the first look; case 5 is a stranger, which is shown to a human with evidence.
    first = np.array([0, 1, 0, 1, 1, 1])
    second = np.array([1, 0, 1, 2, 1, 0])

    def look(labels: np.ndarray, trust: list[float]) -> LookFit:
        return LookFit(None, None, LookData(np.array(trust), labels != truth), labels)  # type: ignore[arg-type]

    gate = Gate(threshold=0.5, stranger_limit=0.05)
    trust = [0.96, 0.1, 0.1, 0.1, 0.1, 0.1]
    ledger = count_flips(look(first, trust), look(second, trust), gate, typicality, truth)
    assert (ledger.asked, ledger.fixed, ledger.broken, ledger.changed_between_wrongs) == (5, 2, 1, 1)
    assert ledger.net == 1


# -- asking


class Echo:
    """Says of each case how many were asked about together."""

    name = "echo"

    async def predict(self, cases):  # type: ignore[no-untyped-def]
        return [Prediction(agent="echo", scale="vote", scores=(len(cases), 0.0)) for _ in cases]


def test_a_panel_is_asked_in_parts_and_answers_in_order() -> None:
    cases = [row.case for row in read_dataset(toy().data).cases] * 3
    [answers] = ask_blocking([Echo()], cases).values()
    assert [a.scores[0] for a in answers] == [256] * 256 + [len(cases) - 256] * (len(cases) - 256)
    assert ask_blocking([Echo()], []) == {}


def test_a_panel_can_be_asked_from_within_a_running_event_loop() -> None:
    async def within() -> int:
        return len(ask_blocking([Echo()], [read_dataset(toy().data).cases[0].case])["echo"])

    assert anyio.run(within) == 1


# -- words


def test_descriptions_are_read_and_a_label_without_any_is_called_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "words.yaml"
    file.write_text("labels:\n  red: [a red thing, 5]\nnegatives: [a gray thing]\n")
    task = read_task(LABELS, file)
    assert task == Task(labels=LABELS, phrases={"red": ("a red thing", "5")}, negatives=("a gray thing",))


def test_the_packaged_descriptions_are_taken_where_they_know_every_label() -> None:
    assert read_task(("rust", "scab"), None).phrases_of("rust") == ("an apple leaf with cedar apple rust",)
    assert read_task(("rust", "mildew"), None) == Task(labels=("rust", "mildew"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no `labels:`"),
        ("just words", "has no `labels:`"),
        ("labels: [red]", "has no `labels:`"),
        ("labels: {red: a red thing}", "red is not a list of texts"),
        ("labels: {red: [{a: b}]}", "red is not a list of texts"),
        ("labels: {red: [x]}\nnegatives: gray", "negatives is not a list of texts"),
        ("labels: {purple: [x]}", "unknown labels: \\['purple'\\]"),
        ("labels: {red: [x]}\ncost: {red: {blue: 2}}", "'cost' stands for nothing"),
        ("costs: {red: {red: 1}}", "words.yaml: costs: to call 'red' 'red' cannot cost 1"),
        ("costs: {red: {blue: 0, green: 0}, blue: {red: 0, green: 0}, green: {red: 0, blue: 0}}", "no error costs"),
        ("labels: {red: [x", "are not YAML"),
        ("!!python/object/apply:os.system [ls]", "are not YAML"),
        ("[" * 500, "are not YAML"),
        ("\x00", "are not YAML"),
        ("#" * (2**20 + 1), "larger than 1 MiB"),
    ],
)
def test_bad_descriptions_are_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "words.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read_task(LABELS, file)
    assert caught.value.remedy


def test_descriptions_that_are_not_text_or_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "words.yaml").write_bytes(b"\xff\xfe\xfd")
    for name in ("words.yaml", "missing.yaml", ""):
        with pytest.raises(ConfigError, match=str(tmp_path / name)):
            read_task(LABELS, tmp_path / name)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a photo", "'a photo' does not hold {} once"),
        ("a {} photo of {}.", "does not hold {} once"),
        ("# nothing\n", "holds no template"),
    ],
)
def test_bad_templates_are_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "words.txt"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_templates(str(file))
    with pytest.raises(ConfigError, match="There is no template file"):
        read_templates(str(tmp_path / "missing.txt"))


def test_one_label_or_one_split_is_refused_before_any_image_is_read(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data")
    (data / "index.csv").unlink()
    for split in ("train", "test"):
        (data / split).rename(tmp_path / split)
    with pytest.raises(ConfigError, match=r"has the splits \['calibration'\], but no 'train'"):
        fit(data, tmp_path / "model")
    (tmp_path / "one").mkdir()
    (tmp_path / "train" / "red").rename(tmp_path / "one" / "red")
    with pytest.raises(ConfigError, match="holds only one label, 'red'"):
        fit(tmp_path / "one", tmp_path / "model")
