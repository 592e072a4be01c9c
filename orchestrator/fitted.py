"""The model folder: everything `fit` learned, as JSON, safetensors and the index; never a pickle."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from secondlook.agents.calibration import Calibrator
from secondlook.agents.case import Frozen, Task, digest_of
from secondlook.agents.clip_zero_shot import TextClassifier
from secondlook.agents.errors import ConfigError
from secondlook.agents.head import Head, HeadSpec
from secondlook.agents.strangeness import ScoreName
from secondlook.agents.stranger_scores import StrangerScores, load_stranger_scores
from secondlook.agents.typicality import Typicality
from secondlook.orchestrator.binding import digest_of_arrays
from secondlook.orchestrator.candidate import Candidate
from secondlook.orchestrator.config import Config
from secondlook.orchestrator.gate import Gate
from secondlook.orchestrator.ledger import TRACK_FILE, carried
from secondlook.orchestrator.policies import AnyFusion
from secondlook.orchestrator.shared_errors import SharedErrors
from secondlook.orchestrator.shown_record import ShownRecord
from secondlook.orchestrator.stranger_choice import StrangerChoice
from secondlook.orchestrator.track_record import FlipLedger, TrackRecord
from secondlook.orchestrator.trust_model import Trust
from secondlook.orchestrator.yardstick import Yardstick

FORMAT = 4
Loaded = TypeVar("Loaded")
MODEL_FILE, ARRAYS_FILE, SEEN_FILE, INDEX_FOLDER = "model.json", "arrays.safetensors", "fitted_on.txt", "index"


class Split(Frozen):
    """The cases of a split, by number and digest."""

    n: int
    n_groups: int
    digest: str


class Model(Frozen):
    """The numbers of a fit. Arrays and index lie beside it."""

    format: int = FORMAT
    task: Task
    config: Config
    encoder_digest: str
    prompt_sha256: str
    splits: dict[str, Split]
    calibrators: dict[str, dict[int, Calibrator]]
    """By agent and look."""
    fusions: dict[int, AnyFusion]
    """By look."""
    alternatives: dict[str, AnyFusion] = Field(default_factory=dict)
    """Every policy fitted on the last look's opinions, by name: what `evaluate` compares with."""
    trusts: dict[int, Trust]
    """By look."""
    gate: Gate
    first_gate: Gate | None = None
    """Of runs that never look again; None where `gate` was chosen for one look."""
    second_look: bool
    """Whether second looks are taken: configured, and measured to help."""
    shared_errors: tuple[SharedErrors, ...] = ()
    """Of each two agents, on held-out cases."""
    ledger: FlipLedger
    records: tuple[TrackRecord, ...]
    candidates: tuple[Candidate, ...] = ()
    """Heads that were compared to choose the panel, the lowest NLL first; none where it was named."""
    shown: tuple[ShownRecord, ...] = ()
    """What a judge is shown of the agents, where there is one that is."""
    notes: tuple[str, ...] = ()
    """What fit decided, in sentences."""
    bindings: dict[str, str] = Field(default_factory=dict)
    """What each column was made of when it was measured; see `secondlook.orchestrator.binding.bind`."""
    strangers: StrangerChoice = StrangerChoice()
    """Which stranger scores typicality rests on, and why."""
    yardstick: Yardstick = Yardstick()
    versions: dict[str, str]

    def gate_for(self, looks: int) -> Gate:
        """Return the gate whose promise holds for runs of so many looks."""
        return self.first_gate if looks == 1 and self.first_gate is not None else self.gate

    @cached_property
    def digest(self) -> str:
        """Changes with anything that was learned or configured."""
        return digest_of(self)


@dataclass(frozen=True)
class Arrays:
    """The arrays of a fit."""

    classifier: TextClassifier
    heads: dict[str, Head]
    """By name, in the panel's order."""
    strangers: StrangerScores
    typicality: Typicality

    @property
    def tensors(self) -> dict[str, NDArray]:  # type: ignore[type-arg]
        """Every array by the name it is kept under."""
        return {
            "classifier.vectors": self.classifier.vectors,
            "classifier.negatives": self.classifier.negatives,
            "classifier.logit_scale": np.array(float(self.classifier.logit_scale)),
            "typicality.reference": self.typicality.reference,
            "typicality.combined": self.typicality.combined,
            **{f"strangers.{key}": array for key, array in self.strangers.tensors.items()},
        } | {f"heads.{name}.{key}": array for name, head in self.heads.items() for key, array in head.tensors.items()}

    @property
    def digest(self) -> str:
        """Changes with any of the numbers."""
        return digest_of_arrays(self.tensors)


