"""Every way to fuse beside the one that decides: in the model, in an evaluation, in the report and in `show`."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from command import run_cli
from rich.console import Console
from sklearn.metrics import matthews_corrcoef
from toy import evaluated, toy

from secondlook.agents.calibration import Calibrator
from secondlook.eval.embedded import Embedded
from secondlook.eval.held_out import Answers
from secondlook.eval.look_fit import fit_look, opinions_of, shared_errors
from secondlook.eval.measured import read_measured
from secondlook.eval.run_folder import METRICS
from secondlook.eval.standings import RULES, standings
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.policies import POLICIES, PolicyName
from secondlook.show import print_model

OTHERS = set(POLICIES) - {"auto", "judge"}
"""What a panel without a judge can be fused by."""


def test_fit_keeps_every_policy_of_the_last_look_with_its_held_out_nll() -> None:
    model = toy().fitted
    assert set(model.alternatives) == OTHERS
    for fusion in model.alternatives.values():
        assert fusion.agents == model.fusions[2].agents
        assert math.isfinite(fusion.nll)
    assert model.fusions[2].nll <= model.alternatives["best_agent"].nll


def test_an_evaluation_has_the_accuracy_and_the_calibration_error_of_each() -> None:
    m = evaluated()[1].metrics
    for name in OTHERS:
        assert isinstance(m[f"base/{name}"], float)
    for name in OTHERS - {"best_agent"}:
        assert isinstance(m[f"base/{name}/ece"], float)
    assert m["base/pool"] <= m["base/oracle"]  # type: ignore[operator]
    assert m["base/neighbour_vote/ece"] == m["agents/neighbour-vote@2/ece"]


def test_each_gain_is_the_difference_to_the_system_within_its_paired_interval_and_errors_are_shared() -> None:
    m = read_measured(evaluated()[0] / METRICS).numbers
    keys = {f"base/{name}": f"base/{name}" for name in OTHERS} | {"agents/zero-shot": "agents/zero-shot/acc"}
    for key, right in keys.items():
        assert m[f"{key}/gain"] == pytest.approx(m[right] - m["acc/top1"])
        assert m[f"{key}/gain/lo"] <= m[f"{key}/gain"] <= m[f"{key}/gain/hi"]
    wrong = {name: 1 - m[f"agents/{name}/acc"] for name in ("zero-shot", "linear-head")}
    assert m["errors/zero-shot + linear-head/both_wrong"] <= min(wrong.values()) + 1e-9


def test_the_table_of_the_report_has_a_row_for_each_with_its_calibration_error() -> None:
    measured = read_measured(evaluated()[0] / METRICS)
    rows = {row.name: row for row in standings(measured, measured.figure("acc/top1")) if row.kind == "rule"}
    assert set(rows) == {RULES[name] for name in OTHERS}
    assert all(row.ece is not None for row in rows.values())


def test_show_lists_them_best_first_and_the_errors_that_agents_share() -> None:
    text = io.StringIO()
    print_model(toy().fitted, Console(file=text, width=200))
    lines = text.getvalue().splitlines()
    ordered = sorted(toy().fitted.alternatives.items(), key=lambda item: item[1].nll)
    place = {name: next(i for i, line in enumerate(lines) if f" {name} " in line) for name, _ in ordered}
    assert place[ordered[0][0]] < place[ordered[-1][0]]
    assert any("zero-shot + linear-head " in line for line in lines)


# --- what a look is fitted with ---


def test_a_policy_is_named_on_the_command_line_and_another_name_is_refused(tmp_path: Path) -> None:
    options = ("--encoder", toy().clip, "--fusion")
    refused = run_cli("fit", toy().data, "--out", tmp_path / "m", *options, "vote", cache=tmp_path)
    assert refused.code == 2
    assert "--fusion: Input should be" in refused.err
    done = run_cli("fit", toy().data, "--out", tmp_path / "m", *options, "neighbour-vote", "--json", cache=tmp_path)
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["config"]["fusion"] == "neighbour_vote"
    assert any(note.startswith("Look 1: neighbour vote cannot be fitted here") for note in said["notes"])
    assert {fusion["kind"] for fusion in said["fusions"].values()} <= {"neighbour_vote", "best_agent"}


def answers(n: int = 120, seed: int = 0) -> tuple[list[Answers], Embedded]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n).astype(np.intp)
    found = []
    for agent, skill in (("a", 1.5), ("b", 1.0)):
        z = np.exp(rng.normal(size=(n, 3)) + skill * np.eye(3)[truth])
        probs = z / z.sum(axis=1, keepdims=True)
        found.append(Answers(agent, 1, probs, probs, Calibrator()))
    return found, Embedded((), np.zeros((n, 1), np.float32), truth, tuple(f"g{i}" for i in range(n)))


@pytest.mark.parametrize("policy", [name for name in POLICIES if name not in ("neighbour_vote", "judge")])
def test_a_look_is_decided_by_the_policy_asked_for_or_by_the_best_agent(policy: PolicyName) -> None:
    found, split = answers()
    folds = np.arange(120) % 5
    fusion = fit_look(found, split, np.ones(120), folds, policy).fitted.fusion
    if fusion.nll < min(fusion.agent_nll.values()):
        assert fusion.kind == policy or policy == "auto"
    else:
        assert fusion.kind == "best_agent"


@pytest.mark.parametrize("policy", ["neighbour_vote", "judge"])
def test_a_look_without_the_agent_that_should_decide_is_decided_by_the_best_one(policy: PolicyName) -> None:
    found, split = answers()
    fusion = fit_look(found, split, np.ones(120), np.arange(120) % 5, policy).fitted.fusion
    assert (fusion.kind, fusion.best_agent) == ("best_agent", "a")


def test_shared_errors_are_those_of_scikit_learn_and_undefined_where_an_agent_never_errs() -> None:
    found, split = answers()
    opinions = opinions_of(found)
    (pair,) = shared_errors(opinions, split.truth)
    wrong = opinions.probs.argmax(axis=2) != split.truth
    assert (pair.agents, pair.n) == (("a", "b"), 120)
    assert pair.phi == pytest.approx(matthews_corrcoef(*wrong))
    assert pair.both_wrong == pytest.approx(wrong.all(axis=0).mean())
    perfect = np.eye(3)[split.truth]
    (pair,) = shared_errors(Opinions.uncalibrated(("a", "c"), np.stack([found[0].probs, perfect])), split.truth)
    assert math.isnan(pair.phi)
    assert pair.both_wrong == 0
