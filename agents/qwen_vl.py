"""A local Qwen vision-language model as an agent: how likely it finds each label, or what it says."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from secondlook.agents.case import Case, Frozen, Task
from secondlook.agents.cost import Cost
from secondlook.agents.encoder import Device
from secondlook.agents.errors import AgentError, ConfigError, ImageError
from secondlook.agents.label_likelihoods import (
    Normalise,
    Replies,
    begun_with,
    label_scores,
    letter_scores,
    letter_tokens,
    replies_of,
)
from secondlook.agents.lora import LoraSettings
from secondlook.agents.model_folder import digest_of_folder, folder_of
from secondlook.agents.pictures import Shown, picture_digests, show, shrunk
from secondlook.agents.prediction import MOST_REASON, Failure, Outcome, Prediction
from secondlook.agents.qwen_model import Asked, QwenModel, on_cuda, shared_model
from secondlook.agents.vlm_question import VlmQuestion, Wording
from secondlook.agents.vlm_reply import read_stated

QwenBelief = Literal["likelihood", "letters", "stated"]
"""How belief is drawn from the model.

- ``likelihood``: how likely each label is as the beginning of the reply
- ``letters``: how likely each option's letter is as the reply, averaged over orders of the options
- ``stated``: the label and the confidence that it writes
"""
REPLY_TOKENS = 200
REASON_TOKENS = 80
MOST_ROWS = 128
"""Replies scored at once, labels times images: what is kept of an image is repeated for each label."""
LETTERS = "answer_letter.md"


class QwenSpec(Frozen):
    """Which model, and how it is asked."""

    kind: Literal["qwen"] = "qwen"
    name: str = "qwen"
    model: str
    """A folder as transformers saves it (Qwen2.5-VL, Qwen3-VL, Qwen3.5, ...), or a hub id."""
    belief: QwenBelief = "likelihood"
    max_pixels: Annotated[int, Field(ge=784)] = 262_144
    """A picture is shrunk to at most so many; the model's own limits hold besides."""
    four_bit: bool = False
    adapter: str | None = None
    """A folder with a LoRA adapter, as peft saves it."""
    fit: LoraSettings | None = None
    """Where it is given, `fit` trains an adapter on the train split; the settings in `asked_as` are taken from here."""
    reason: bool = False
    """Whether a reason is written, which takes many times as long as the label."""
    looks: tuple[Literal[1, 2], ...] = (1, 2)
    """At which looks it is asked."""
    n_pictures: Annotated[int, Field(ge=0, le=4)] = 0
    """Pictures of similar cases shown beside the case's own on a second look."""
    wording: Wording = Wording()
    permutations: Annotated[int, Field(ge=1, le=26)] = 1
    """Orders of the options over which letters are averaged; as many as labels take all letter bias out."""
    normalise: Normalise = "length"
    batch_size: Annotated[int, Field(ge=1)] = 8

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.reason and self.belief == "letters":
            raise ConfigError(f"{self.name}: a letter has no reason.", "Take belief: likelihood, or leave reason out.")
        if self.permutations > 1 and self.belief != "letters":
            raise ConfigError(f"{self.name}: only letters are permuted.", "Leave permutations out.")
        if self.fit is not None and (self.adapter or self.belief != "likelihood"):
            raise ConfigError(
                f"{self.name}: what is fitted is an adapter of its own, for likelihoods.",
                "Leave `adapter` out, and `belief` at likelihood; or leave `fit` out.",
            )
        return self

    @property
    def asked_as(self) -> dict[str, Any]:
        """The settings that a fine-tuning shares with the asking."""
        shared = ("normalise", "max_pixels", "wording", "four_bit")
        return {name: getattr(self, name) for name in shared}


class QwenVl:
    """An agent that asks a local vision-language model; loaded when first needed, and shared with others like it.

    The library's own `pipeline("decision")` reads option letters as ``letters`` does, with the same result; it is not
    used because it asks one picture at a time (transformers 5.23), averages over no orders, and scores no labels.

    Parameters
    ----------
    spec : QwenSpec
    task : Task
    device : {"auto", "cpu", "cuda"}
        bfloat16 on a GPU, float32 elsewhere.

    Raises
    ------
    ConfigError
        When a prompt is missing or there are more labels than letters; and, when first asked, when the model cannot be
        loaded or its tokenizer cannot tell two labels apart.
    """

    def __init__(self, spec: QwenSpec, task: Task, device: Device = "auto") -> None:
        self.spec, self._task, self._device = spec, task, device
        letters, wording = spec.belief == "letters", spec.wording
        if letters and wording.answer == Wording().answer:
            wording = wording.model_copy(update={"answer": LETTERS})
        marks: Literal["letters", "dashes"] = "letters" if letters else "dashes"
        self._question = VlmQuestion(task, spec.name, wording, marks, spec.n_pictures)
        self._orders = rotations(len(task.labels), spec.permutations)

    @property
    def name(self) -> str:
        """The agent's name."""
        return self.spec.name

    @property
    def cost(self) -> Mapping[str, float]:
        """What one case costs: a call for each order of the options."""
        return {"vlm_calls": float(len(self._orders))}

    @cached_property
    def _folder(self) -> Path:
        return folder_of(self.spec.model)

    @cached_property
    def digest(self) -> str:
        """16 digits of SHA-256 over the files of the model and its adapter; then the arithmetic they run in."""
        adapter = digest_of_folder(Path(self.spec.adapter)) if self.spec.adapter else ""
        arithmetic = "4 bit" if self.spec.four_bit else "bfloat16" if on_cuda(self._device) else "float32"
        parts = f"{digest_of_folder(self._folder)} {adapter}"
        return f"{hashlib.sha256(parts.encode()).hexdigest()[:16]}-{arithmetic.replace(' ', '')}"

    @property
    def prompt(self) -> str:
        """SHA-256 over the prompt files."""
        return self._question.sha256

    @cached_property
    def _qwen(self) -> QwenModel:
        return shared_model(self._folder, self._device, self.spec.four_bit)

    @cached_property
    def _replies(self) -> Replies:
        return replies_of(self._task.labels, self._qwen.processor.tokenizer)

    @cached_property
    def _letter_tokens(self) -> list[int]:
        return letter_tokens(len(self._task.labels), self._qwen.processor.tokenizer)

    def key(self, case: Case) -> str:
        """Digest of everything that decides the answer for a case: model, settings, question, pictures."""
        how = self.spec.model_dump(
            mode="json", include={"belief", "max_pixels", "reason", "permutations", "normalise", "name"}
        )
        texts = [self._question.text(case, order) for order in self._orders]
        pictures = picture_digests(case, self.spec.n_pictures)
        whole = ["qwen 2", self.digest, how, list(self._task.labels), texts, pictures, case.draw]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge a batch in a thread; see `Agent.predict`."""
        import anyio

        return await anyio.to_thread.run_sync(partial(self._predict, list(cases)))

    def _predict(self, cases: Sequence[Case]) -> list[Outcome]:
        size = self.spec.batch_size
        if self.spec.belief == "likelihood":
            size = max(1, min(size, MOST_ROWS // len(self._task.labels)))
        return [out for start in range(0, len(cases), size) for out in self._batch(cases[start : start + size])]

    def _batch(self, cases: Sequence[Case]) -> list[Outcome]:
        found: dict[int, Outcome] = {}
        ready: dict[int, Shown] = {}
        for i, case in enumerate(cases):
            try:
                case.photo.shrink()
                ready[i] = show(case, self.spec.n_pictures)
            except ImageError as error:
                found[i] = Failure(agent=self.name, look=case.look, error=str(error))
        found |= zip(ready, self._judged(list(ready.values())), strict=True)
        return [found[i] for i in range(len(cases))]

    def _judged(self, ready: Sequence[Shown]) -> list[Outcome]:
        """Judge cases whose pictures can be read."""
        import torch

        if not ready:
            return []
        adapter = Path(self.spec.adapter) if self.spec.adapter else None
        with self._qwen.using(adapter), torch.inference_mode():
            start = time.perf_counter()
            try:
                outcomes = self._answers(ready)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                why = f"the GPU's memory does not hold {len(ready)} cases at once: lower batch_size or max_pixels."
                outcomes = [Failure(agent=self.name, look=each.case.look, error=why) for each in ready]
            cost = Cost(vlm_calls=len(self._orders), seconds=(time.perf_counter() - start) / len(ready))
        return [outcome.model_copy(update={"cost": cost}) for outcome in outcomes]

    def _answers(self, ready: Sequence[Shown]) -> list[Outcome]:
        cases = [each.case for each in ready]
        match self.spec.belief:
            case "stated":
                texts = self._qwen.replies([self._asked(each) for each in ready], REPLY_TOKENS)
                return [self._read(text, case) for text, case in zip(texts, cases, strict=True)]
            case "letters":
                rows = self._letters(ready)
            case "likelihood":
                asked = self._qwen.inputs([self._asked(each) for each in ready])
                rows = label_scores(self._qwen, asked, self._replies, self.spec.normalise).tolist()
        outcomes = [self._scored(row, case) for row, case in zip(rows, cases, strict=True)]
        return self._reasoned(ready, outcomes) if self.spec.reason else outcomes

    def _letters(self, ready: Sequence[Shown]) -> list[list[float]]:
        """Mean log-probability of each label's letter over the orders.

        A model that likes a letter adds the same to whichever label stands there. Where every label stands once at
        every letter, each gets the same sum of these, and the softmax forgets it.
        """
        import torch

        k = len(self._task.labels)
        total = torch.zeros(len(ready), k)
        for order in self._orders:
            asked = self._qwen.inputs([self._asked(each, order) for each in ready])
            total[:, list(order)] += letter_scores(self._qwen, asked, self._letter_tokens).cpu()
        rows: list[list[float]] = (total / len(self._orders)).tolist()
        return rows

    def _asked(self, each: Shown, order: Sequence[int] | None = None, begun: str = "") -> Asked:
        images = tuple(shrunk(photo, self.spec.max_pixels) for photo in each.photos)
        return Asked(self._question.text(each.case, order), images, begun)

    def _scored(self, row: Sequence[float], case: Case) -> Outcome:
        if not all(map(math.isfinite, row)):
            return Failure(agent=self.name, look=case.look, error="the model's log-probabilities are not numbers.")
        return Prediction(
            agent=self.name, look=case.look, scale="logit", scores=tuple(row), prompt=self._question.sha256
        )

    def _read(self, text: str, case: Case) -> Outcome:
        try:
            return read_stated(text, self._task, self.name, case.look, self._question.sha256)
        except AgentError as error:
            return Failure(agent=self.name, look=case.look, error=str(error))

    def _reasoned(self, ready: Sequence[Shown], outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Let the model go on, after the label it finds likeliest, to its reason."""
        scored = [(i, said) for i, said in enumerate(outcomes) if isinstance(said, Prediction)]
        asked = [self._asked(ready[i], begun=self._begun(said)) for i, said in scored]
        texts = self._qwen.replies(asked, REASON_TOKENS, stop='"') if asked else []
        found = list(outcomes)
        for (i, said), text in zip(scored, texts, strict=True):
            found[i] = said.model_copy(update={"reason": reason_of(text)})
        return found

    def _begun(self, said: Prediction) -> str:
        """Write the reply up to its reason; the confidence in it is the softmax of the scores."""
        sure = 1 / sum(math.exp(score - said.scores[said.top]) for score in said.scores)
        return f'{begun_with(self._task.labels[said.top])} "confidence": {sure:.2f}, "reason": "'


def rotations(k: int, n: int) -> tuple[tuple[int, ...], ...]:
    """Return n orders of k options, each turned further than the one before; at most k.

    Examples
    --------
    >>> rotations(4, 2)
    ((0, 1, 2, 3), (2, 3, 0, 1))
    >>> len(rotations(4, 9))
    4
    """
    n = min(n, k)
    return tuple(tuple((i + turn * k // n) % k for i in range(k)) for turn in range(n))


def reason_of(text: str) -> str:
    r"""Return a reason from what stands after its opening quote: what is printable, on one line.

    Examples
    --------
    >>> reason_of('brown  spots", "more": 1}')
    'brown spots'
    """
    words = " ".join(text.split('"', 1)[0].replace("\\n", " ").replace("\\", " ").split())
    return "".join(filter(str.isprintable, words))[:MOST_REASON]
