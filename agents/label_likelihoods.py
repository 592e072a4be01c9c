"""How likely a vision-language model finds each label: as the beginning of its reply, or as an option's letter."""

from __future__ import annotations

import string
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from secondlook.agents.errors import ConfigError
from secondlook.agents.qwen_model import Inputs, QwenModel
from secondlook.prompts import data

if TYPE_CHECKING:
    import torch

Normalise = Literal["length", "none"]
"""How a label's log-probability is weighed: ``length`` is its mean per token, ``none`` the sum."""
BEGINNING = '{"label": '


class Replies(NamedTuple):
    """The K replies that are compared, as tokens."""

    beginning: tuple[int, ...]
    """What all of them begin with; given to the model, not scored."""
    endings: tuple[tuple[int, ...], ...]
    """K times the label, its closing quote and what the tokenizer joins to it; none empty, no two alike."""


def begun_with(label: str) -> str:
    r"""Write the beginning of a reply that names a label, quoted as it stands in the question.

    Examples
    --------
    >>> begun_with('the "red" one')
    '{"label": "the \\"red\\" one",'
    """
    return f"{BEGINNING}{data(label)},"


def replies_of(labels: Sequence[str], tokenizer: Any) -> Replies:
    """Cut the replies that name K labels into tokens, as the tokenizer cuts them in running text.

    The comma after the closing quote belongs to them: a tokenizer may join the two, and a reply that the model would
    not cut so itself would be unlikely for no reason.

    Raises
    ------
    ConfigError
        When the tokenizer cannot tell two labels apart.
    """
    texts = [f'{BEGINNING}"', *map(begun_with, labels)]
    tokens = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*tokens, strict=False)))
    endings = tuple(tuple(each[common:]) for each in tokens[1:])
    if len(set(endings)) < len(labels) or not all(endings):
        raise ConfigError("The model's tokenizer cuts two labels into the same tokens.", "Name the labels otherwise.")
    return Replies(tuple(tokens[0][:common]), endings)


def label_scores(qwen: QwenModel, inputs: Inputs, replies: Replies, normalise: Normalise = "length") -> torch.Tensor:
    """Score K labels for N questions.

    The questions, pictures included, are run once; what the model keeps of them (keys and values) is then repeated for
    each label, and the K labels are run in a second pass. Gradients flow through both.

    Parameters
    ----------
    qwen : QwenModel
    inputs : Inputs
        N questions; see `QwenModel.inputs`.
    replies : Replies
        Of the K labels.
    normalise : {"length", "none"}

    Returns
    -------
    Tensor of float32 of shape (N, K)
        Log-probabilities of each label given question and picture.
    """
    import torch

    model, device = qwen.model, qwen.device
    asked = _continued(inputs, torch.tensor(replies.beginning, device=device))
    first = model(**asked, use_cache=True, logits_to_keep=1)
    n, k = len(asked["input_ids"]), len(replies.endings)
    ends, real = (part.to(device).repeat(n, 1) for part in _padded(replies.endings))
    logits = first.logits.repeat_interleave(k, dim=0)
    if ends.shape[1] > 1:
        kept = first.past_key_values
        kept.reorder_cache(torch.arange(n, device=device).repeat_interleave(k))
        seen = asked["attention_mask"].repeat_interleave(k, dim=0)
        rest = model(
            input_ids=ends[:, :-1],
            attention_mask=torch.cat([seen, real[:, :-1].to(seen.dtype)], dim=1),
            position_ids=_positions(model, asked["attention_mask"], k, ends.shape[1] - 1),
            past_key_values=kept,
            use_cache=True,
        )
        logits = torch.cat([logits, rest.logits], dim=1)
    loss = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), ends, reduction="none")
    total = -(loss * real).sum(dim=1)
    return (total / real.sum(dim=1) if normalise == "length" else total).view(n, k)


def letter_scores(qwen: QwenModel, inputs: Inputs, letters: Sequence[int]) -> torch.Tensor:
    """Score letters as the first token of the reply to N questions.

    Parameters
    ----------
    qwen : QwenModel
    inputs : Inputs
        N questions.
    letters : sequence of int
        The K letters' tokens; see `letter_tokens`.

    Returns
    -------
    Tensor of float32 of shape (N, K)
        Their log-probabilities, all other tokens left out.
    """
    logits = qwen.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
    chosen: torch.Tensor = logits[:, list(letters)].float()
    return chosen.log_softmax(dim=1)


def letter_tokens(n_letters: int, tokenizer: Any) -> list[int]:
    """Return the token of each of the first letters.

    Raises
    ------
    ConfigError
        When the tokenizer has not one token for each.
    """
    found = tokenizer(list(string.ascii_uppercase[:n_letters]), add_special_tokens=False)["input_ids"]
    if any(len(tokens) != 1 for tokens in found) or len({tokens[0] for tokens in found}) < n_letters:
        raise ConfigError("The model's tokenizer has no token of its own for each letter.", "Score labels instead.")
    return [int(tokens[0]) for tokens in found]


def _continued(inputs: Inputs, tokens: torch.Tensor) -> Inputs:
    """Append the same text tokens to every question of a batch."""
    import torch

    n, width = inputs["input_ids"].shape
    fill: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    zero = torch.zeros_like(tokens)
    return {
        name: torch.cat([value, fill.get(name, zero).to(value.dtype).expand(n, -1)], dim=1)
        if value.shape == (n, width)
        else value
        for name, value in inputs.items()
    }


def _padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of shape (K, T), zeros after their end; and 1 where they are real, else 0."""
    import torch

    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return tokens, real


def _positions(model: Any, mask: torch.Tensor, k: int, width: int) -> torch.Tensor:
    """Positions of the labels' tokens, of shape (N K, width), or (3, N K, width) where a picture has two dimensions.

    A picture of h x w tokens advances the position by max(h, w) only; the model notes by how much less it is.
    """
    import torch

    following = mask.sum(dim=1, keepdim=True)
    behind = getattr(model.model, "rope_deltas", None)
    if behind is not None:
        following = following + behind.to(following.device)
    positions = (following + torch.arange(width, device=mask.device)).repeat_interleave(k, dim=0)
    return positions if behind is None else positions.expand(3, -1, -1)
