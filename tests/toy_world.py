"""A fitted model of pictures of one colour, small enough to be made in a test; every part of it is a real one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from secondlook.agents.base import Agent
from secondlook.agents.calibration import Calibrated, Calibrator
from secondlook.agents.case import Case, Task
from secondlook.agents.clip_head import ClipHead
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.embedder import Embedder
from secondlook.agents.linear_head import LinearHead
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Failure, Outcome, Prediction
from secondlook.agents.stranger_scores import fit_stranger_scores
from secondlook.agents.typicality import Typicality
from secondlook.orchestrator.config import Config
from secondlook.orchestrator.fitted import Arrays, Model, Split
from secondlook.orchestrator.gate import Gate
from secondlook.orchestrator.nodes import Nodes
from secondlook.orchestrator.pool import Pool
from secondlook.orchestrator.prediction_set import PredictionSets
from secondlook.orchestrator.rules import Single
from secondlook.orchestrator.track_record import FlipLedger, Measure, TrackRecord
from secondlook.orchestrator.trust_model import Trust
from secondlook.retrieval.index import Index, IndexManifest
from secondlook.retrieval.neighbour_vote import NeighbourVote
from secondlook.retrieval.search import Searcher
from secondlook.retrieval.store import Item, MemoryStore

LABELS = ("red", "green", "blue")
SIDE = 2
DIM = SIDE * SIDE * 3


class ColourEncoder:
    """Four coarse pixels as a unit vector."""

    digest = "colours-1"
    dim = DIM
    logit_scale = 10.0

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32).reshape(-1) - 100

    def encode(self, tensors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        rows = np.stack(tensors)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise NotImplementedError


def picture(kind: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A noisy picture of one colour; of kind `stranger`, a gray one with a bright corner."""
    base = np.full((8, 8, 3), 60.0)
    if kind == "stranger":
        base[:4, :4] = 250
    else:
        base[..., LABELS.index(kind)] = 190
    return np.clip(base + rng.normal(0, 12, (1, 1, 3)) + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


@dataclass
class Scripted:
    """Says what its script says of a case."""

    name: str
    script: Callable[[Case], tuple[float, ...] | str]
    """Distribution, or the error of a failure."""
    asked: list[tuple[int, ...]] = field(default_factory=list)

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        self.asked.append(tuple(case.look for case in cases))
        return [self._answer(case) for case in cases]

    def _answer(self, case: Case) -> Outcome:
        said = self.script(case)
        if isinstance(said, str):
            return Failure(agent=self.name, look=case.look, error=said)
        return Prediction(agent=self.name, look=case.look, scale="probability", scores=said)


def by_id(case: Case) -> tuple[float, ...] | str:
    """Answer at random, but always the same for the same id, look and neighbours; fail for one id in four."""
    seen = "" if case.evidence is None else ",".join(n.id for n in case.evidence.neighbours)
    seed = int.from_bytes(hashlib.sha256(f"{case.id}|{case.look}|{seen}".encode()).digest()[:4])
    rng = np.random.default_rng(seed)
    return "out of words" if rng.random() < 0.25 else tuple(rng.dirichlet([0.4] * 3).tolist())


def colours(kinds: Sequence[str], seed: int) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    rng, encoder = np.random.default_rng(seed), ColourEncoder()
    rows = [encoder.preprocess(Image.fromarray(picture(kind, rng))) for kind in kinds]
    return encoder.encode(rows), np.array([LABELS.index(kind) for kind in kinds], dtype=np.intp)


def toy_arrays() -> Arrays:
    train, truth = colours(LABELS * 20, 1)
    held_out, _ = colours(LABELS * 40, 2)
    means = np.stack([train[truth == k].mean(axis=0) for k in range(3)])
    classifier = TextClassifier(means / np.linalg.norm(means, axis=1, keepdims=True), train[:2], 10.0)
    strangers = fit_stranger_scores(train, truth, classifier)
    head = LinearHead(3.0 * means.astype(np.float64), np.array([0.1, 0.0, -0.1]), 1.0)
    return Arrays(classifier, {"linear-head": head}, strangers, Typicality.fit(strangers.of(held_out)))


def toy_model(threshold: float | None = 0.7) -> Model:
    first = ("scripted", "linear-head")
    second = (*first, "scripted@2", "linear-head@2", "neighbour-vote@2")
    prior, measure = (1 / 3,) * 3, Measure(value=0.9, low=0.8, high=1.0, n=60)
    record = TrackRecord(
        agent="scripted", look=1, n=60, n_failed=1, accuracy=measure, ece=Measure(value=float("nan")), ece_raw=0.2,
        overconfidence=measure, correlation=measure, brier=0.1, nll=0.3, auroc=float("nan"),
        precision={label: measure for label in LABELS}, calibrator="none",
    )  # fmt: skip
    return Model(
        task=Task(labels=LABELS),
        config=Config(neighbours=5),
        encoder_digest=ColourEncoder.digest,
        prompt_sha256="0" * 64,
        splits={"train": Split(n=60, n_groups=60, digest="ab")},
        calibrators={"scripted": {1: Calibrator(), 2: Calibrator(kind="vector", scale=(1.0,) * 3, bias=(0.0,) * 3)}},
        fusions={
            # The first look listens to one agent, so that others must stand in where it fails.
            1: Single(kind="best_agent", agents=first, order=first, n=60),
            2: Pool(agents=second, prior=prior, weights=(0.3, 0.1, 0.3, 0.2, 0.4), agent_nll={"scripted": 0.4}, nll=0.3,
                    n=60),
        },
        trusts={1: Trust(intercept=-0.3), 2: Trust(intercept=0.1, coefficients=(0.8, 0.2, 0.3, 0.1), n=60, n_wrong=9)},
        gate=Gate(threshold=threshold, stranger_limit=0.04, sets=PredictionSets(limits=(0.8,))),
        second_look=True,
        ledger=FlipLedger(asked=10, fixed=3, broken=1),
        records=(record,),
        notes=("made up",),
        versions={"secondlook": "0"},
    )  # fmt: skip


def toy_searcher(store: MemoryStore | None = None) -> Searcher:
    """Search sixty labelled pictures in groups of three."""
    kinds = LABELS * 20
    rows, _ = colours(kinds, 1)
    items = [Item(id=f"i{n:02d}", label=kind, group=f"g{n // 3}", digest=f"{n}") for n, kind in enumerate(kinds)]
    store = MemoryStore() if store is None else store  # an empty store is false
    store.add(items, rows)
    manifest = IndexManifest(
        version=1, created_by="0", store="chroma-00000000", encoder_digest=ColourEncoder.digest, dim=DIM, n=60,
        labels=dict.fromkeys(LABELS, 20), groups=20, near_duplicate=0.9999,
    )  # fmt: skip
    return Searcher(Index(Path(), manifest, store), k=5)


def toy_nodes(
    script: Callable[[Case], tuple[float, ...] | str] = by_id,
    *,
    looks: int = 2,
    model: Model | None = None,
    store: MemoryStore | None = None,
    agent: Agent | None = None,
) -> Nodes:
    """Nodes whose panels are a scripted agent, a real head on real embeddings, and the real vote of neighbours."""
    model, arrays, searcher = model or toy_model(), toy_arrays(), toy_searcher(store)
    embedder = Embedder(ColourEncoder(), batch_size=4, threads=2)  # type: ignore[arg-type]
    softer = Calibrator(kind="temperature", temperature=2.0)
    speaker = agent or Scripted("scripted", script)
    head = Calibrated(ClipHead(embedder, arrays.heads["linear-head"], "linear-head"), {1: softer, 2: softer})
    vote = Calibrated(NeighbourVote(model.task), {2: softer})
    return Nodes(model, arrays, embedder, {1: (speaker, head), 2: (speaker, head, vote)}, lambda: searcher, looks)


def case_of(kind: str, name: str, rng: np.random.Generator) -> Case:
    """A case of a colour, a `stranger`, or one that is `unreadable`."""
    photo = Photo.of(b"no image") if kind == "unreadable" else Photo.of(picture(kind, rng), name=name)
    return Case(id=name, photo=photo, group=f"g{int(rng.integers(30))}")
