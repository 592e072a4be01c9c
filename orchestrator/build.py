"""The composition root: a model folder to a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache as cache_result
from pathlib import Path

from secondlook.agents.answer_cache import AnswerCache
from secondlook.agents.base import Agent
from secondlook.agents.calibration import Calibrated
from secondlook.agents.cost import Account
from secondlook.agents.embedder import Embedder
from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.encoder import Device, Encoder, OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.orchestrator.adapted import adapted_members, adapted_parts
from secondlook.orchestrator.binding import encoder_stem
from secondlook.orchestrator.fitted import INDEX_FOLDER, Arrays, Model, load_model
from secondlook.orchestrator.hold import open_watch
from secondlook.orchestrator.language import Language, Means, judge_of, members, parts_of
from secondlook.orchestrator.ledger import TRACK_FILE
from secondlook.orchestrator.nodes import Nodes
from secondlook.orchestrator.panels import raw_panels
from secondlook.orchestrator.pipeline import Pipeline
from secondlook.prompts import load
from secondlook.retrieval.index import open_index
from secondlook.retrieval.search import Searcher


def load_pipeline(
    folder: Path,
    *,
    device: Device = "auto",
    cache: EmbeddingCache | None = None,
    batch_size: int = 64,
    thumbnails: bool = False,
    second_look: bool = True,
    encoder: Encoder | None = None,
    ledger: Path | None = None,
) -> Pipeline:
    """Load what `fit` wrote.

    Parameters
    ----------
    folder : Path
        The model folder.
    device : {"auto", "cpu", "cuda"}
    cache : EmbeddingCache, optional
        The answers of language models are kept beside it.
    batch_size : int
    thumbnails : bool
        Keep a small picture of each image for the report; needs a cache.
    second_look : bool
        False never looks again, whatever fit found.
    encoder : Encoder, optional
        One that is loaded already; must be the one the model was fitted with. By default it is loaded when needed.
    ledger : Path, optional
        Track records that live; by default the model folder's own, where there is one. What is no longer as it was
        measured, and what drifts, sends everything to review; see `secondlook.orchestrator.hold.Watch`.

    Raises
    ------
    ConfigError
        When the folder or the ledger is missing or damaged; or when it was made with another encoder and there is no
        ledger by which trust could be earned again, or the encoder's vectors do not fit.
    """
    if ledger is not None and not ledger.is_file():
        raise ConfigError(f"There is no ledger {ledger}.", "Make one with: secondlook feedback RUN TRUTH.csv")
    model, arrays = load_model(folder)
    encoder = encoder or OpenClipEncoder(model.config.encoder, device)
    _check_encoder(folder, model, arrays, encoder, ledger)
    language = model.config.language.placed(folder)
    parts = parts_of(language, model.task, device) | adapted_parts(model.config.adapters, folder)
    watch = open_watch(folder, model, arrays, encoder.digest, ledger, parts)
    embedder = Embedder(encoder, cache, batch_size=batch_size, thumbnails=thumbnails)
    opened = ExitStack()
    answers = opened.enter_context(AnswerCache(cache.path.parent)) if cache and language != Language() else None
    means = Means(Account(model.config.budget), answers, device)
    adapted = adapted_members(model.config.adapters, folder, opened, cache, device, batch_size)
    others = (*adapted, *members(language, model.task, means))

    def calibrated(agent: Agent) -> Agent:
        return Calibrated(agent, model.calibrators[agent.name])

    prompts = load(model.config.templates).lines if model.config.boxes else ()
    raw = raw_panels(embedder, arrays.classifier, arrays.heads, model.task, others, prompts)
    panels: dict[int, Sequence[Agent]] = {look: [*map(calibrated, agents)] for look, agents in raw.items()}
    judge = judge_of(language, model.task, means, model.shown)

    @cache_result
    def open_searcher() -> Searcher:
        index = opened.enter_context(open_index(folder / INDEX_FOLDER, model.encoder_digest))
        return Searcher(index, k=model.config.neighbours)

    looks = 2 if model.second_look and second_look else 1
    nodes = Nodes(model, arrays, embedder, panels, open_searcher, looks, watch.at, calibrated(judge) if judge else None)
    ahead = isinstance(encoder, OpenClipEncoder) and encoder.on_gpu
    return Pipeline(nodes, batch_size, opened.close, read_ahead=ahead, watch=watch)


def _check_encoder(folder: Path, model: Model, arrays: Arrays, encoder: Encoder, ledger: Path | None) -> None:
    """Refuse another encoder, unless a ledger is there to hold everything back until it has proved itself."""
    if encoder_stem(encoder.digest) == encoder_stem(model.encoder_digest):
        return
    changed = (
        f"{folder} was fitted with the encoder {model.encoder_digest}, but {model.config.encoder.model!r} is now "
        f"{encoder.digest}: its weights or its configuration have changed"
    )
    dim = arrays.classifier.vectors.shape[1]
    if not (ledger or folder / TRACK_FILE).is_file():
        raise ConfigError(f"{changed}.", "Put the old weights back, or run fit again.")
    if encoder.dim != dim:
        raise ConfigError(f"{changed}, and its vectors have {encoder.dim} numbers instead of {dim}.", "Run fit again.")
