"""BiomedCoOp: a learned context that stays near what a label's descriptions say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.coop_head import ContextSpec, Penalty
from secondlook.agents.description_head import encode_all, words_needed
from secondlook.agents.lessons import Lessons

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]
Weight = Annotated[float, Field(ge=0, le=1000)]


class BiomedCoopSpec(ContextSpec):
    """CoOp with two more terms, both of the embeddings E[c, i] of the i-th sentence about label c.

    ``loss = CE + near * MSE(t, unit(mean_i E)) + alike * KL(zero-shot || student) / (N K)``: the mean squared
    difference of the label's vectors t from their descriptions', and the divergence of the predictions from those of
    the sentences that are not outliers. A sentence is one where its score, ``mean_n max_c scale f_n . E[c, i]``, is
    more than `spread` standard deviations from the sentences' mean.

    References
    ----------
    Koleilat et al. (2024), https://arxiv.org/abs/2411.15232.
    """

    kind: Literal["biomedcoop"] = "biomedcoop"
    name: str = "biomedcoop"
    near: Weight = 0.5
    """Weight of the difference from the descriptions."""
    alike: Weight = 0.25
    """Weight of the divergence from their predictions."""
    spread: Annotated[float, Field(gt=0)] = 1.5

    def penalty(self, lessons: Lessons, device: torch.device) -> Penalty:
        """Both further terms; images and descriptions are frozen, so that their part is computed once."""
        import torch

        sentences = teachers(lessons)
        scale, images = lessons.classifier.logit_scale, lessons.vectors.astype(np.float64)
        kept = selected(scale, images, sentences, self.spread)
        zero_shot = scale * images @ _unit(sentences[:, kept].mean(axis=1)).T
        target = torch.from_numpy(_unit(sentences.mean(axis=1))).float().to(device)
        teacher = torch.from_numpy(zero_shot).float().to(device).log_softmax(dim=1)

        def both(vectors: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            near = torch.nn.functional.mse_loss(vectors, target)
            student = logits.log_softmax(dim=1)
            alike = torch.nn.functional.kl_div(student, teacher, reduction="sum", log_target=True) / logits.numel()
            return self.near * near + self.alike * alike

        return both


def teachers(lessons: Lessons) -> Floats:
    """Embeddings of every label's descriptions in every template, of shape (K, I, D).

    A label with fewer descriptions than another has them repeated in turn.

    Raises
    ------
    ConfigError
        When there is no encoder.
    """
    if lessons.encoder is None:
        raise words_needed("biomedcoop")
    task = lessons.task
    most = max(len(task.phrases_of(label)) for label in task.labels)
    rows = []
    for label in task.labels:
        phrases = task.phrases_of(label)
        texts = [template.replace("{}", phrase) for phrase in phrases for template in lessons.templates]
        found = encode_all(lessons.encoder, texts).reshape(len(phrases), len(lessons.templates), -1)
        rows.append(np.concatenate(found[np.arange(most) % len(phrases)]))
    return np.stack(rows)


def selected(scale: float, images: Floats, sentences: Floats, spread: float) -> NDArray[np.bool_]:
    """Which of I sentences are not outliers, of shape (I,).

    The paper standardises the scores by median and absolute deviation first, and by mean and standard deviation
    then; the second undoes the first, so that only it is computed.

    Parameters
    ----------
    scale : float
        On cosines.
    images : ndarray of shape (N, D)
    sentences : ndarray of shape (K, I, D)
    spread : float
        Most standard deviations from the mean.

    Examples
    --------
    >>> sentences = np.array([[[1.0], [1.1], [0.9], [1.0], [5.0]]])
    >>> selected(1.0, np.ones((1, 1)), sentences, 1.5)
    array([ True,  True,  True,  True, False])
    """
    scores = scale * np.einsum("nd,kid->nki", images, sentences).max(axis=1).mean(axis=0)
    if len(scores) < 2 or not (deviation := scores.std(ddof=1)):
        return np.ones(len(scores), dtype=np.bool_)
    kept: NDArray[np.bool_] = np.abs(scores - scores.mean()) <= spread * deviation
    return kept


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit
