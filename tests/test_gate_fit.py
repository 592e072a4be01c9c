"""Costs, prediction sets and budgets through `fit`, `evaluate` and `show`, on pictures of one colour."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from command import run_cli
from toy import LABELS, evaluated, toy

from secondlook.agents.cost import Budget, Limits
from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.eval.evaluate import Evaluated, evaluate
from secondlook.eval.fit import fit
from secondlook.eval.tally import Row, read_rows
from secondlook.orchestrator.fitted import Model, load_model
from secondlook.orchestrator.loss import Loss
from secondlook.show import model_json

COSTS = "costs: {red: {blue: 10, green: 4}}"


class Costly(NamedTuple):
    model: Model
    found: Evaluated
    rows: list[Row]
    page: str


@cache
def costly() -> Costly:
    """A fit whose worst error is to call red blue, and its evaluation."""
    t, home = toy(), toy().home / "costs"
    home.mkdir()
    (home / "task.yaml").write_text(COSTS)
    config = t.config.model_copy(
        update={
            "set_method": "aps",
            "set_per_label": True,
            "early_trust": 0.9,
            "target_risk": 0.1,
            "budget": Budget(per_run=Limits(looks=5)),
        }
    )
    with EmbeddingCache(home / "cache") as store:
        model = fit(t.data, home / "model", config=config, descriptions=home / "task.yaml", cache=store)
        found = evaluate(t.data, home / "model", home / "run", cache=store)
    assert load_model(home / "model")[0].digest == model.digest
    assert found.report is not None
    return Costly(model, found, list(read_rows(home / "run" / "verdicts.jsonl")), found.report.read_text())


def test_the_costs_reach_the_gate_and_what_it_promises() -> None:
    model = costly().model
    assert model.task.labels == LABELS == ("blue", "green", "red")
    assert model.task.costs == ((0, 1, 1), (1, 0, 1), (10, 4, 0))
    assert model.gate.loss == "cost"
    assert model.gate.promise == "the mean cost under 10% of the largest cost"
    assert model.gate.threshold is not None
    assert model.gate.thresholds[-1] == model.gate.threshold
    assert '"thresholds"' in model_json(model)


def test_every_label_is_the_one_that_costs_least_and_is_in_its_prediction_set() -> None:
    rows, loss = costly().rows, Loss(costs=costly().model.task.costs)
    known = [row for row in rows if row.probs is not None]
    for row in known:
        assert row.probs is not None
        assert row.label == LABELS[loss.labels(np.array([row.probs]))[0]] == row.looks[-1].label
        assert row.confidence == row.probs[LABELS.index(str(row.label))]
        assert row.label in row.prediction_set
    against = [row for row in known if row.probs and row.confidence != max(row.probs)]
    assert against, "some image must be called red for safety's sake"
    assert {row.label for row in against} == {"red"}
    assert {row.action for row in against} == {"review"}, "what is chosen against the odds is shown to a human"


def test_the_cost_of_what_was_accepted_is_measured_and_said() -> None:
    metrics, rows = costly().found.metrics, costly().rows
    costs = np.array(costly().model.task.costs)
    losses = [
        costs[LABELS.index(str(row.truth)), LABELS.index(str(row.label))] / 10 for row in rows if row.action == "accept"
    ]
    assert metrics["sel/accepted_cost"] == pytest.approx(np.mean(losses))
    assert "of the largest" in costly().page
    assert "sel/accepted_cost" not in evaluated()[1].metrics


def test_prediction_sets_are_of_the_configured_kind() -> None:
    sets = costly().model.gate.sets
    assert (sets.method, sets.per_label, sets.randomised) == ("aps", True, False)
    assert len(sets.limits) == len(LABELS)
    assert sum(sets.counts) == costly().model.splits["calibration"].n
    assert toy().fitted.gate.sets.method == "lac"


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--set-method", "raps"), "--set-method: Input should be 'lac' or 'aps', got raps"),
        (("--set-level", "1"), "--set-level"),
        (("--early-trust", "0"), "--early-trust"),
        (("--budget", "run.wishes=3"), "--budget run.wishes=3: expected SCOPE.KIND=MOST"),
        (("--budget", "case.usd=-1"), "--budget case.usd: Input should be greater"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(tmp_path: Path, option: tuple[str, str], says: str) -> None:
    ran = run_cli("fit", tmp_path, "--out", tmp_path / "m", *option)
    assert ran.code == 2
    assert says in ran.err
    assert "Traceback" not in ran.err
