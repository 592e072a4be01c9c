"""Tables of answers, one by one and together: by hand, and where they must differ."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from secondlook.agents.answer_table import AnswerTable
from secondlook.orchestrator.confusion import Confusion, JointConfusion, answer_codes, fit_joint_confusion
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.policies import fit_fusion

Floats = NDArray[np.float64]
Truth = NDArray[np.intp]
NAMES = ("a", "b")


def stated(labels: list[list[int]], confidence: float = 0.9, k: int = 2) -> Opinions:
    """Agents that say labels, all with one confidence; -1 is a failure."""
    said = np.full((len(labels), len(labels[0]), k), (1 - confidence) / (k - 1))
    for m, row in enumerate(labels):
        for i, label in enumerate(row):
            said[m, i, label] = confidence
            said[m, i] = np.nan if label < 0 else said[m, i]
    return Opinions.uncalibrated(NAMES[: len(labels)], said)


def riddle(copies: int = 20) -> tuple[Opinions, Truth]:
    """The truth is 0 where two agents agree and 1 where they do not; each alone says nothing about it."""
    first, second = [0, 1, 0, 1] * copies, [0, 1, 1, 0] * copies
    return stated([first, second]), np.array([0, 0, 1, 1] * copies, dtype=np.intp)


def folds_of(n: int) -> Truth:
    return np.arange(n, dtype=np.intp) // 4 % 5  # as many of each joint answer in each fold


def test_independent_tables_are_multiplied_as_by_hand() -> None:
    # Of ten cases of each label the first agent is right in 9 and 8, the second in 7 and 6; confidences are constant.
    first = [0] * 9 + [1] + [1] * 8 + [0] * 2
    second = [0] * 7 + [1] * 3 + [1] * 6 + [0] * 4
    truth = np.array([0] * 10 + [1] * 10, dtype=np.intp)
    opinions = stated([first, second])
    tables = tuple(AnswerTable.fit(said, truth) for said in opinions.said)
    fusion = Confusion(agents=NAMES, prior=(0.5, 0.5), tables=tables)
    # P(j | k) = (n + a K P0) / (n(k) + a K), a K = 1, P0 = 1/4 + r/2 for the right label with r = (17 + 1) / (20 + 2)
    # and (13 + 1) / 22: .65909 and .56818. Both say 0: (9 + .65909) (7 + .56818) against (2 + .34091) (4 + .43182).
    odds = (9 + 0.25 + 18 / 44) * (7 + 0.25 + 14 / 44) / ((2 + 0.25 + 4 / 44) * (4 + 0.25 + 8 / 44))
    both = stated([[0], [0]])
    np.testing.assert_allclose(fusion.fuse(both), [[odds / (1 + odds), 1 / (1 + odds)]])
    # Without the second, its factor is missing.
    odds = (9 + 0.25 + 18 / 44) / (2 + 0.25 + 4 / 44)
    np.testing.assert_allclose(fusion.fuse(stated([[0], [-1]])), [[odds / (1 + odds), 1 / (1 + odds)]])


def test_what_agents_say_together_is_seen_where_each_alone_says_nothing() -> None:
    opinions, truth = riddle()
    apart, together = (fit_fusion(name, opinions, truth, folds_of(80)) for name in ("confusion", "joint_confusion"))
    np.testing.assert_allclose(apart.beliefs, 0.5)
    assert (together.beliefs.argmax(axis=1) == truth).all()
    assert together.fusion.nll < 0.1 < apart.fusion.nll == pytest.approx(np.log(2))


def test_a_joint_answer_is_counted_and_pulled_towards_independence_as_by_hand() -> None:
    # 40 cases of each label; "both say 0" was seen 20 times of label 0, never of label 1. Apart, each agent says 0 in
    # half of the cases whatever the label, so independence expects 1/4. With s = 5: (20 + 5/4) / 45 and (0 + 5/4) / 45.
    opinions, truth = riddle()
    fitted = fit_joint_confusion(opinions, truth, folds_of(80)).fusion
    assert isinstance(fitted, JointConfusion)
    assert fitted.strength == 5.0
    plain = JointConfusion(
        agents=NAMES, prior=fitted.prior, tables=fitted.tables, cells=fitted.cells, strength=fitted.strength
    )
    expected = np.array([20 + 5 / 4, 5 / 4]) / (20 + 5 / 2)
    np.testing.assert_allclose(plain.fuse(stated([[0], [0]])), expected[None])
    # Of the first agent alone: it said 0 in 20 cases of either label.
    np.testing.assert_allclose(plain.fuse(stated([[0], [-1]])), [[0.5, 0.5]])
    assert np.isnan(plain.fuse(stated([[-1], [-1]]))).all()


def test_where_some_failed_the_others_are_looked_up_among_all_cases_they_answered() -> None:
    # The second agent fails in the last eight cases. The first says 0 in 6 of 8 cases of label 0 and in 2 of 8 of 1.
    truth = np.array([0] * 4 + [1] * 4 + [0] * 4 + [1] * 4, dtype=np.intp)
    first = [0, 0, 0, 1, 0, 1, 1, 1] * 2
    opinions = stated([first, [0, 0, 1, 1, 0, 0, 1, 1] + [-1] * 8])
    tables = tuple(AnswerTable.fit(said, truth) for said in opinions.said)
    codes = answer_codes(tables, opinions)
    cells = tuple((int(y), 1, int(a), int(b)) for y, (a, b) in zip(truth, codes, strict=True))
    fusion = JointConfusion(agents=NAMES, prior=(0.5, 0.5), tables=tables, cells=cells, strength=1e-9)
    np.testing.assert_allclose(fusion.fuse(stated([[0], [-1]])), [[0.75, 0.25]], atol=1e-6)
    # Together, cases 0 and 1 of label 0 and case 4 of label 1, among 4 and 4.
    np.testing.assert_allclose(fusion.fuse(stated([[0], [0]])), [[2 / 3, 1 / 3]], atol=1e-6)


def test_a_joint_answer_never_seen_is_read_as_if_the_agents_were_independent() -> None:
    truth = np.array([0, 0, 0, 1, 1, 1], dtype=np.intp)
    opinions = stated([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])  # they never disagree
    tables = tuple(AnswerTable.fit(said, truth) for said in opinions.said)
    cells = ((0, 2, 0, 0), (0, 1, 1, 1), (1, 3, 1, 1))
    joint = JointConfusion(agents=NAMES, prior=(0.5, 0.5), tables=tables, cells=cells, strength=5.0)
    apart = Confusion(agents=NAMES, prior=(0.5, 0.5), tables=tables)
    new = stated([[0], [1]])
    np.testing.assert_allclose(joint.fuse(new), apart.fuse(new))


def test_copies_of_an_agent_are_not_counted_as_evidence_of_their_own() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 400).astype(np.intp)
    says = np.where(rng.random(400) < 0.7, truth, rng.integers(0, 3, 400))
    one = stated([says.tolist()], k=3)
    six = Opinions.uncalibrated(tuple("abcdef"), one.probs.repeat(6, axis=0))
    alone, copied = (fit_fusion("confusion", o, truth, folds_of(400)) for o in (one, six))
    assert copied.fusion.nll == pytest.approx(alone.fusion.nll, abs=0.01)
    right = (copied.beliefs.argmax(axis=1) == truth).mean()
    assert copied.beliefs.max(axis=1).mean() == pytest.approx(right, abs=0.03)


def test_many_labels_and_agents_keep_every_number_finite() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 20, 60).astype(np.intp)
    probs = rng.dirichlet(np.full(20, 0.1), (40, 60))
    opinions = Opinions.uncalibrated(tuple(f"a{m}" for m in range(40)), probs)
    for name in ("confusion", "joint_confusion"):
        fusion, beliefs = fit_fusion(name, opinions, truth, folds_of(60))
        assert np.isfinite(beliefs).all()
        assert np.isfinite(fusion.fuse(opinions)).all()
