"""The text tower of an OpenCLIP model as a function of word vectors, so that the words of a prompt can be learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from secondlook.agents.encoder import Towers
from secondlook.agents.errors import ConfigError

if TYPE_CHECKING:
    import torch

PARTS = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
"""What both kinds of text tower have: CLIP's own attributes, and the `text` module of a CustomTextCLIP."""
POOLS = ("argmax", "eos", "first", "last")


@dataclass(frozen=True)
class Prompts:
    """K sentences of L tokens with room for M learned vectors behind the start token.

    Attributes
    ----------
    before : Tensor of shape (K, S, W)
        Embeddings of what stands before the room; S is 0 for a tokenizer without a start token.
    after : Tensor of shape (K, L - S - M, W)
        Embeddings of the sentence, the end token and the padding.
    ends : Tensor of shape (K,)
        Position whose output is the sentence's.
    """

    before: torch.Tensor
    after: torch.Tensor
    ends: torch.Tensor


class TextTower:
    """Its weights stay frozen: gradients flow to the word vectors only.

    Where a token sees only those before it, sentences are cut behind the longest: the padding changes nothing, and a
    step takes a third of the time.

    Parameters
    ----------
    towers : Towers
        See `OpenClipEncoder.towers`.

    Raises
    ------
    ConfigError
        When the text tower is not one of OpenCLIP's own transformers: a Hugging Face model, or CoCa's.
    """

    def __init__(self, towers: Towers) -> None:
        self._tower: Any = getattr(towers.model, "text", towers.model)
        self._tokenizer = towers.tokenizer
        self._device, self._dtype = towers.device, towers.dtype
        prefix = "text_" if self._tower is towers.model else ""
        self._pool = getattr(self._tower, f"{prefix}pool_type", None)
        self._eos: Any = getattr(self._tower, f"{prefix}eos_id", None)
        own = all(hasattr(self._tower, part) for part in PARTS) and self._pool in POOLS
        # These put a further token behind the sentence, or a mask of their own.
        other = getattr(self._tower, "cls_emb", None) is not None or getattr(self._tower, "use_pad_mask", False)
        if not own or other:
            raise _unknown(type(self._tower).__name__)
        self._mask: torch.Tensor | None = getattr(self._tower, "attn_mask", None)
        self._may_cut = self._mask is not None and self._pool != "last"
        nothing, one, another = self._ids(["", "a", "b"])
        self._pad = int(nothing[-1])
        # A tokenizer without a start token begins with the word itself; one closes with an end token, or with none.
        self._start = int(one[0] == another[0])
        self._closing = int(self._filled(nothing[None])) - self._start
        if self._closing not in (0, 1):
            raise _unknown(type(self._tokenizer).__name__)

    @property
    def width(self) -> int:
        """W, the length of a word vector."""
        return int(self._tower.positional_embedding.shape[1])

    def words(self, text: str) -> torch.Tensor:
        """Embeddings of a text's tokens, of shape (M, W): what a context can start from."""
        ids = self._ids([text])
        stop = int(self._filled(ids)) - self._closing
        embedded: torch.Tensor = self._tower.token_embedding(ids[0, self._start : stop])
        return embedded.float()

    def prompts(self, texts: Sequence[str], room: int) -> Prompts:
        """Tokenize K texts, with room for M learned vectors before them.

        Raises
        ------
        ConfigError
            When a text is too long for the tower together with the room.
        """
        ids = self._ids(texts)
        filled, length = self._filled(ids), ids.shape[1]
        if int(filled.max()) + room > length:
            longest = texts[int(filled.argmax())]
            raise ConfigError(
                f"{longest[:80]!r} and {room} learned words are longer than the encoder's {length} tokens.",
                "Shorten the description, or learn fewer words.",
            )
        total = int(filled.max()) + room if self._may_cut else length
        embedded = self._tower.token_embedding(ids[:, : total - room])
        return Prompts(embedded[:, : self._start], embedded[:, self._start :], self._ends(ids, room))

    def encode(self, prompts: Prompts, context: torch.Tensor) -> torch.Tensor:
        """Encode the prompts with the context in its place.

        Parameters
        ----------
        prompts : Prompts
            K of them, with room for M.
        context : Tensor of shape (M, W) or (K, M, W)
            One for all, or each its own.

        Returns
        -------
        Tensor of float32 of shape (K, D)
            Unit vectors, differentiable in the context.
        """
        import torch

        inserted = context.to(self._dtype).expand(len(prompts.ends), *context.shape[-2:])
        x = torch.cat([prompts.before, inserted, prompts.after], dim=1)
        length = x.shape[1]
        x = x + self._tower.positional_embedding[:length]
        mask = None if self._mask is None else self._mask[:length, :length]
        x = self._tower.ln_final(self._tower.transformer(x, attn_mask=mask))
        x = x[torch.arange(len(x), device=x.device), prompts.ends]
        projection = self._tower.text_projection
        if projection is not None:
            x = projection(x) if isinstance(projection, torch.nn.Module) else x @ projection
        return torch.nn.functional.normalize(x.float(), dim=-1)

    def _ids(self, texts: Sequence[str]) -> torch.Tensor:
        ids: torch.Tensor = self._tokenizer(list(texts)).to(self._device)
        return ids

    def _filled(self, ids: torch.Tensor) -> torch.Tensor:
        """Tokens of each row before its padding."""
        import torch

        places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        return (places * (ids != self._pad)).amax(dim=1)

    def _ends(self, ids: torch.Tensor, room: int) -> torch.Tensor:
        import torch

        if self._pool in ("first", "last"):
            return torch.full((len(ids),), 0 if self._pool == "first" else ids.shape[1] - 1, device=ids.device)
        found = ids if self._pool == "argmax" else torch.eq(ids, self._eos).int()
        return found.argmax(dim=1) + room


def _unknown(kind: str) -> ConfigError:
    return ConfigError(
        f"The words of prompts cannot be learned through this encoder's {kind}.",
        "Use an encoder whose text tower is OpenCLIP's own transformer, or leave out the heads that learn words.",
    )
