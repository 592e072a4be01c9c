"""What a training of an adapter came to, and the folder it is kept in: JSON and safetensors, whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from secondlook.agents.case import Frozen, MaybeNan
from secondlook.agents.clip_svd import ClipSvdSpec
from secondlook.agents.encoder import EncoderSpec
from secondlook.agents.errors import ConfigError
from secondlook.agents.maple import MapleSpec

AnyAdapter = Annotated[ClipSvdSpec | MapleSpec, Field(discriminator="kind")]
"""One way to adapt: `kind` says which."""
ABOUT, NUMBERS = "adapter.json", "adapter.safetensors"
TRAINED = "trained."
"""What the names of the trained arrays begin with."""
WORDS = ("classifier.vectors", "classifier.negatives", "classifier.logit_scale")
PROBES = ("probe.image", "probe.text")
"""What a made-up image and a text were encoded to, to be compared with when the encoder is loaded."""
MOST_BYTES = 2**20
"""Longest adapter.json read."""
Arrays = dict[str, NDArray[Any]]


class AdaptationPoint(Frozen):
    """The state of a training after an epoch; epoch 0 is before the first step."""

    epoch: int
    loss: MaybeNan
    """Mean over the epoch's images; nan before the first."""
    held_out_nll: MaybeNan
    """Nats an image at the temperature that suits the held-out images; nan where none are."""
    held_out_accuracy: MaybeNan
    n_held_out: int


class Adaptation(Frozen):
    """What a training was and what it came to; the numbers lie beside it."""

    format: Literal[1] = 1
    spec: AnyAdapter
    encoder: EncoderSpec
    encoder_digest: str
    """Of the frozen encoder in single precision."""
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    template: str
    """The prompt that the labels' words were put into."""
    seed: int
    n_numbers: int
    """How many were trained."""
    n_trained: int
    """Images."""
    curve: tuple[AdaptationPoint, ...]
    epoch: int
    """Whose numbers are kept."""
    left_out: tuple[str, ...] = ()
    """Why images could not be read."""

    @model_validator(mode="after")
    def _epoch_of_the_curve(self) -> Self:
        if not 0 <= self.epoch < len(self.curve):
            raise ValueError(f"epoch: {self.epoch} is none of the curve's {len(self.curve)}")
        return self

    @property
    def best(self) -> AdaptationPoint:
        """The epoch that is kept."""
        return self.curve[self.epoch]


def read_adaptation(folder: Path) -> Adaptation:
    """Read what a training was.

    Raises
    ------
    ConfigError
        When the folder is missing or damaged.
    """
    path = folder / ABOUT
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError("it is too long")
        return Adaptation.model_validate_json(text)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} holds no {ABOUT}.", "Give the folder that an adaptation wrote.") from error
    except (OSError, ValueError, ValidationError) as error:
        raise damaged(folder, error) from error


def read_arrays(folder: Path) -> Arrays:
    """Read the arrays beside it.

    Raises
    ------
    ConfigError
        When the file is damaged, an array that every adapter has is missing, or a number is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found: Arrays = load_file(folder / NUMBERS)
    except (OSError, SafetensorError) as error:
        raise damaged(folder, error) from error
    if missing := sorted({*WORDS, *PROBES} - set(found)):
        raise damaged(folder, f"it lacks the array {missing[0]}")
    if bad := [name for name, array in found.items() if not np.isfinite(array).all()]:
        raise damaged(folder, f"{bad[0]} is not finite")
    return found


def write_adaptation(folder: Path, about: Adaptation, arrays: Arrays) -> None:
    """Write both into a folder that exists."""
    from safetensors.numpy import save_file

    save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, folder / NUMBERS)
    (folder / ABOUT).write_text(about.model_dump_json(indent=1), encoding="utf-8")


@contextmanager
def fresh_place(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out` that takes its place when it is whole: a kill leaves no half of one.

    Raises
    ------
    ConfigError
        When there is something at `out` already, or it cannot be written.
    """
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already.", "Choose another folder.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error}.", "Choose a writable folder.") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def damaged(folder: Path, error: object) -> ConfigError:
    """Say that a folder cannot be read, and why."""
    return ConfigError(
        f"{folder} cannot be read as an adapted encoder: {' '.join(str(error).split())[:200]}.", "Adapt again."
    )
