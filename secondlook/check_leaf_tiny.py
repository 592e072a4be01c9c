"""How good leaf-tiny is: zero-shot accuracy, and how many strangers an OOD score sends to review."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from secondlook.leaf_pool import Pool
from secondlook.leaf_texts import CLASSES, LeafTexts
from secondlook.leaves import LABELS

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LeafTiny:
    """The model with what belongs to it."""

    model: Any
    """An `open_clip.CLIP`, in evaluation mode."""
    preprocess: Any
    """From a PIL image to a tensor [3, H, W]."""
    prompts: Floats
    """Unit vectors of the classes of `secondlook.leaf_texts.CLASSES`, (6, D)."""
    scale: float
    """The checkpoint's own logit scale."""

    @classmethod
    def load(cls, folder: Path) -> LeafTiny:
        """Load the folder through open_clip, and embed the prompts: the normalised mean of each class's sentences."""
        import open_clip

        model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        model.eval()
        vectors = []
        with torch.inference_mode():
            for sentences in LeafTexts.load().prompts:
                unit = model.encode_text(tokenizer(list(sentences)), normalize=True).mean(dim=0)
                vectors.append((unit / unit.norm()).double().numpy())
            scale = float(model.logit_scale.exp())
        return cls(model, preprocess, np.stack(vectors), scale)

    def embed(self, images: NDArray[np.uint8]) -> Floats:
        """Return the unit vectors of images (N, H, W, 3), as (N, D)."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), 32):
                batch = torch.stack([self.preprocess(Image.fromarray(i)) for i in images[start : start + 32]])
                parts.append(self.model.encode_image(batch, normalize=True).double().numpy())
        return np.concatenate(parts)

    def judge(self, vectors: Floats, classes: int) -> Floats:
        """Return the zero-shot distribution over the first so many classes, (N, classes)."""
        logits = self.scale * vectors @ self.prompts[:classes].T
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))


class Scores(NamedTuple):
    """OOD scores of images; higher is stranger. Each (N,)."""

    mahalanobis: Floats
    """Smallest class-conditional Mahalanobis distance, with a shrunken covariance."""
    neighbour: Floats
    """1 - mean cosine to the 5 nearest training images."""
    prompt: Floats
    """Softmax mass on the negative prompts."""


@dataclass(frozen=True)
class Detector:
    """OOD scores fitted on the embeddings of the training split, (N, D)."""

    vectors: Floats
    means: Floats
    precision: Floats

    @classmethod
    def fit(cls, vectors: Floats, classes: NDArray[np.intp]) -> Detector:
        """Fit class means and one Ledoit-Wolf covariance."""
        from sklearn.covariance import LedoitWolf

        names = np.unique(classes)
        means = np.stack([vectors[classes == name].mean(axis=0) for name in names])
        centred = vectors - means[np.searchsorted(names, classes)]
        return cls(vectors, means, np.asarray(LedoitWolf(assume_centered=True).fit(centred).precision_))

    def score(self, tiny: LeafTiny, vectors: Floats) -> Scores:
        """Score vectors (N, D)."""
        gaps = vectors[:, None] - self.means[None]
        # d^2 = (x - mean)' S^-1 (x - mean)
        squares = np.einsum("nkd,de,nke->nk", gaps, self.precision, gaps)
        near = np.sort(vectors @ self.vectors.T, axis=1)[:, -5:].mean(axis=1)
        return Scores(np.sqrt(squares.min(axis=1)), 1 - near, tiny.judge(vectors, 6)[:, 4:].sum(axis=1))


def balanced_accuracy(said: NDArray[np.intp], true: NDArray[np.intp]) -> float:
    """Return the mean over the classes of the share that is right.

    Examples
    --------
    >>> balanced_accuracy(np.array([0, 0, 1]), np.array([0, 1, 1]))
    0.75
    """
    return float(np.mean([(said[true == name] == name).mean() for name in np.unique(true)]))


def together(scores: Scores, known: Scores) -> Floats:
    """Return the mean rank of scores (N,) among the scores of known photographs, from 0 to 1, (N,).

    Examples
    --------
    >>> known = Scores(*(np.arange(4.0),) * 3)
    >>> together(Scores(*(np.array([-1.0, 1.5, 9.0]),) * 3), known).tolist()
    [0.0, 0.5, 1.0]
    """
    ranks = [np.searchsorted(np.sort(k), s) / len(k) for s, k in zip(scores, known, strict=True)]
    return np.asarray(np.mean(ranks, axis=0))


def check(
    folder: Path, train: Pool, own: Pool, strangers: dict[str, Pool], tuning: Pool | None = None, share: float = 0.05
) -> dict[str, Any]:
    """Measure a model folder.

    Parameters
    ----------
    folder : Path
        The model.
    train : Pool
        Photographs the OOD scores are fitted on.
    own : Pool
        Held-out photographs of the four labels.
    strangers : dict of str to Pool
        Images that are to be sent to review.
    tuning : Pool, optional
        Photographs that set the limits of the scores; `own` where there is none.
    share : float
        Share of `tuning` that a limit sends to review.

    Returns
    -------
    dict
        n, accuracy, balanced accuracy (four labels; with the negatives, six), mean confidence, recalls, and for `own`
        and every set of strangers the share sent to review by each score.
    """
    tiny = LeafTiny.load(folder)
    detector = Detector.fit(tiny.embed(train.images), train.classes)
    vectors = tiny.embed(own.images)
    basis = vectors if tuning is None else tiny.embed(tuning.images)
    known = detector.score(tiny, basis)
    limits = [np.quantile(score, 1 - share) for score in (*known, together(known, known))]
    belief = tiny.judge(vectors, len(LABELS))
    said = belief.argmax(axis=1)
    report: dict[str, Any] = {
        "n": len(said),
        "accuracy": float((said == own.classes).mean()),
        "balanced_accuracy": balanced_accuracy(said, own.classes),
        "balanced_accuracy_with_negatives": balanced_accuracy(tiny.judge(vectors, 6).argmax(axis=1), own.classes),
        "mean_confidence": float(belief.max(axis=1).mean()),
        "logit_scale": tiny.scale,
        "recall": {CLASSES[k]: float((said[own.classes == k] == k).mean()) for k in np.unique(own.classes)},
    }
    for name, embedded in (("own", vectors), *((name, tiny.embed(pool.images)) for name, pool in strangers.items())):
        scores = detector.score(tiny, embedded)
        columns = zip((*Scores._fields, "together"), (*scores, together(scores, known)), limits, strict=True)
        caught = {field: float((score > limit).mean()) for field, score, limit in columns}
        report[f"review_{name}"] = {"n": len(embedded), **caught}
    return report
