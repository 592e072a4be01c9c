"""A dataset without splits is split by group, so that no leaf, patient or part stands on two sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.errors import ConfigError
from secondlook.eval.dataset import Dataset, LabelledCase, digests_of


def with_digests(dataset: Dataset) -> Dataset:
    """Put identical files into one group, whatever their names. Reads every file once, decodes none.

    Groups that share a file become one, called by the first of them; identical files without a group become a group
    called by the id of the first.
    """
    digests = digests_of(dataset.cases)
    above = list(range(len(dataset.cases)))

    def top(i: int) -> int:
        while above[i] != i:
            above[i] = i = above[above[i]]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, item in enumerate(dataset.cases):
        for kind, value in (("group", item.case.group), ("file", digests.get(item.case.id))):
            if value is not None:
                one, other = top(first.setdefault((kind, value), i)), top(i)
                above[max(one, other)] = min(one, other)

    tops = [top(i) for i in range(len(above))]
    size = Counter(tops)
    name: dict[int, str] = {}
    for t, item in zip(tops, dataset.cases, strict=True):
        if item.case.group is not None:
            name.setdefault(t, item.case.group)
    cases = tuple(
        _grouped(item, name.get(t) or (dataset.cases[t].case.id if size[t] > 1 else None))
        for t, item in zip(tops, dataset.cases, strict=True)
    )
    return dataset.model_copy(update={"cases": cases})


def split_by_group(
    dataset: Dataset,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    names: Sequence[str] = ("train", "calibration", "test"),
) -> Dataset:
    """Assign every case to a split: groups stay whole, labels keep their shares as well as groups allow.

    Groups are taken largest first, in an order shuffled by the seed within a size, and each goes where the chi-square
    distance between the counts that the splits hold and those they should hold grows least.

    Parameters
    ----------
    dataset : Dataset
        Splits it may have are overwritten. A case without a group is its own; see `with_digests` for identical files.
    fractions : sequence of float
        Share of the cases of each split, S numbers above 0 that add up to 1.
    seed : int
        Another seed, another split of the same shares.
    names : sequence of str
        Names of the S splits.

    Raises
    ------
    ConfigError
        For fractions that are no shares, or fewer groups than splits.
    """
    shares = np.asarray(fractions, dtype=float)
    if len(shares) != len(names) or not (shares > 0).all() or not np.isclose(shares.sum(), 1):
        raise ConfigError(
            f"Fractions {tuple(fractions)} for the splits {', '.join(names)}.",
            "Give one number above 0 for each split, adding up to 1.",
        )
    units, counts = _units(dataset)
    if len(counts) < len(names):
        raise ConfigError(
            f"{dataset.root} holds {len(counts)} groups, too few for {len(names)} splits that share none.",
            "Add images of other leaves, patients or parts.",
        )
    home = _assigned(counts, shares, np.random.default_rng(seed))
    cases = tuple(
        item.model_copy(update={"split": names[home[unit]]}) for item, unit in zip(dataset.cases, units, strict=True)
    )
    return dataset.model_copy(update={"cases": cases})


def _units(dataset: Dataset) -> tuple[list[int], NDArray[np.int64]]:
    """Give every case the number of its group, and every group its counts by label, shape (G groups, K)."""
    number: dict[tuple[bool, str], int] = {}
    units = []
    for item in dataset.cases:
        alone = item.case.group is None
        units.append(number.setdefault((alone, item.case.group or item.case.id), len(number)))
    column = {label: k for k, label in enumerate(dataset.labels)}
    counts = np.zeros((len(number), len(column)), dtype=np.int64)
    for item, unit in zip(dataset.cases, units, strict=True):
        counts[unit, column[item.truth]] += 1
    return units, counts


def _assigned(counts: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Assign G groups to S splits; counts of shape (G, K), shares of shape (S,)."""
    target = np.maximum(shares[:, None] * counts.sum(axis=0), 1e-9)
    have = np.zeros_like(target)
    home = np.zeros(len(counts), dtype=np.int64)
    order = rng.permutation(len(counts))
    for g in order[np.argsort(-counts[order].sum(axis=1), kind="stable")]:
        # chi2 = sum (have - target)^2 / target grows by 2 sum_k n_k ((have + n_k / 2) / target - 1).
        growth = (counts[g] * (have + counts[g] / 2) / target).sum(axis=1)
        home[g] = int(np.argmin(growth))
        have[home[g]] += counts[g]
    return home


def _grouped(item: LabelledCase, group: str | None) -> LabelledCase:
    if group == item.case.group:
        return item
    return item.model_copy(update={"case": item.case.model_copy(update={"group": group})})
