"""CLIP zero-shot: cosines to the texts of each label, at the checkpoint's own scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Case, Task
from secondlook.agents.embedder import Embedder
from secondlook.agents.encoder import Encoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.prediction import Outcome
from secondlook.agents.views import look_at


@dataclass(frozen=True)
class TextClassifier:
    """Class vectors made from prompts; computed once by `fit` and stored.

    Attributes
    ----------
    vectors : ndarray of shape (K, D)
        Unit vector of each label.
    negatives : ndarray of shape (J, D)
        Unit vectors of what the images are not; J may be 0.
    logit_scale : float
        The checkpoint's factor on cosines.
    """

    vectors: NDArray[np.float32]
    negatives: NDArray[np.float32]
    logit_scale: float

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits of shape (N, K) for unit embeddings of shape (N, D)."""
        cosines: NDArray[np.float64] = (embeddings @ self.vectors.T).astype(np.float64)
        return self.logit_scale * cosines


def text_classifier(encoder: Encoder, task: Task, templates: Sequence[str]) -> TextClassifier:
    """Average the unit text vectors of every (template, description) of a label, and normalise.

    Raises
    ------
    ConfigError
        When a template has no place for the label.
    """
    bad = [t for t in templates if t.count("{}") != 1]
    if bad or not templates:
        raise ConfigError(f"A template must hold {{}} once: {bad or 'the file is empty'}.", "Mend the template file.")

    def vector(phrases: Sequence[str]) -> NDArray[np.float32]:
        mean = encoder.encode_texts([t.replace("{}", p) for p in phrases for t in templates]).mean(axis=0)
        unit: NDArray[np.float32] = mean / np.linalg.norm(mean)
        return unit

    vectors = np.stack([vector(task.phrases_of(label)) for label in task.labels])
    negatives = [vector([phrase]) for phrase in task.negatives]
    empty = np.zeros((0, vectors.shape[1]), dtype=np.float32)
    return TextClassifier(vectors, np.stack(negatives) if negatives else empty, encoder.logit_scale)


class ClipZeroShot:
    """An agent that needs no training cases, only words.

    On a second look it averages its logits over the whole image and the crops that the evidence names.
    """

    def __init__(self, embedder: Embedder, classifier: TextClassifier, name: str = "zero-shot") -> None:
        self.name = name
        self._embedder = embedder
        self._classifier = classifier

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge a batch; see `Agent.predict`."""
        return look_at(cases, self._embedder, self._classifier.logits, self.name)
