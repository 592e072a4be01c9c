"""Encoders that were adapted to the train split: each an agent of its own, at every look."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from secondlook.agents.adaptation import AnyAdapter
from secondlook.agents.adapted_encoder import AdaptedEncoder
from secondlook.agents.clip_zero_shot import ClipZeroShot
from secondlook.agents.embedder import Embedder
from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.encoder import Device
from secondlook.orchestrator.binding import encoder_stem
from secondlook.orchestrator.language import Member

ENCODERS = "encoders"
"""Folder of a model folder that holds what adapts the encoder, by name."""


def adapted_members(
    specs: Sequence[AnyAdapter],
    folder: Path,
    opened: ExitStack,
    cache: EmbeddingCache | None = None,
    device: Device = "auto",
    batch_size: int = 64,
) -> tuple[Member, ...]:
    """Make the agents; no encoder is loaded yet.

    Parameters
    ----------
    specs : sequence of AdapterSpec
    folder : Path
        The model folder.
    opened : ExitStack
        Ends their decoding threads when it is closed; the cache stays open.
    cache, device, batch_size
        See `Embedder` and `AdaptedEncoder`.

    Raises
    ------
    ConfigError
        When what `fit` trained is missing or damaged.
    """
    found = []
    for spec in specs:
        encoder = AdaptedEncoder(folder / ENCODERS / spec.name, device)
        embedder = Embedder(encoder, cache, batch_size=batch_size)
        opened.callback(embedder.end_threads)
        found.append(Member(ClipZeroShot(embedder, encoder.classifier, spec.name), (1, 2)))
    return tuple(found)


def adapted_parts(specs: Sequence[AnyAdapter], folder: Path) -> dict[str, dict[str, str]]:
    """Name what each agent is made of, for its bindings; see `secondlook.orchestrator.binding.bind`."""
    return {
        spec.name: {"encoder": encoder_stem(AdaptedEncoder(folder / ENCODERS / spec.name, "cpu").digest)}
        for spec in specs
    }
