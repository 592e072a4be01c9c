"""The figures of a replay: each policy's, the recorded answers' own, and how small a difference they could show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, isnan
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secondlook.eval.accuracy import accuracy, f1_scores
from secondlook.eval.answer_rows import PUBLISHED
from secondlook.eval.arrays import mean
from secondlook.eval.bootstrap import mean_interval, wilson
from secondlook.eval.paired import holm, images_needed, mcnemar_exact, sign_flip
from secondlook.eval.policy import Decided
from secondlook.eval.proper_scores import nll
from secondlook.eval.recorded_answers import RecordedAnswers, Spent, labels_said
from secondlook.eval.reliability import ccc, ece, ocr
from secondlook.eval.replay import Replay
from secondlook.eval.selective import aurc
from secondlook.orchestrator.rules import neighbour_vote_in

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Figures = dict[str, float | int | str | None]
LEVEL = 0.05
"""Of the tests."""
POINTS = 3.0
"""Difference in accuracy, in points, that the output says how many images would show."""
FINAL = "orchestrator"
"""What the published final answer is called among the figures, unless an agent is called so."""


class Judged(NamedTuple):
    """One set of beliefs about N cases, as the metrics take them."""

    probs: Floats
    """Of shape (N, K); uniform where nobody answered."""
    labels: Ints
    """Of shape (N,); -1, which is never right, where nobody answered."""


def judged(beliefs: Floats) -> Judged:
    """Read beliefs of shape (N, K), of which rows may be nan; a case without a belief counts as wrong.

    Examples
    --------
    >>> judged(np.array([[0.1, 0.9], [np.nan, np.nan]])).labels.tolist()
    [1, -1]
    """
    missing = np.asarray(np.isnan(beliefs).any(axis=1))
    probs = np.where(missing[:, None], 1 / beliefs.shape[1], beliefs)
    return Judged(probs, np.where(missing, -1, probs.argmax(axis=1)))


def quality(found: Judged, truth: Ints) -> dict[str, float]:
    """Accuracy, and what the probabilities of the top labels are worth; nan where undefined."""
    confidence, right = found.probs.max(axis=1), found.labels == truth
    return {
        "acc/top1": accuracy(found.labels, truth),
        "cal/ece": ece(confidence, right),
        "cal/nll": nll(found.probs, truth),
        "cal/ocr": ocr(confidence, right),
        "cal/ccc": ccc(confidence, right),
        "sel/aurc": aurc(confidence, right),
    }


def averaged(decided: Sequence[Decided]) -> Judged:
    """Return the belief about each case, averaged over those repeats that have one."""
    total = np.nansum([each.beliefs for each in decided], axis=0)
    weight = total.sum(axis=1, keepdims=True)
    return judged(np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0))


def decisions(decided: Sequence[Decided]) -> Ints:
    """Return one label a case, shape (N,): the one most repeats gave; of equals the one of higher average belief."""
    mean_belief = averaged(decided)
    votes = np.zeros_like(mean_belief.probs)
    for each in decided:
        labels = judged(each.beliefs).labels
        votes[labels >= 0, labels[labels >= 0]] += 1
    # An average belief is at most 1, so half of it never outweighs a vote.
    chosen = (votes + mean_belief.probs / 2).argmax(axis=1)
    return np.where(mean_belief.labels < 0, -1, chosen)


def figures(found: Replay) -> dict[str, object]:
    """Compute everything a replay says, as it is printed by `secondlook replay --json`; None where undefined."""
    answers = found.answers
    policies = {name: _policy_figures(decided, answers, found.seed) for name, decided in found.decided.items()}
    chosen = {name: decisions(decided) for name, decided in found.decided.items()}
    rivals = _rivals(answers)
    for rival, labels in rivals.items():
        tests = {name: compared(own, labels, answers, found.seed) for name, own in chosen.items()}
        adjusted = holm([float(test["p"]) for test in tests.values()])
        for (name, test), p in zip(tests.items(), adjusted.tolist(), strict=True):
            policies[name] |= {f"vs/{rival}/{key}": value for key, value in test.items()} | {f"vs/{rival}/p_holm": p}
    return {
        "n": len(answers.cases),
        "n_groups": len(set(answers.groups)),
        "labels": list(answers.labels),
        "columns": list(answers.columns),
        "folds": found.folds,
        "repeats": found.repeats,
        "seed": found.seed,
        "policies": {name: _defined(values) for name, values in policies.items()},
        "published": {name: _defined(values) for name, values in published(answers).items()},
        "power": _defined(power(answers, chosen, rivals)),
        "notes": list(answers.notes),
    }


def _policy_figures(decided: Sequence[Decided], answers: RecordedAnswers, seed: int) -> dict[str, float]:
    truth = answers.truth
    each = [quality(judged(one.beliefs), truth) for one in decided]
    found = {key: mean(_known([one[key] for one in each])) for key in each[0]}
    accuracies = np.array([one["acc/top1"] for one in each])
    found["acc/top1/sd"] = float(np.std(accuracies, ddof=1)) if len(each) > 1 else float("nan")
    found["acc/top1/lo"], found["acc/top1/hi"] = _interval(decided, answers, seed)
    found |= {f"avg/{key}": value for key, value in quality(averaged(decided), truth).items()}
    costs = [spent(one.asked, answers) for one in decided]
    return found | {key: float(np.mean([cost[key] for cost in costs])) for key in costs[0]}


def _known(values: Sequence[float]) -> Floats:
    return np.array([value for value in values if not isnan(value)])


def _interval(decided: Sequence[Decided], answers: RecordedAnswers, seed: int) -> tuple[float, float]:
    """95 % interval of the accuracy: groups resampled, a case counts by the share of repeats in which it was right.

    Cases are what was drawn; repeats only deal them anew, so they do not make the interval narrower. Where every case
    counts the same the bootstrap has no width, and Wilson's interval for as many cases as there are groups stands in.
    """
    right = np.mean([judged(one.beliefs).labels == answers.truth for one in decided], axis=0)
    if np.ptp(right) > 0:
        found = mean_interval(right, answers.groups, rng=np.random.default_rng([seed, 2]))
    else:
        n = len(set(answers.groups))
        found = wilson(round(float(right[0]) * n), n)
    return found.lo, found.hi


def spent(asked: NDArray[np.bool_], answers: RecordedAnswers) -> dict[str, float]:
    """Compute what the answers asked for took per image.

    Parameters
    ----------
    asked : ndarray of shape (M, N)
    answers : RecordedAnswers

    Returns
    -------
    dict of str to float
        Calls by kind; seconds and USD, nan where an answer that was asked for is recorded without.
    """
    return _per_image([(each, rows) for each, rows in zip(answers.spent.values(), asked, strict=True)], asked.shape[1])


def _per_image(parts: Sequence[tuple[Spent, NDArray[np.bool_]]], n: int) -> dict[str, float]:
    def total(values: Callable[[Spent], Floats], kind: str | None = None) -> float:
        return sum(float(values(each)[rows].sum()) for each, rows in parts if kind in (None, each.kind)) / n

    return {
        "cost/vlm_calls_per_image": total(lambda each: each.calls, "vlm"),
        "cost/llm_calls_per_image": total(lambda each: each.calls, "llm"),
        "cost/seconds_per_image": total(lambda each: each.seconds),
        "cost/usd_per_image": total(lambda each: each.usd),
    }


def _rivals(answers: RecordedAnswers) -> dict[str, Ints]:
    """Labels of shape (N,) that every policy is compared with: as recorded, so nothing about them was fitted."""
    vote = neighbour_vote_in(answers.columns)
    rivals = {} if answers.published is None else {"published": answers.published}
    return rivals | ({} if vote is None else {"neighbour_vote": labels_said(answers.outcomes[vote])})


def compared(labels: Ints, other: Ints, answers: RecordedAnswers, seed: int) -> dict[str, float | str]:
    """Test whether one set of labels is as often right as another on the same cases.

    Exact McNemar where every case is a group of its own; where cases share groups they are not independent, and the
    signs of whole groups are flipped instead.
    """
    one, two = labels == answers.truth, other == answers.truth
    found: dict[str, float | str] = {
        "points": 100 * (mean(one) - mean(two)),
        "only_policy": int((one & ~two).sum()),
        "only_other": int((two & ~one).sum()),
        "test": "sign flips by group" if answers.grouped else "exact McNemar",
    }
    if answers.grouped:
        rng = np.random.default_rng([seed, 3])
        found["p"] = sign_flip(one.astype(float) - two, answers.groups, rng=rng)
    else:
        found["p"] = mcnemar_exact(int(found["only_policy"]), int(found["only_other"]))
    return found


def published(answers: RecordedAnswers) -> dict[str, dict[str, float]]:
    """Recompute accuracy and weighted F1 of every column as recorded, and of the published final answer."""
    n, everybody = len(answers.cases), np.ones((len(answers.columns), len(answers.cases)), dtype=np.bool_)
    found = {}
    for m, (name, row) in enumerate(answers.outcomes.items()):
        alone = everybody & (np.arange(len(everybody)) == m)[:, None]
        found[name] = _recorded(labels_said(row), answers) | spent(alone, answers)
    if answers.published is not None and answers.published_spent is not None:
        parts = [*answers.spent.values(), answers.published_spent]
        cost = _per_image([(each, everybody[0]) for each in parts], n)
        found[FINAL if FINAL not in found else PUBLISHED] = _recorded(answers.published, answers) | cost
    return found


def _recorded(labels: Ints, answers: RecordedAnswers) -> dict[str, float]:
    return {
        "acc/top1": accuracy(labels, answers.truth),
        "acc/weighted_f1": weighted_f1(labels, answers.truth, len(answers.labels)),
        "n_failed": int((labels < 0).sum()),
    }


def weighted_f1(labels: Ints, truth: Ints, k: int) -> float:
    """Mean F1 of the labels, weighted by how many cases truly have each; nan of no case.

    Examples
    --------
    >>> round(weighted_f1(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]), 2), 4)
    0.7667
    """
    n = np.bincount(truth, minlength=k)
    scores = f1_scores(labels, truth, k)
    return float(scores[n > 0] @ n[n > 0] / n.sum()) if len(truth) else float("nan")


def power(answers: RecordedAnswers, chosen: Mapping[str, Ints], rivals: Mapping[str, Ints]) -> Figures:
    """Say how small a difference in accuracy these cases could show."""
    n, needed = len(set(answers.groups)), 1
    while mcnemar_exact(0, needed) >= LEVEL:
        needed += 1
    most = 100 * (needed - 1) / n
    sentence = (
        f"At n = {n} differences up to {most:.1f} points are not distinguishable: no paired test finds one of fewer "
        f"than {needed} cases, even where one side is right in all of them."
    )
    truth = answers.truth
    gaps = [mean((own == truth) != (other == truth)) for own in chosen.values() for other in rivals.values()]
    if not gaps:
        return {"indistinguishable_points": most, "sentence": sentence}
    discordant = float(np.median(gaps))
    # The difference seen with 80 % power, by halving: fewer images are needed the larger it is.
    low, high = 0.0, 100.0
    while high - low > 0.05:
        middle = (low + high) / 2
        low, high = (low, middle) if images_needed(discordant, middle).total <= n else (middle, high)
    return {
        "indistinguishable_points": most,
        "discordant": discordant,
        "points_at_80_power": high,
        "sentence": f"{sentence} {images_needed(discordant, POINTS, have=n).sentence}",
    }


def _defined(values: Mapping[str, float | int | str | None]) -> Figures:
    return {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in values.items()}
