"""Zero-shot by descriptions: each label's name with each of its descriptors, in each template. Needs no images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Task
from secondlook.agents.encoder import Encoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.head import HeadSpec, Tensors
from secondlook.agents.lessons import Lessons, check_embeddings

CHUNK = 256
"""Texts encoded at once."""


@dataclass(frozen=True)
class WordsHead:
    """One vector of each label, and a factor on the products with it. To use it, no text is needed any more.

    Attributes
    ----------
    vectors : ndarray of shape (K, D)
    scale : float
        The checkpoint's factor on cosines.
    """

    vectors: NDArray[np.float64]
    scale: float

    def logits(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits of shape (N, K) for unit embeddings of shape (N, D)."""
        check_embeddings("embeddings", embeddings, self.vectors.shape[1])
        return self.scale * (embeddings.astype(np.float64) @ self.vectors.T)

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """Its arrays; see `Head.tensors`."""
        return {"vectors": self.vectors, "scale": np.array(self.scale)}

    @classmethod
    def of(cls, tensors: Tensors) -> WordsHead:
        """Make the head of its arrays; see `HeadSpec.load`."""
        vectors, scale = tensors["vectors"], tensors["scale"]
        if vectors.ndim != 2 or scale.size != 1:
            raise ValueError(f"vectors, scale: expected [K, D] and one number, got {vectors.shape}, {scale.shape}")
        return cls(vectors, scale.item())


class DescriptionSpec(HeadSpec):
    """Sentences such as "a photo of scab, which has olive blotches", averaged by label.

    A label's descriptors are its descriptions in the task. A label without any is described by its name alone; see
    `undescribed`. Without descriptions at all this is the ordinary ensemble of templates.

    References
    ----------
    Radford et al. (2021), https://arxiv.org/abs/2103.00020 (templates); Menon and Vondrick (2022),
    https://arxiv.org/abs/2210.07183 (descriptors).
    """

    kind: Literal["descriptions"] = "descriptions"
    name: str = "descriptions"
    average: Literal["vectors", "scores"] = "vectors"
    """`vectors`: one unit vector of each label. `scores`: the mean of the sentences' cosines, so that a label whose
    sentences are scattered has lower ones."""

    learns_words: ClassVar[bool] = True

    def fit(self, lessons: Lessons) -> WordsHead:
        """Encode the sentences; images are not looked at."""
        if lessons.encoder is None:
            raise words_needed(self.name)
        means = []
        for label in lessons.task.labels:
            phrases = described(lessons.task, label)
            texts = [template.replace("{}", phrase) for phrase in phrases for template in lessons.templates]
            mean = encode_all(lessons.encoder, texts).mean(axis=0)
            means.append(mean / np.linalg.norm(mean) if self.average == "vectors" else mean)
        return WordsHead(np.stack(means), lessons.classifier.logit_scale)

    def load(self, tensors: Tensors) -> WordsHead:
        """Make the head of what it learned; see `HeadSpec.load`."""
        return WordsHead.of(tensors)


def undescribed(task: Task) -> tuple[str, ...]:
    """Labels that have no description, and stand for themselves by their name."""
    return tuple(label for label in task.labels if not task.phrases.get(label))


def described(task: Task, label: str) -> tuple[str, ...]:
    """Return a label's name with each of its descriptors, or its name alone.

    Examples
    --------
    >>> task = Task(labels=("apple-scab", "rust"), phrases={"apple-scab": ("olive blotches", "a fungal disease")})
    >>> described(task, "apple-scab")
    ('apple scab, which has olive blotches', 'apple scab, which is a fungal disease')
    >>> described(task, "rust")
    ('rust',)
    """
    name = Task(labels=task.labels).phrases_of(label)[0]
    return tuple(f"{name}, {which(phrase)}" for phrase in task.phrases.get(label, ())) or (name,)


def which(descriptor: str) -> str:
    """Make a relative clause of a descriptor.

    Examples
    --------
    >>> which("an orange spot"), which("often has a red rim"), which("dark veins")
    ('which is an orange spot', 'which often has a red rim', 'which has dark veins')
    """
    text = descriptor.strip().rstrip(".")
    if re.match(r"(a|an|used)\b", text, re.IGNORECASE):
        return f"which is {text}"
    if re.match(r"(has|often|typically|may|can)\b", text, re.IGNORECASE):
        return f"which {text}"
    return f"which has {text}"


def encode_all(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float64]:
    """Encode any number of texts, a chunk at a time, to unit vectors of shape (N, D)."""
    parts = [encoder.encode_texts(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK)]
    return np.concatenate(parts).astype(np.float64)


def words_needed(who: str) -> ConfigError:
    """Say that a head cannot do without the encoder's words."""
    return ConfigError(f"{who} needs an encoder that reads texts.", "Use an OpenCLIP encoder, or leave it out.")
