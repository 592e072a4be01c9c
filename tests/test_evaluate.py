"""An evaluation: its figures against scikit-learn on the verdicts it wrote, and what a second run does."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, roc_auc_score
from toy import LABELS, evaluated, toy, toy_image

from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.errors import ConfigError
from secondlook.eval.evaluate import evaluate, labelled_cases, stranger_cases, triage
from secondlook.eval.run_folder import METRICS, TABLE, VERDICTS
from secondlook.eval.summary import Scored, score, summarise_strangers
from secondlook.eval.tally import Row, read_rows

PROMISED = {
    "n", "n_groups", "acc/top1", "acc/balanced", "cal/ece", "cal/nll", "cal/brier", "sel/coverage",
    "sel/accepted_error", "sel/target_risk", "look/second_share", "look/fixed", "look/broken", "base/best_agent",
    "base/neighbour_vote", "base/majority", "base/oracle", "time/images_per_s", "ood/gray/review_share",
    "ood/gray/auroc",
} | {
    f"agents/{name}/{figure}"
    for name in ("zero-shot", "linear-head", "zero-shot@2", "linear-head@2", "neighbour-vote@2")
    for figure in ("acc", "ece")
}  # fmt: skip


def rows() -> list[Row]:
    return list(read_rows(evaluated()[0] / VERDICTS))


def test_every_promised_figure_is_there_and_is_a_number() -> None:
    metrics = evaluated()[1].metrics
    assert set(metrics) >= PROMISED
    assert [name for name in PROMISED if not isinstance(metrics[name], int | float)] == []


def test_the_metrics_are_written_as_strict_json() -> None:
    run, found = evaluated()
    written = json.loads((run / METRICS).read_text(), parse_constant=pytest.fail)
    assert written == found.metrics


def test_every_case_of_the_test_split_was_judged_once_with_its_truth() -> None:
    truth = {row.case.id: row.truth for row in labelled_cases(toy().data, LABELS, "test")}
    assert {row.id: row.truth for row in rows()} == truth
    assert len(rows()) == len(truth) == 36


def test_figures_agree_with_scikit_learn_on_the_written_verdicts() -> None:
    m, found = evaluated()[1].metrics, rows()
    truth, label = [r.truth for r in found], [r.label for r in found]
    probs = np.array([r.probs for r in found])
    right = np.array(truth) == np.array(label)
    accepted = np.array([r.action == "accept" for r in found])
    onehot = np.array(truth)[:, None] == np.array(LABELS)
    assert m["acc/top1"] == pytest.approx(accuracy_score(truth, label))
    assert m["acc/balanced"] == pytest.approx(balanced_accuracy_score(truth, label))
    assert m["cal/nll"] == pytest.approx(log_loss(truth, probs, labels=LABELS))
    assert m["cal/brier"] == pytest.approx(((probs - onehot) ** 2).sum(axis=1).mean())
    assert m["sel/coverage"] == pytest.approx(accepted.mean())
    assert m["sel/accepted_error"] == pytest.approx((~right)[accepted].mean())
    assert m["look/second_share"] == pytest.approx(np.mean([len(r.looks) == 2 for r in found]))
    confidence = probs.max(axis=1)
    bins = np.minimum((confidence * 15).astype(int), 14)
    ece = sum(abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in set(bins))
    assert m["cal/ece"] == pytest.approx(ece)


def test_intervals_hold_their_figures() -> None:
    m = evaluated()[1].metrics
    for name in ("acc/top1", "sel/coverage", "sel/accepted_error"):
        assert m[f"{name}/lo"] <= m[name] <= m[f"{name}/hi"]  # type: ignore[operator]


def test_the_alternatives_are_ordered_as_they_must_be() -> None:
    m = evaluated()[1].metrics
    alone = [m[f"agents/{name}/acc"] for name in ("zero-shot", "linear-head", "zero-shot@2", "linear-head@2")]
    assert m["base/oracle"] >= max(alone)  # type: ignore[type-var, operator]
    assert m["base/best_in_hindsight"] == max([*alone, m["base/neighbour_vote"]])  # type: ignore[type-var]
    assert m["base/best_agent"] == m[f"agents/{m['base/best_agent_name']}/acc"]


def test_what_an_agent_says_in_the_first_look_of_a_verdict_is_what_it_is_measured_by() -> None:
    m, found = evaluated()[1].metrics, rows()
    for number, name in enumerate(("zero-shot", "linear-head")):
        said = [row.looks[0].opinions[number] for row in found]
        assert {opinion.agent for opinion in said} == {name}
        right = np.mean([opinion.label == row.truth for opinion, row in zip(said, found, strict=True)])
        assert m[f"agents/{name}/acc"] == pytest.approx(right)


def test_strangers_are_measured_against_ones_own_images() -> None:
    run, found = evaluated()
    outside = list(read_rows(run / "ood" / "gray" / VERDICTS))
    inside = rows()
    auroc = roc_auc_score(
        [0] * len(inside) + [1] * len(outside),
        [-r.typicality for r in [*inside, *outside]],  # type: ignore[operator]
    )
    assert found.metrics["ood/gray/auroc"] == pytest.approx(auroc)
    assert found.metrics["ood/gray/n"] == len(outside) == 12
    assert found.metrics["ood/gray/review_share"] == np.mean([r.action == "review" for r in outside])
    assert {r.truth for r in outside} == {None}
    assert (run / "ood" / "gray" / "report.html").is_file()


def test_figures_of_no_strangers_are_undefined_and_not_zero() -> None:
    undefined = dict.fromkeys(("review_share", "auroc", "aupr", "fpr95"))
    assert summarise_strangers([0.5], [], 0) == {"n": 0} | undefined


def test_a_case_without_an_answer_is_wrong_and_uniform() -> None:
    row = rows()[0]
    look = row.looks[0].model_copy(update={"probs": None, "trust": None, "decision": "review"})
    failed = row.model_copy(
        update={"label": None, "probs": None, "confidence": None, "trust": None, "looks": (look,), "action": "review"}
    )
    scored = score([failed, row])
    assert isinstance(scored, Scored)
    assert (scored.label[0], scored.first_label[0], scored.trust[0]) == (-1, -1, 0)
    assert scored.probs[0].tolist() == [1 / 3] * 3
    assert not scored.right[0]


def test_the_table_says_what_the_verdicts_say() -> None:
    with (evaluated()[0] / TABLE).open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(t["id"], t["label"], t["truth"], t["action"]) for t in table] == [
        (r.id, r.label, r.truth, r.action) for r in rows()
    ]
    assert [float(t["confidence"]) for t in table] == [r.confidence for r in rows()]


def test_the_same_evaluation_again_judges_nothing_and_says_the_same(tmp_path: Path) -> None:
    run, found = evaluated()
    copy = shutil.copytree(run, tmp_path / "run")
    with EmbeddingCache(tmp_path / "cache") as store:
        again = evaluate(toy().data, toy().model, copy, cache=store, ood=[toy().home / "gray"], report=False)
    assert (copy / VERDICTS).read_bytes() == (run / VERDICTS).read_bytes()
    assert (again.metrics["time/images_per_s"], again.report) == (None, None)
    timeless = {k: v for k, v in found.metrics.items() if not k.startswith("time/")}
    assert {k: again.metrics[k] for k in timeless} == pytest.approx(timeless)


def small(folder: Path, n: int = 6) -> Path:
    for i in range(n):
        path = folder / LABELS[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        toy_image(LABELS[i % 3], 500 + i).save(path)
    return folder


def test_a_run_is_not_resumed_with_other_images_or_truths(tmp_path: Path) -> None:
    data = small(tmp_path / "data")

    def judge() -> float | int | str | None:
        with EmbeddingCache(tmp_path / "cache") as store:
            return evaluate(data, toy().model, tmp_path / "run", cache=store, report=False).metrics["n"]

    assert judge() == 6
    toy_image("red", 900).save(data / "red" / "new.png")
    with pytest.raises(ConfigError, match=r"holds another run: .* now images differs"):
        judge()
    (data / "red" / "new.png").unlink()
    assert judge() == 6
    (data / "blue" / "0.png").rename(data / "red" / "0.png")
    with pytest.raises(ConfigError, match="now images differs"):
        judge()


def test_triage_judges_only_what_is_new_in_a_folder(tmp_path: Path) -> None:
    images = small(tmp_path / "images")

    def judge() -> tuple[int, int]:
        with EmbeddingCache(tmp_path / "cache") as store:
            found = triage(images, toy().model, tmp_path / "run", cache=store, report=False)
        return found.n, found.pace.images

    assert judge() == (6, 6)
    assert judge() == (6, 0)
    toy_image("red", 900).save(images / "new.png")
    assert judge() == (7, 1)


def test_triage_of_one_image_and_without_a_second_look(tmp_path: Path) -> None:
    image = next((toy().data / "test").rglob("*.png"))
    with EmbeddingCache(tmp_path / "cache") as store:
        found = triage(image, toy().model, tmp_path / "run", cache=store, second_look=False)
    assert (found.n, found.accepted + sum(found.reasons.values())) == (1, 1)
    assert found.report == tmp_path / "run" / "report.html"
    assert [len(row.looks) for row in read_rows(tmp_path / "run" / VERDICTS)] == [1]


def test_the_truth_is_written_beside_the_verdict_and_seen_by_nobody(tmp_path: Path) -> None:
    # The same images under false labels get the same verdicts.
    data = tmp_path / "data"
    for i, row in enumerate(labelled_cases(toy().data, LABELS, "test")):
        assert row.case.photo.path
        target = data / LABELS[i % 3] / f"{i:02}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(row.case.photo.path, target)
    with EmbeddingCache(tmp_path / "cache") as store:
        evaluate(data, toy().model, tmp_path / "run", cache=store, report=False)
    false = {row.digest: row for row in read_rows(tmp_path / "run" / VERDICTS)}
    for row in rows():
        other = false[row.digest]
        assert (other.label, other.action) == (row.label, row.action)
        assert other.probs == pytest.approx(row.probs, abs=1e-5)


def test_strangers_are_named_by_their_folder_wherever_it_is_given_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small(tmp_path / "gray")
    monkeypatch.chdir(folder)
    assert list(stranger_cases([Path()])) == ["gray"]
    assert list(stranger_cases([Path("red/..")])) == ["gray"]
    with pytest.raises(ConfigError, match="'gray' is taken"):
        stranger_cases([folder, Path()])


def test_nothing_undefined_is_written_as_a_number() -> None:
    assert not [k for k, v in evaluated()[1].metrics.items() if isinstance(v, float) and not math.isfinite(v)]
