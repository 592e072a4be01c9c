"""What the system is compared with, on the same cases: each agent alone, and every other way to combine them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from secondlook.eval.arrays import Bools, Floats, Ints
from secondlook.eval.baselines import NO_ANSWER, baselines
from secondlook.eval.look_fit import shared_errors
from secondlook.eval.measured import Metrics
from secondlook.eval.reliability import ece
from secondlook.eval.resample import Resamples, intervals
from secondlook.orchestrator.fitted import Model
from secondlook.orchestrator.opinions import Opinions


def alternatives(
    model: Model,
    opinions: Opinions,
    truth: Ints,
    right: Bools,
    groups: Sequence[str],
    rng: np.random.Generator,
) -> Metrics:
    """Compute how often each alternative is right, what that is above the system's, and which errors agents share.

    Parameters
    ----------
    model : Model
        Holds the alternatives that were fitted.
    opinions : Opinions
        What each of its agents says of N cases.
    truth : ndarray of shape (N,)
        Indices.
    right : ndarray of bool, shape (N,)
        Where the system is.
    groups : sequence of N str
    rng : numpy.random.Generator
        Draws the bootstrap samples.

    Returns
    -------
    dict
        ``base/NAME`` and ``agents/COLUMN/acc`` with ``ece`` beside them; of both ``gain``, the accuracy above the
        system's with the ends of a paired 95 % interval that resamples groups; ``errors/A + B/`` with phi, both_wrong
        and wrong_of_agreed.
    """
    columns, panel = opinions.columns, opinions.probs
    best = max(model.records, key=lambda record: record.accuracy.value)
    names = {(r.agent, r.look): column for r, column in zip(model.records, columns, strict=True)}
    best_column = names[best.agent, best.look]
    found = baselines(panel, truth, columns.index(best_column))
    hits: dict[str, Bools] = {f"base/{name}": labels == truth for name, labels in found.items()}
    metrics: Metrics = {"base/best_agent_name": best_column}
    for column, probs in zip(columns, panel, strict=True):
        hits[f"agents/{column}"], error = _judged(probs, truth)
        metrics |= {f"agents/{column}/ece": error, f"agents/{column}/n": int((~np.isnan(probs).any(axis=1)).sum())}
        if column.startswith("neighbour-vote"):
            hits["base/neighbour_vote"], metrics["base/neighbour_vote/ece"] = hits[f"agents/{column}"], error
    for name, fusion in model.alternatives.items():
        # These two are agents, whose figures are above.
        if name not in ("best_agent", "neighbour_vote"):
            belief = fusion.fuse(opinions.of(fusion.agents))
            hits[f"base/{name}"], metrics[f"base/{name}/ece"] = _judged(belief, truth)
    for key, hit in hits.items():
        metrics[key if key.startswith("base/") else f"{key}/acc"] = float(hit.mean())
    metrics |= _gains(hits, right, groups, rng)
    for pair in shared_errors(opinions, truth):
        both = f"errors/{' + '.join(pair.agents)}"
        metrics |= {f"{both}/phi": pair.phi, f"{both}/both_wrong": pair.both_wrong}
        metrics[f"{both}/wrong_of_agreed"] = pair.wrong_of_agreed
    return metrics


def _judged(belief: Floats, truth: Ints) -> tuple[Bools, float]:
    """Return where beliefs of shape (N, K) are right, and their calibration error where they are known."""
    known = ~np.isnan(belief).any(axis=1)
    right = np.where(known, np.nan_to_num(belief).argmax(axis=1), NO_ANSWER) == truth
    return right, ece(belief[known].max(axis=1, initial=0.0), right[known])


def _gains(hits: Mapping[str, Bools], right: Bools, groups: Sequence[str], rng: np.random.Generator) -> Metrics:
    """Resample the differences to the system, all on the same draws."""
    rows = np.array([hit.astype(np.float64) - right for hit in hits.values()])

    def gains(drawn: Resamples) -> dict[str, Floats]:
        return dict(zip((f"{key}/gain" for key in hits), rows @ drawn.columns / drawn.total, strict=True))

    metrics: Metrics = {}
    for name, gain in intervals({"": gains}, len(right), groups, rng=rng).items():
        metrics |= {name: gain.value, f"{name}/lo": gain.lo, f"{name}/hi": gain.hi}
    return metrics
