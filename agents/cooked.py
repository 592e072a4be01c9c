"""COOkeD: how undecided three different classifiers are together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.folds import grouped_folds
from secondlook.agents.temperature import fit_temperature
from secondlook.agents.tied_gaussian import TiedGaussian, fit_tied_gaussian

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
STRENGTH = 100.0
"""C of the probe, the inverse of its L2 penalty: for unit vectors, and not chosen, since a temperature follows."""
STEPS = 200
FOLDS = 3


@dataclass(frozen=True)
class Probe:
    """A linear classifier on embeddings.

    Attributes
    ----------
    weights : ndarray of shape (K, D)
    bias : ndarray of shape (K,)
    """

    weights: Floats
    bias: Floats

    def logits(self, embeddings: Vectors) -> Floats:
        """Logits of shape (N, K)."""
        return embeddings.astype(np.float64) @ self.weights.T + self.bias


def fit_probe(embeddings: Vectors, truth: NDArray[np.intp]) -> Probe:
    """Fit logistic regression to embeddings of shape (N, D) with label indices 0 to K - 1, each at least once.

    It is stopped after `STEPS` steps, as probes in the literature are; of one label nothing is learned.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    n_labels = int(truth.max()) + 1
    if n_labels < 2:
        return Probe(np.zeros((1, embeddings.shape[1])), np.zeros(1))
    x = embeddings.astype(np.float64)
    mean = x.mean(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=STRENGTH, max_iter=STEPS, tol=1e-4).fit(x - mean, truth)
    weights, bias = model.coef_, model.intercept_
    if n_labels == 2:  # scikit-learn keeps one row for two labels: the log-odds of the second
        weights, bias = np.vstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return Probe(weights, bias - weights @ mean)


@dataclass(frozen=True)
class Cooked:
    """Entropy of the mean of three distributions: of a closed-set classifier, of a linear probe, of the words.

    The closed-set classifier is `TiedGaussian`; all three see the same embedding.

    Attributes
    ----------
    closed : TiedGaussian
    probe : Probe
    words : TextClassifier
    temperatures : ndarray of shape (3,)
        What the logits of each are divided by; ones for the form without.
    """

    closed: TiedGaussian
    probe: Probe
    words: TextClassifier
    temperatures: Floats

    def probs(self, embeddings: Vectors) -> Floats:
        """Mean of the three distributions, of shape (N, K)."""
        from scipy.special import softmax

        each = (member.logits(embeddings) for member in (self.closed, self.probe, self.words))
        found: Floats = np.mean(
            [softmax(logits / t, axis=1) for logits, t in zip(each, self.temperatures, strict=True)], axis=0
        )
        return found


def fit_temperatures(
    embeddings: Vectors, truth: NDArray[np.intp], groups: Sequence[str], words: TextClassifier, seed: int = 0
) -> Floats:
    """Fit the temperatures of `Cooked`, of shape (3,), by the NLL of answers to images that were not learned from.

    Parameters
    ----------
    embeddings : ndarray of shape (N, D)
    truth : ndarray of shape (N,)
        Label indices 0 to K - 1, each at least once.
    groups : sequence of str
        N group names; no group is on both sides of a fold.
    words : TextClassifier
    seed : int
        Of the folds.

    Returns
    -------
    ndarray
        1 for the first two where no folds can be made.
    """
    folds = grouped_folds(truth, groups, np.random.default_rng(seed), FOLDS)
    spoken = fit_temperature(words.logits(embeddings), truth)
    insides = [] if folds is None else [folds != fold for fold in np.unique(folds)]
    if not insides or any(len(np.unique(truth[inside])) <= truth.max() for inside in insides):
        return np.array([1.0, 1.0, spoken])
    closed, probe = (np.empty((len(truth), int(truth.max()) + 1)) for _ in range(2))
    for inside in insides:
        closed[~inside] = fit_tied_gaussian(embeddings[inside], truth[inside]).logits(embeddings[~inside])
        probe[~inside] = fit_probe(embeddings[inside], truth[inside]).logits(embeddings[~inside])
    return np.array([fit_temperature(closed, truth), fit_temperature(probe, truth), spoken])
