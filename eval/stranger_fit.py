"""Choosing stranger scores: on labels held out one at a time, and on strangers that the user gives."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.embedder import Embedder
from secondlook.agents.errors import ConfigError
from secondlook.agents.folds import grouped_folds
from secondlook.agents.photo import Photo
from secondlook.agents.strangeness import SCORES, ScoreName
from secondlook.agents.stranger_scores import DEFAULT, fit_stranger_scores
from secondlook.agents.typicality import Typicality
from secondlook.eval.embedded import Embedded
from secondlook.eval.ood import aupr, auroc, fpr_at_recall
from secondlook.orchestrator.stranger_choice import Separation, StrangerChoice, StrangerRow

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Vectors = NDArray[np.float32]
GAIN = 0.005
"""Least mean AUROC that a further score must add, and that a choice must have more than the scores by default."""
MOST_SCORES = 3
MOST_HELD_OUT = 8
"""Labels that are held out, one at a time; of more, so many are drawn."""
MOST_TRAIN = 4_000
"""Training images that the scores to be compared are fitted on; of more, so many are drawn, label by label."""
MOST_GIVEN = 1_000
"""Strangers that are looked at; of more, every second one, or third."""
FEWEST_GIVEN = 5
GIVEN = "given"
"""Name of the set of strangers that the user gives."""


@dataclass(frozen=True)
class Trial:
    """Every score of held-out own images and of strangers, by name.

    Attributes
    ----------
    own : dict of str to ndarray of shape (N,)
    strange : dict of str to ndarray of shape (N',)
    folds : ndarray of shape (N,)
        Of the own images: each is ranked among those of the other folds, as strangers are.
    """

    own: Mapping[ScoreName, Floats]
    strange: Mapping[ScoreName, Floats]
    folds: Ints

    def separation(self, scores: Sequence[ScoreName]) -> Separation:
        """Measure a combination, as `Typicality` makes one of it."""
        own, strange = (np.stack([side[name] for name in scores], axis=1) for side in (self.own, self.strange))
        figures = []
        for fold in np.unique(self.folds):
            held = self.folds == fold
            typicality = Typicality.fit(own[~held] if not held.all() else own)
            inside, outside = -typicality.of(own[held]), -typicality.of(strange)
            figures.append((auroc(inside, outside), aupr(inside, outside), fpr_at_recall(inside, outside)))
        area, precision, let_in = np.mean(figures, axis=0).tolist()
        return Separation(n=len(strange), auroc=area, aupr=precision, fpr95=let_in)


class Strangers(NamedTuple):
    """Pictures that the user gave, embedded."""

    vectors: Vectors
    """Unit embeddings, of shape (N', D)."""
    digests: set[str]
    """Of the pictures looked at."""
    notes: list[str]
    """How many could not be read."""


def embed_strangers(photos: Sequence[Photo], embedder: Embedder, own: Collection[str]) -> Strangers:
    """Embed pictures of what a model is not for.

    Parameters
    ----------
    photos : sequence of Photo
    embedder : Embedder
    own : collection of str
        Digests of the images that the model is fitted on.

    Raises
    ------
    ConfigError
        When fewer than `FEWEST_GIVEN` can be read, or one of them is an own image.
    """
    kept = list(photos)[:: max(1, math.ceil(len(photos) / MOST_GIVEN))]
    rows: list[Vectors] = []
    digests: set[str] = set()
    lost: list[str] = []
    for start in range(0, len(kept), embedder.batch_size):
        part = kept[start : start + embedder.batch_size]
        found = embedder.embed(part)
        rows.append(found.vectors[found.ok])
        digests |= {part[i].digest for i in found.ok}
        lost += [error for error in found.errors if error is not None]
        for photo in part:
            photo.release()
        if both := [photo.name for i, photo in enumerate(part) if i in found.ok and photo.digest in own]:
            raise ConfigError(f"The stranger {both[0]} is an image of the data set.", "Give pictures of other things.")
    if (readable := sum(map(len, rows))) < FEWEST_GIVEN:
        why = f" {lost[0]}" if lost else ""
        raise ConfigError(
            f"{readable} of {len(kept)} strangers can be read.{why}", f"Give {FEWEST_GIVEN} pictures or more."
        )
    notes = [f"{len(lost)} of {len(kept)} strangers could not be read: {lost[0]}"] if lost else []
    return Strangers(np.concatenate([row for row in rows if len(row)]), digests, notes)


def choose_stranger_scores(
    train: Embedded,
    calibration: Embedded,
    labels: Sequence[str],
    classifier: TextClassifier,
    given: Vectors | None = None,
    seed: int = 0,
    names: Sequence[ScoreName] = SCORES,
) -> StrangerChoice:
    """Choose by mean AUROC, greedily.

    Near strangers are the calibration images of a label without which all scores are fitted; the strangers given are
    told from all calibration images. The best score is taken, then whichever adds most to it, up to three, as long as
    each adds `GAIN`. What comes out replaces `DEFAULT` only where its mean AUROC is higher by `GAIN`.

    Parameters
    ----------
    train, calibration : Embedded
    labels : sequence of str
        The K labels.
    classifier : TextClassifier
        Their words.
    given : ndarray of shape (N', D), optional
        Unit embeddings of strangers.
    seed : int
        Of the folds and of what is drawn.
    names : sequence of str
        The scores to choose among.
    """
    rng = np.random.default_rng(seed)
    train = _drawn(train, len(labels), rng)
    trials: dict[str, Trial] = {}
    for label in np.sort(rng.permutation(len(labels))[:MOST_HELD_OUT]).tolist():
        trials[f"without {labels[label]}"] = _trial(
            _without(train, label),
            _without(calibration, label),
            calibration.vectors[calibration.truth == label],
            replace(classifier, vectors=np.delete(classifier.vectors, label, axis=0)),
            names,
            rng,
        )
    if given is not None:
        trials[GIVEN] = _trial(train, calibration, given, classifier, names, rng)
    return choose(trials, names)


def choose(trials: Mapping[str, Trial], names: Sequence[ScoreName]) -> StrangerChoice:
    """Choose among scores by the rule of `choose_stranger_scores`; trials by the name of the set of strangers."""
    rows: dict[tuple[ScoreName, ...], StrangerRow] = {}

    def row(scores: tuple[ScoreName, ...]) -> StrangerRow:
        if scores not in rows:
            rows[scores] = _row(scores, trials)
        return rows[scores]

    best = max((row((name,)) for name in names), key=lambda r: r.mean)
    for _ in range(MOST_SCORES - 1):
        wider = [row((*best.scores, name)) for name in names if name not in best.scores]
        further = max(wider, key=lambda r: r.mean, default=best)
        if further.mean < best.mean + GAIN:
            break
        best = further
    by_default = row(DEFAULT)
    if not best.mean >= by_default.mean + GAIN:
        best = by_default
    return StrangerChoice(scores=best.scores, table=tuple(rows.values()))


def _row(scores: tuple[ScoreName, ...], trials: Mapping[str, Trial]) -> StrangerRow:
    sets = {name: trial.separation(scores) for name, trial in trials.items()}
    held_out = [s.auroc for name, s in sets.items() if name != GIVEN]
    means = [float(np.mean(held_out)), *([sets[GIVEN].auroc] if GIVEN in sets else [])]
    return StrangerRow(scores=scores, sets=sets, mean=float(np.mean(means)))


def _trial(
    train: Embedded,
    own: Embedded,
    strange: Vectors,
    classifier: TextClassifier,
    names: Sequence[ScoreName],
    rng: np.random.Generator,
) -> Trial:
    seed = int(rng.integers(2**31))
    fitted = fit_stranger_scores(train.vectors, train.truth, classifier, train.groups, names, seed)
    inside, outside = fitted.of(own.vectors).T, fitted.of(strange).T
    folds = grouped_folds(np.zeros(len(own.truth), dtype=np.intp), own.groups, rng, most=2)
    return Trial(
        own=dict(zip(names, inside, strict=True)),
        strange=dict(zip(names, outside, strict=True)),
        folds=np.zeros(len(own.truth), dtype=np.intp) if folds is None else folds,
    )


def _part(split: Embedded, rows: NDArray[np.bool_]) -> Embedded:
    keep = np.flatnonzero(rows).tolist()
    return Embedded(
        cases=tuple(split.cases[i] for i in keep),
        vectors=split.vectors[rows],
        truth=split.truth[rows],
        groups=tuple(split.groups[i] for i in keep),
    )


def _without(split: Embedded, label: int) -> Embedded:
    """Leave a label out, and number the others anew."""
    part = _part(split, split.truth != label)
    return replace(part, truth=part.truth - (part.truth > label))


def _drawn(split: Embedded, n_labels: int, rng: np.random.Generator) -> Embedded:
    """Draw as many images of each label as `MOST_TRAIN` allows, two at the least."""
    if len(split.truth) <= MOST_TRAIN:
        return split
    most = max(2, MOST_TRAIN // n_labels)
    rows = np.zeros(len(split.truth), dtype=np.bool_)
    for label in range(n_labels):
        mine = np.flatnonzero(split.truth == label)
        rows[rng.permutation(mine)[:most]] = True
    return _part(split, rows)
