"""Adapts the encoder to the train split, as configured."""

from __future__ import annotations

from pathlib import Path

from secondlook.agents.adaptation import Adaptation, AdaptationPoint
from secondlook.agents.adapter_training import adapt
from secondlook.agents.case import Task
from secondlook.agents.encoder import Device
from secondlook.eval.embedded import Embedded
from secondlook.eval.progress import Progress
from secondlook.orchestrator.adapted import ENCODERS
from secondlook.orchestrator.config import Config


def fit_encoders(
    config: Config,
    task: Task,
    train: Embedded,
    templates: tuple[str, ...],
    folder: Path,
    device: Device,
    progress: Progress,
) -> list[str]:
    """Train every adapter.

    Parameters
    ----------
    config : Config
    task : Task
    train : Embedded
        The train split; the adapters see nothing else.
    templates : tuple of str
    folder : Path
        The model folder; gets `encoders/NAME`.
    device : {"auto", "cpu", "cuda"}
    progress : Progress

    Returns
    -------
    list of str
        What each training came to, in a sentence.
    """
    photos, notes = [case.photo for case in train.cases], []
    for spec in config.adapters:

        def told(point: AdaptationPoint, name: str = spec.name, epochs: int = spec.epochs) -> None:
            progress(f"adapting {name}, held-out accuracy {point.held_out_accuracy:.3f}", point.epoch, epochs)

        place = folder / ENCODERS / spec.name
        found = adapt(
            spec, config.encoder, photos, train.truth, train.groups, task, templates, place,
            seed=config.seed, device=device, progress=told,
        )  # fmt: skip
        notes.append(_in_words(spec.name, found))
    return notes


def _in_words(name: str, found: Adaptation) -> str:
    before, best = found.curve[0], found.best
    told = f"{name} adapted the encoder with {found.n_numbers:,} numbers on {found.n_trained} photos"
    if not best.n_held_out:
        return f"{told}; nothing could be held out."
    if not best.epoch:
        return f"{told}, which no epoch made better."
    return (
        f"{told}: on {best.n_held_out} held-out ones its accuracy went from {before.held_out_accuracy:.3f} to "
        f"{best.held_out_accuracy:.3f}, its NLL from {before.held_out_nll:.3f} to {best.held_out_nll:.3f}."
    )
