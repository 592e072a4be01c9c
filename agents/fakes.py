"""Stand-ins for tests and experiments: an agent that says what it is told, an encoder that needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Case
from secondlook.agents.prediction import Failure, Outcome, Prediction, Scale

if TYPE_CHECKING:
    import torch
    from PIL import Image

Answer = Sequence[float] | str
"""Scores, one per label; or a sentence, which becomes a `Failure`."""
Answers = Answer | Iterable[Answer] | Callable[[Case], Answer]


class ScriptedAgent:
    """An agent that says what it is told.

    Parameters
    ----------
    name : str
        Put on the outcomes.
    answers : answer, iterable of answers, or callable
        One answer for every case; or one after the other, in the order of the cases asked about; or a function of the
        case. An answer is a sequence of K scores, or the sentence of a `Failure`.
    scale : Scale
        What the scores are.

    Examples
    --------
    >>> import anyio
    >>> from secondlook.agents.photo import Photo
    >>> cases = [Case(id=name, photo=Photo.of(bytes(8))) for name in ("a", "b")]
    >>> always = ScriptedAgent("always", (0.9, 0.1))
    >>> [outcome.top for outcome in anyio.run(always.predict, cases)]
    [0, 0]
    >>> in_turn = ScriptedAgent("in turn", [(0.9, 0.1), "the service did not answer"])
    >>> [type(outcome).__name__ for outcome in anyio.run(in_turn.predict, cases)]
    ['Prediction', 'Failure']
    >>> by_id = ScriptedAgent("by id", lambda case: (1.0, 0.0) if case.id == "a" else (0.0, 1.0))
    >>> [outcome.top for outcome in anyio.run(by_id.predict, cases[::-1])]
    [1, 0]
    """

    def __init__(self, name: str, answers: Answers, scale: Scale = "probability") -> None:
        self.name = name
        self.asked = 0
        """Cases asked about so far."""
        self._scale = scale
        self._answer = _script(answers)

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge a batch; see `Agent.predict`.

        Raises
        ------
        IndexError
            When an iterable holds no answer for a case.
        """
        self.asked += len(cases)
        return [self._outcome(case) for case in cases]

    def _outcome(self, case: Case) -> Outcome:
        said = self._answer(case)
        if isinstance(said, str):
            return Failure(agent=self.name, look=case.look, error=said)
        return Prediction(agent=self.name, look=case.look, scale=self._scale, scores=tuple(map(float, said)))


def _script(answers: Answers) -> Callable[[Case], Answer]:
    if callable(answers):
        return answers
    if isinstance(answers, str):
        return lambda case: answers
    coming: Iterator[Answer | float] = iter(answers)
    if isinstance(answers, Sequence) and not any(isinstance(each, str | Iterable) for each in answers):
        return lambda case: cast("Sequence[float]", answers)

    def following(case: Case) -> Answer:
        for answer in coming:
            return cast("Answer", answer)
        raise IndexError(f"answers: none is left for case {case.id!r}")

    return following


class ToyEncoder:
    """An `Encoder` without a network: a colour histogram and a coarse grid, projected at random to D dimensions.

    The same image always gets the same vector, and images of different colours or layouts get different ones. Texts get
    random but fixed vectors: they say nothing about images.

    Parameters
    ----------
    dim : int
        D, the length of a vector.
    seed : int
        Of the projection and of the texts' vectors; part of the digest.
    logit_scale : float
        The factor on cosines before the softmax.

    Examples
    --------
    >>> from PIL import Image
    >>> encoder = ToyEncoder()
    >>> red, rust, blue = (Image.new("RGB", (32, 32), c) for c in ("red", "firebrick", "blue"))
    >>> vectors = encoder.encode([encoder.preprocess(image) for image in (red, rust, blue)])
    >>> vectors.shape
    (3, 64)
    >>> bool(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])
    True
    """

    GRID = 4
    BINS = 8

    def __init__(self, dim: int = 64, seed: int = 0, logit_scale: float = 20.0) -> None:
        self._dim, self._seed, self._logit_scale = dim, seed, logit_scale
        inputs = 3 * (self.GRID**2 + self.BINS)
        self._projection = np.random.default_rng(seed).normal(size=(inputs, dim))

    @property
    def digest(self) -> str:
        """Names dimensions and seed."""
        return f"toy-1-{self._dim}-{self._seed}"

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self._dim

    @property
    def logit_scale(self) -> float:
        """The factor on cosines before the softmax."""
        return self._logit_scale

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Return the features of one RGB image: float64 of shape (72,), passed on by `Embedder` as they are."""
        pixels = np.asarray(image.convert("RGB").resize((32, 32)), dtype=np.float64) / 255 - 0.5
        side = 32 // self.GRID
        grid = pixels.reshape(self.GRID, side, self.GRID, side, 3).mean(axis=(1, 3))
        shares = [np.histogram(pixels[..., c], bins=self.BINS, range=(-0.5, 0.5))[0] / 32**2 for c in range(3)]
        return cast("torch.Tensor", np.concatenate([grid.ravel(), *shares]))

    def encode(self, tensors: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """Encode preprocessed images to unit vectors of shape (N, D)."""
        return _unit(np.stack([np.asarray(each) for each in tensors]) @ self._projection)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts to unit vectors of shape (N, D)."""
        seeds = [int.from_bytes(hashlib.sha256(f"{self._seed} {text}".encode()).digest()[:8], "big") for text in texts]
        return _unit(np.stack([np.random.default_rng(seed).normal(size=self._dim) for seed in seeds]))


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit
