"""Second and third stage of leaf-tiny-vl: its language part learns to answer, then all weights learn together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from secondlook.leaf_dialogues import KINDS, Asked, Dialogues, Kind
from secondlook.leaf_vl_vision import Batches, Teacher, encode_images
from secondlook.leaves import LABELS
from secondlook.vl_recipe import VlRecipe

KIND_SHARES = (0.45, 0.2, 0.35)
"""Of the steps, in the order of `KINDS`; a step asks questions of one kind, which are about equally long."""
ASKED = 12_000
"""Questions that are made; each is asked many times, of other pictures."""
LABEL_WEIGHT, REPLY_WEIGHT, QUESTION_WEIGHT = 4.0, 1.0, 0.04
"""Of the tokens in the loss: up to the label; of the rest of the reply; of the question, which teaches what words go
together."""


class Views(NamedTuple):
    """V augmented pictures."""

    tokens: Tensor
    """What the vision part makes of them, (V, T, D)."""
    seen: NDArray[np.float64]
    """What can be seen on them, a distribution over `LABELS`, (V, 4)."""


class Written(NamedTuple):
    """A question in tokens."""

    asked: Asked
    before: list[int]
    """Up to the first token of the picture."""
    after: list[int]
    """From the last token of the picture to the beginning of the reply."""


def draw_views(visual: Any, teacher: Teacher, batches: Batches, count: int, size: int, mixed: float = 0.35) -> Views:
    """Draw augmented pictures without strangers.

    What can be seen is the mean of the truth, mixed as the pictures are, and of what leaf-tiny says: a blurred or
    mixed picture gives an unsure answer, and the confidence in the replies is honest about it.
    """
    tokens, seen = [], []
    with torch.no_grad():
        for _ in range(math.ceil(count / 64)):
            pixels, truth = batches.draw(64, size, (0.12, 0.0), mixed)
            tokens.append(encode_images(visual, pixels)[1])
            seen.append(believed(teacher, pixels, truth))
    return Views(torch.cat(tokens)[:count], np.concatenate(seen)[:count])


def believed(teacher: Teacher, pixels: Tensor, truth: Tensor) -> NDArray[np.float64]:
    """Return what can be seen on pictures, (N, 4)."""
    shares = functional.softmax(teacher.look(pixels).logits[:, : len(LABELS)], dim=-1)
    return np.asarray((0.5 * shares + 0.5 * truth[:, : len(LABELS)]).double().numpy())


class Lessons:
    """Draws questions and replies for pictures, and writes them in tokens.

    Parameters
    ----------
    processor : transformers.Qwen2_5_VLProcessor
    dialogues : Dialogues
    rng : numpy.random.Generator
    count : int
        Questions made.
    """

    def __init__(self, processor: Any, dialogues: Dialogues, rng: np.random.Generator, count: int = ASKED) -> None:
        self._processor, self._dialogues, self._rng = processor, dialogues, rng
        self._tokenizer = processor.tokenizer
        self._end = self._tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._pools: dict[tuple[Kind, int], list[Written]] = {}
        for kind, share in zip(KINDS, KIND_SHARES, strict=True):
            for truth in range(len(LABELS)):
                asked = [dialogues.ask(kind, truth) for _ in range(max(1, round(count * share / len(LABELS))))]
                self._pools[kind, truth] = [self._write(each) for each in asked]

    def _write(self, asked: Asked) -> Written:
        content = [
            {"type": "text", "text": asked.before},
            {"type": "image"},
            {"type": "text", "text": asked.after},
        ]
        chat = [{"role": "user", "content": content}]
        text = self._processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        before, mark, after = text.partition("<|image_pad|>")
        if not mark:
            raise ValueError("the chat template writes no picture")
        return Written(asked, *self._tokens([before, after]))

    def pool(self, kind: Kind, truth: int) -> list[Written]:
        """Return the questions of a kind about pictures of a label, a position in `LABELS`."""
        return self._pools[kind, truth]

    def draw(self, seen: NDArray[np.float64], picture: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a question and a reply for each of N pictures.

        The label of the reply is drawn from what can be believed: that teaches the model the distribution.

        Parameters
        ----------
        seen : ndarray of shape (N, 4)
        picture : int
            Tokens of a picture.

        Returns
        -------
        tuple of tensors
            Tokens (N, L), their weights in the loss (N, L), and where the first token of each picture stands (N,).
        """
        rng = self._rng
        kind = KINDS[int(rng.choice(len(KINDS), p=KIND_SHARES))]
        image = self._tokenizer.convert_tokens_to_ids("<|image_pad|>")
        rows, weights, starts = [], [], []
        for shares in seen:
            pool = self._pools[kind, int(rng.choice(len(LABELS), p=shares / shares.sum()))]
            written = pool[int(rng.integers(len(pool)))]
            reply, weight = self._reply(written.asked, shares)
            rows.append([*written.before, *[image] * picture, *written.after, *reply])
            unseen = [QUESTION_WEIGHT] * len(written.before) + [0.0] * picture
            weights.append([*unseen, *[QUESTION_WEIGHT] * len(written.after), *weight])
            starts.append(len(written.before))
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [self._end] * (longest - len(row)) for row in rows])
        weighed = torch.tensor([row + [0.0] * (longest - len(row)) for row in weights])
        return tokens, weighed, torch.tensor(starts)

    def _reply(self, asked: Asked, shares: NDArray[np.float64]) -> tuple[list[int], list[float]]:
        """Write a reply in tokens, with their weights; after a letter, which label has which is asked too."""
        belief = asked.belief(shares)
        label = int(self._rng.choice(len(LABELS), p=belief))
        reply = self._dialogues.reply(asked, label, float(belief[label]))
        head, whole = self._tokens([reply[: reply.index(",")] if "," in reply else reply, reply])
        tokens = [*whole, self._end]
        weights = [LABEL_WEIGHT] * len(head) + [REPLY_WEIGHT] * (len(tokens) - len(head))
        if asked.kind == "letters":
            for question, letter in self._dialogues.drill(asked):
                asking, said = self._tokens([self._turn(question), letter])
                tokens += [*asking, *said, self._end]
                weights += [0.0] * len(asking) + [LABEL_WEIGHT, REPLY_WEIGHT]
        return tokens, weights

    def _turn(self, question: str) -> str:
        """Write what stands between one reply and the next."""
        chat = [{"role": "user", "content": question}]
        written: str = self._processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return f"\n{written}"

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return found


def reply_loss(model: Any, pictures: Tensor, tokens: Tensor, weights: Tensor, starts: Tensor) -> Tensor:
    """Return the weighted cross-entropy of every token given those before it.

    Parameters
    ----------
    model : transformers.Qwen2_5_VLForConditionalGeneration
    pictures : tensor of shape (N, T, D)
        Tokens of square pictures.
    tokens, weights : tensors of shape (N, L)
    starts : tensor of shape (N,)
        Where the pictures stand.
    """
    width = pictures.shape[1]
    embedded = model.get_input_embeddings()(tokens)
    at = starts[:, None] + torch.arange(width)
    embedded = embedded.scatter(1, at[..., None].expand_as(pictures), pictures)
    hidden = model.model.language_model(
        inputs_embeds=embedded, position_ids=positions(starts, width, tokens.shape[1]), use_cache=False
    ).last_hidden_state
    counted = weights[:, 1:] > 0
    logits = model.lm_head(hidden[:, :-1][counted])
    losses = functional.cross_entropy(logits, tokens[:, 1:][counted], reduction="none")
    weighed = weights[:, 1:][counted]
    return (losses * weighed).sum() / weighed.sum()


def positions(starts: Tensor, width: int, length: int) -> Tensor:
    """Return the positions (3, N, L) in time, height and width of texts with one square picture of so many tokens.

    Examples
    --------
    >>> positions(torch.tensor([1]), 4, 7)[:, 0].tolist()
    [[0, 1, 1, 1, 1, 3, 4], [0, 1, 1, 2, 2, 3, 4], [0, 1, 2, 1, 2, 3, 4]]
    """
    side = math.isqrt(width)
    place = torch.arange(length)[None] - starts[:, None]
    inside = (place >= 0) & (place < width)
    # Text before the picture counts on; after it, from the picture's last row.
    text = torch.where(place < 0, place, place - width + side)
    rows, columns = place.div(side, rounding_mode="floor"), place.remainder(side)
    axes = [torch.where(inside, axis, text) for axis in (torch.zeros_like(place), rows, columns)]
    return torch.stack(axes) + starts[:, None]


def language_losses(
    model: Any, views: Views, lessons: Lessons, batch: int, rng: np.random.Generator
) -> Iterator[Tensor]:
    """Yield the losses of the second stage: pictures are drawn from the views, the vision part is not run."""
    while True:
        index = rng.integers(len(views.seen), size=batch)
        tokens, weights, starts = lessons.draw(views.seen[index], views.tokens.shape[1])
        yield reply_loss(model, views.tokens[index], tokens, weights, starts)


def joint_losses(
    model: Any, teacher: Teacher, batches: Batches, lessons: Lessons, recipe: VlRecipe, size: int
) -> Iterator[Tensor]:
    """Yield the losses of the third stage: pictures are drawn anew and gradients reach the vision part."""
    while True:
        pixels, truth = batches.draw(recipe.batch, size, (0.12, 0.0), 0.35)
        seen = believed(teacher, pixels, truth)
        pictures = encode_images(model.model.visual, pixels)[1]
        tokens, weights, starts = lessons.draw(seen, pictures.shape[1])
        yield reply_loss(model, pictures, tokens, weights, starts)
