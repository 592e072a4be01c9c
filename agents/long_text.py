"""Longer texts for a CLIP text tower: its position embeddings stretched, the first ones kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.errors import ConfigError

if TYPE_CHECKING:
    import torch

KEPT = 20
"""Positions that stay as they are. Most captions a CLIP model learnt from are shorter, so that these are well trained
and the others hardly (arXiv:2403.15378, section 3.1)."""
LONGEST = 2048
"""Tokens of a text that a tower is built or stretched for."""


def stretched(positions: NDArray[np.floating], length: int) -> NDArray[np.float64]:
    """Stretch position embeddings to another length by linear interpolation after the first 20.

    With f = (length - 20) / (L - 20), position p >= 20 lies at u = 20 + (p - 20) / f of the L old ones, and is
    (1 - w) P[i] + w P[i + 1] with i = min(floor(u), L - 2), w = u - i. From 77 to 248, f is 4. Where u passes the last
    old position, w exceeds 1: the last step is carried on at the same slope, by 1/4, 2/4 and 3/4 of it for f = 4, as
    in the implementation of the paper's authors.

    Parameters
    ----------
    positions : ndarray of shape (L, D)
        One embedding a position, at least 22.
    length : int
        Positions wanted, more than L.

    Returns
    -------
    ndarray of shape (length, D)

    Raises
    ------
    ValueError
        When there are fewer than 22 positions, or not fewer than wanted.

    References
    ----------
    Zhang, Zhang, Dong, Zang, Wang (2024), Long-CLIP: Unlocking the Long-Text Capability of CLIP, arXiv:2403.15378.

    Examples
    --------
    >>> old = np.arange(23.0)[:, None] * 10
    >>> stretched(old, 32)[18:, 0].tolist()
    [180.0, 190.0, 200.0, 202.5, 205.0, 207.5, 210.0, 212.5, 215.0, 217.5, 220.0, 222.5, 225.0, 227.5]
    """
    if positions.ndim != 2 or len(positions) < KEPT + 2:
        raise ValueError(f"positions: expected [L >= {KEPT + 2}, D], got {positions.shape}")
    old = len(positions)
    if length <= old:
        raise ValueError(f"length: expected more than the {old} positions there are, got {length}")
    factor = (length - KEPT) / (old - KEPT)
    place = KEPT + np.arange(length - KEPT) / factor
    below = np.minimum(place.astype(int), old - 2)
    weight = (place - below)[:, None]
    later = (1 - weight) * positions[below] + weight * positions[below + 1]
    return np.concatenate([positions[:KEPT], later])


def joined(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Join the two position tables of a checkpoint that Long-CLIP's own code saved.

    That code trains a second table, `positional_embedding_res`, for the positions after the first 20, and keeps the
    first 20 of the other as they were.
    """
    import torch

    trained = {name: tensor for name, tensor in tensors.items() if name != "positional_embedding_res"}
    if len(trained) < len(tensors) and "positional_embedding" in tensors:
        both = tensors["positional_embedding"][:KEPT], tensors["positional_embedding_res"][KEPT:]
        trained["positional_embedding"] = torch.cat(both)
    return trained


def stretch(model: Any, length: int, name: str) -> None:
    """Give a loaded OpenCLIP model room for longer texts, in place; texts of up to 20 tokens keep their vectors.

    They do because a causal tower that reads its answer at the end of the text sees no position after it. Other
    towers are refused.

    Parameters
    ----------
    model : open_clip.CLIP or open_clip.CustomTextCLIP
    length : int
        Tokens of a text, with those that begin and end it; what the model has already changes nothing.
    name : str
        What the model is called in errors.

    Raises
    ------
    ConfigError
        When its text tower cannot be stretched so.
    """
    import torch

    tower = getattr(model, "text", model)
    positions = getattr(tower, "positional_embedding", None)
    pooled = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    mask = getattr(tower, "attn_mask", None)
    if (
        positions is None
        or mask is None
        or pooled not in ("argmax", "eos")
        or getattr(tower, "cls_emb", None) is not None
    ):
        raise ConfigError(
            f"The text tower of {name} cannot be stretched to {length} tokens: only one that reads from left to right "
            "and answers at the end of the text can.",
            "Leave --text-length out, or choose a CLIP model with OpenAI's text tower.",
        )
    have = len(positions)
    if length == have:
        return
    if length < have or have < KEPT + 2:
        raise ConfigError(
            f"The text tower of {name} has {have} positions, which cannot be stretched to {length}.",
            f"Leave --text-length out, or give more than {max(have, KEPT + 2)}.",
        )
    longer = torch.from_numpy(stretched(positions.detach().cpu().double().numpy(), length))
    tower.positional_embedding = torch.nn.Parameter(longer.to(positions))
    tower.attn_mask = torch.full((length, length), float("-inf")).triu_(1).to(mask)
    tower.context_length = length
    if hasattr(tower, "num_pos"):
        tower.num_pos = length
