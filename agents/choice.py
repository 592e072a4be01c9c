"""A setting of a head chosen by the NLL of held-out images, each candidate with the temperature that suits it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.lessons import Lessons, Vectors
from secondlook.agents.temperature import fit_temperature

Floats = NDArray[np.float64]
Setting = TypeVar("Setting")
HELD_OUT = 2000
"""Held-out images on which settings are compared: enough to tell them apart, few enough to be quick."""


class Choice(NamedTuple, Generic[Setting]):
    """A setting, with what was measured of it."""

    setting: Setting
    temperature: float
    """That its logits are to be divided by."""
    nll: float
    """Mean over the held-out images after the temperature, in nats."""


def best(held_out: Iterable[tuple[Setting, Floats]], truth: NDArray[np.intp]) -> Choice[Setting]:
    """Choose the setting of lowest NLL after one temperature; the first one wins ties.

    Parameters
    ----------
    held_out : iterable of (setting, ndarray of shape (N, K))
        Logits of each candidate on the same images.
    truth : ndarray of shape (N,)
        Their label indices.

    Examples
    --------
    >>> good, bad = np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 2.0], [0.0, 2.0]])
    >>> best([("bad", bad), ("good", good)], np.array([0, 1])).setting
    'good'
    """
    found = [Choice(setting, *_tempered(logits, truth)) for setting, logits in held_out]
    return min(found, key=lambda choice: choice.nll)


def cross_validated(
    lessons: Lessons, judge: Callable[[Lessons, Vectors], Mapping[Setting, Floats]]
) -> Choice[Setting] | None:
    """Choose a setting by folds of the lessons; None where no fold can be made.

    Parameters
    ----------
    lessons : Lessons
        At most `HELD_OUT` of its images are judged, each after learning from the other folds whole.
    judge : callable
        Of lessons to learn from and embeddings of shape (N, D): each setting's logits of shape (N, K). The settings
        are the same ones in the same order each time.
    """
    folds = lessons.folds()
    if folds is None:
        return None
    count = int(folds.max()) + 1
    truth: list[NDArray[np.intp]] = []
    logits: dict[Setting, list[Floats]] = {}
    for fold in range(count):
        outside = lessons.part(folds == fold).thinned(HELD_OUT // count)
        truth.append(outside.truth)
        for setting, rows in judge(lessons.part(folds != fold), outside.vectors).items():
            logits.setdefault(setting, []).append(rows)
    return best(((setting, np.concatenate(rows)) for setting, rows in logits.items()), np.concatenate(truth))


def _tempered(logits: Floats, truth: NDArray[np.intp]) -> tuple[float, float]:
    """Fit a temperature; return it and the mean NLL that it leaves."""
    temperature = fit_temperature(logits, truth)
    scaled = logits / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    nll = np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(truth)), truth]
    return temperature, float(nll.mean())
