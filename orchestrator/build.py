"""The composition root: a model folder to a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache as cache_result
from pathlib import Path

from secondlook.agents.base import Agent
from secondlook.agents.calibration import Calibrated
from secondlook.agents.case import Task
from secondlook.agents.clip_head import ClipHead, LinearHead
from secondlook.agents.clip_zero_shot import ClipZeroShot, TextClassifier
from secondlook.agents.embedder import Embedder
from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.encoder import Device, Encoder, OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.orchestrator.fitted import INDEX_FOLDER, load_model
from secondlook.orchestrator.nodes import Nodes
from secondlook.orchestrator.pipeline import Pipeline
from secondlook.retrieval.index import open_index
from secondlook.retrieval.neighbour_vote import NeighbourVote
from secondlook.retrieval.search import Searcher


def raw_panels(
    embedder: Embedder, classifier: TextClassifier, head: LinearHead, task: Task
) -> dict[int, Sequence[Agent]]:
    """Uncalibrated agents of the default panel, by look: words and head, then both again with the neighbours' vote."""
    zero_shot, linear = ClipZeroShot(embedder, classifier), ClipHead(embedder, head)
    return {1: (zero_shot, linear), 2: (zero_shot, linear, NeighbourVote(task))}


def load_pipeline(
    folder: Path,
    *,
    device: Device = "auto",
    cache: EmbeddingCache | None = None,
    batch_size: int = 64,
    thumbnails: bool = False,
    second_look: bool = True,
    encoder: Encoder | None = None,
) -> Pipeline:
    """Load what `fit` wrote.

    Parameters
    ----------
    folder : Path
        The model folder.
    device : {"auto", "cpu", "cuda"}
    cache : EmbeddingCache, optional
    batch_size : int
    thumbnails : bool
        Keep a small picture of each image for the report; needs a cache.
    second_look : bool
        False never looks again, whatever fit found.
    encoder : Encoder, optional
        One that is loaded already; must be the one the model was fitted with. By default it is loaded when needed.

    Raises
    ------
    ConfigError
        When the folder is missing, damaged, or was made with another encoder.
    """
    model, arrays = load_model(folder)
    encoder = encoder or OpenClipEncoder(model.config.encoder, device)
    if encoder.digest.split("-")[0] != model.encoder_digest.split("-")[0]:
        raise ConfigError(
            f"{folder} was fitted with the encoder {model.encoder_digest}, but {model.config.encoder.model!r} is now "
            f"{encoder.digest}: its weights or its configuration have changed.",
            "Put the old weights back, or run fit again.",
        )
    embedder = Embedder(encoder, cache, batch_size=batch_size, thumbnails=thumbnails)
    raw = raw_panels(embedder, arrays.classifier, arrays.head, model.task)
    panels: dict[int, Sequence[Agent]] = {
        look: [Calibrated(agent, model.calibrators[agent.name]) for agent in agents] for look, agents in raw.items()
    }

    opened = ExitStack()

    @cache_result
    def open_searcher() -> Searcher:
        index = opened.enter_context(open_index(folder / INDEX_FOLDER, model.encoder_digest))
        return Searcher(index, k=model.config.neighbours)

    looks = 2 if model.second_look and second_look else 1
    nodes = Nodes(model, arrays, embedder, panels, open_searcher, looks)
    ahead = isinstance(encoder, OpenClipEncoder) and encoder.on_gpu
    return Pipeline(nodes, batch_size, opened.close, read_ahead=ahead)
