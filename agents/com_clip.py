"""ComCLIP: zero-shot on the whole image and its marked parts, each part weighted by how well it fits the words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Case
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.crop import box_view
from secondlook.agents.embedder import Embedder
from secondlook.agents.errors import ConfigError
from secondlook.agents.prediction import Failure, Outcome
from secondlook.agents.views import answer, see, views_of

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
REMEMBERED = 1024
"""Words of boxes whose vectors are kept."""


class ComClip:
    """An agent that adds to an image's embedding those of its boxes; of a case without boxes it is plain zero-shot.

    For label k, with f the embedding of the image, f_s of its boxes, t_k of the label's words and the checkpoint's
    logit scale c::

        w_sk = softmax over s of c cos(f_s, u),   u = the text of the box's own word, or t_k where it has none
        f_k  = f + sum_s w_sk f_s
        logit_k = c cos(f_k, t_k)

    In [1]_ the parts come from a detector and the words from the parse of a caption; here they are the case's boxes,
    and the words are the labels'. There the weights are shares of raw dot products of embeddings that are not
    normalised, which may be negative and need not favour the better fit; a softmax of cosines has neither fault. A box
    is looked at as a crop, not as a picture that is black elsewhere, which is unlike what the encoder was trained on.

    On a second look each view of the image takes the place of f in turn, and the logits are averaged.

    Parameters
    ----------
    embedder : Embedder
        Its encoder embeds the boxes, and their words.
    classifier : TextClassifier
        t_k and c.
    templates : sequence of str
        Prompts with {} once, which a box's word is put into.
    name : str
        The agent's name.

    References
    ----------
    .. [1] Jiang et al. (2024), "ComCLIP: Training-Free Compositional Image and Text Matching",
       https://arxiv.org/abs/2211.13854
    """

    def __init__(
        self,
        embedder: Embedder,
        classifier: TextClassifier,
        templates: Sequence[str] = ("{}",),
        name: str = "com-clip",
    ) -> None:
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise ConfigError("A template must hold {} once.", "Mend the template file.")
        self.name = name
        self._embedder = embedder
        self._classifier = classifier
        self._templates = tuple(templates)
        self._words: dict[str, Vectors] = {}

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge a batch; see `Agent.predict`."""
        words = self._texts(cases)
        views = [(*views_of(case), *(box_view(box.sides) for box in case.boxes)) for case in cases]
        return [
            Failure(agent=self.name, look=case.look, error=seen)
            if isinstance(seen, str)
            else answer(self.name, case, self._logits(case, seen, words))
            for case, seen in zip(cases, see(cases, self._embedder, views), strict=True)
        ]

    def _logits(self, case: Case, seen: Vectors, words: dict[str, Vectors]) -> Floats:
        """Logits of shape (V, K) from the embeddings of V views and, after them, of the boxes."""
        if not case.boxes:
            return self._classifier.logits(seen)
        images, parts = seen[: -len(case.boxes)], seen[-len(case.boxes) :]
        fit = self._classifier.logits(parts)
        for s, box in enumerate(case.boxes):
            if box.word is not None:
                fit[s] = self._classifier.logit_scale * float(parts[s] @ words[box.word])
        return composed_logits(images, parts, fit, self._classifier)

    def _texts(self, cases: Sequence[Case]) -> dict[str, Vectors]:
        """Embed the words of a batch's boxes, by word; what was embedded before is remembered."""
        words = {box.word for case in cases for box in case.boxes if box.word is not None}
        known = self._words if len(self._words) < REMEMBERED else {}
        if new := sorted(words - known.keys()):
            texts = [template.replace("{}", word) for word in new for template in self._templates]
            found = self._embedder.encoder.encode_texts(texts)
            means = found.reshape(len(new), len(self._templates), -1).mean(axis=1)
            known = known | dict(zip(new, means / np.linalg.norm(means, axis=1, keepdims=True), strict=True))
            self._words = known
        return known


def composed_logits(images: Vectors, parts: Vectors, fit: Floats, classifier: TextClassifier) -> Floats:
    """Logits of images to which their parts are added, each weighted by the softmax of its fit to the label.

    Parameters
    ----------
    images : ndarray of shape (V, D)
        Unit embeddings of V views of one image.
    parts : ndarray of shape (S, D)
        Unit embeddings of its parts.
    fit : ndarray of shape (S, K)
        How well each part fits each label, in logits.
    classifier : TextClassifier

    Returns
    -------
    ndarray of shape (V, K)

    Examples
    --------
    A part that shows a cat speaks for the cat; for the dog the other part is looked at.

    >>> words = TextClassifier(np.eye(2, dtype=np.float32), np.zeros((0, 2), np.float32), 10.0)
    >>> image, parts = np.array([[0.6, 0.8]], np.float32), np.eye(2, dtype=np.float32)
    >>> composed_logits(image, parts, words.logits(parts), words).round(2).tolist()
    [[8.94, 9.49]]
    """
    weights = np.exp(fit - fit.max(axis=0))
    weights /= weights.sum(axis=0)
    scale = classifier.logit_scale
    # With g = sum_s w_sk f_s: (f + g) . t and |f + g|^2 from products of small matrices, never of shape (V, K, D).
    along = classifier.logits(images) + (weights * classifier.logits(parts)).sum(axis=0)
    own = (parts @ parts.T).astype(np.float64)
    squared = 1 + 2 * (images @ parts.T) @ weights + np.einsum("sk,st,tk->k", weights, own, weights)
    found: Floats = np.clip(along / np.sqrt(np.maximum(squared, 1e-12)), -scale, scale)
    return found