def save_model(folder: Path, model: Model, arrays: Arrays, seen: set[str]) -> None:
    """Write a model folder's files; the index is already there.

    Parameters
    ----------
    folder : Path
        Exists.
    model : Model
    arrays : Arrays
    seen : set of str
        Digests of every image that fit used; later runs refuse to score them unnoticed.
    """
    from safetensors.numpy import save_file

    tensors = {name: np.asarray(value, order="C") for name, value in arrays.tensors.items()}
    save_file(tensors, folder / ARRAYS_FILE)
    (folder / SEEN_FILE).write_text("".join(f"{digest}\n" for digest in sorted(seen)), encoding="utf-8")
    (folder / MODEL_FILE).write_text(model.model_dump_json(indent=1), encoding="utf-8")


def load_model(folder: Path) -> tuple[Model, Arrays]:
    """Read a model folder.

    Raises
    ------
    ConfigError
        When it is missing, incomplete, or from another version.
    """
    path = folder / MODEL_FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder} is not a model folder: it holds no {MODEL_FILE}.",
            "Make one with: secondlook fit DATA --out FOLDER",
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            written = found.get("format") if isinstance(found, dict) else None
            raise ConfigError(
                f"{folder} was written in format {written}; this version reads format {FORMAT}.",
                "Run fit again with this version.",
            )
        model = Model.model_validate(found)
        return model, _load_arrays(folder / ARRAYS_FILE, model.config.panel, model.strangers.scores)
    except (ValidationError, ValueError, KeyError, OSError, RecursionError) as error:
        raise ConfigError(
            f"{folder} cannot be read as a model folder: {_first_line(error)}.", "It is damaged; run fit again."
        ) from error


def load_seen(folder: Path) -> set[str]:
    """Read the digests of the images that a model folder was fitted on.

    Raises
    ------
    ConfigError
        When the file is missing or is not text.
    """
    try:
        return set((folder / SEEN_FILE).read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / SEEN_FILE} cannot be read: {error}.", "It is damaged; run fit again.") from error


def _load_arrays(path: Path, panel: Sequence[HeadSpec], scores: Sequence[ScoreName]) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        t: dict[str, NDArray] = load_file(path)  # type: ignore[type-arg]
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from error
    classifier = TextClassifier(t["classifier.vectors"], t["classifier.negatives"], t["classifier.logit_scale"].item())
    return Arrays(
        classifier=classifier,
        heads={spec.name: _part(t, f"heads.{spec.name}.", spec.load) for spec in panel},
        strangers=_part(t, "strangers.", lambda arrays: load_stranger_scores(scores, arrays, classifier)),
        typicality=Typicality(t["typicality.reference"], t["typicality.combined"]),
    )


def _part(tensors: Mapping[str, Any], prefix: str, load: Callable[[dict[str, Any]], Loaded]) -> Loaded:
    """Load a part of its own arrays; a missing one is named in full."""
    try:
        return load({key.removeprefix(prefix): array for key, array in tensors.items() if key.startswith(prefix)})
    except KeyError as error:
        raise KeyError(f"{prefix}{error.args[0]}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def fresh_folder(final: Path) -> Iterator[Path]:
    """Write a model folder beside its final place and put it there whole, so that a kill leaves no half of one.

    One that is there already is set aside under a hidden name, and deleted only when the new one is in its place. Its
    ledger is carried over.

    Yields
    ------
    Path
        The folder to write into.

    Raises
    ------
    ConfigError
        When the place is taken by something that is not a model folder, or cannot be written.
    """
    final = final.resolve()
    empty = final.is_dir() and not any(final.iterdir())
    if final.exists() and not empty and not (final / MODEL_FILE).is_file():
        raise ConfigError(f"{final} exists and is not a model folder.", "Choose another --out.")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise ConfigError(f"{final} cannot be written: {error}.", "Choose a writable --out.") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        old = temporary.with_name(f"{temporary.name}.old")
        with carried(final / TRACK_FILE, temporary / TRACK_FILE):
            if final.exists():
                final.rename(old)
            temporary.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
