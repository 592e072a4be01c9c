"""Fine-tuning within a fit: the local models of a panel that are to learn from the train split."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from secondlook.agents.case import Task, digest_of
from secondlook.agents.encoder import Device
from secondlook.agents.lora import CurvePoint, FineTuned, fine_tune
from secondlook.agents.model_folder import digest_of_folder, folder_of
from secondlook.agents.qwen_vl import QwenSpec
from secondlook.eval.embedded import Embedded
from secondlook.eval.progress import Progress
from secondlook.orchestrator.language import ADAPTERS, Language

FILES = ("adapter_config.json", "adapter_model.safetensors", "curve.jsonl")
"""What a model folder keeps of a training."""


def fit_adapters(
    language: Language,
    task: Task,
    train: Embedded,
    folder: Path,
    states: Path,
    device: Device,
    progress: Progress,
) -> list[str]:
    """Fine-tune every local model that is configured to be.

    The state of a training lies where the next fit of the same model on the same photos with the same settings finds
    it: a fit that was stopped goes on, and one that is repeated trains nothing.

    Parameters
    ----------
    language : Language
    task : Task
    train : Embedded
        The train split; the adapters see nothing else.
    folder : Path
        The model folder; gets `adapters/NAME`.
    states : Path
        Gets a folder for each training.
    device : {"auto", "cpu", "cuda"}
    progress : Progress

    Returns
    -------
    list of str
        What each training came to, in a sentence.
    """
    notes = []
    for spec in language.agents:
        if not isinstance(spec, QwenSpec) or spec.fit is None:
            continue
        settings = spec.fit.model_copy(update=spec.asked_as)
        photos = [case.photo for case in train.cases]
        labels = [task.labels[y] for y in train.truth]
        made_of = [digest_of_folder(folder_of(spec.model)), digest_of(settings), digest_of(task), labels]
        key = json.dumps([*made_of, [photo.digest for photo in photos], list(train.groups)])
        state = states / hashlib.sha256(key.encode()).hexdigest()[:16]

        def told(point: CurvePoint, name: str = spec.name, epochs: int = settings.epochs) -> None:
            progress(f"fine-tuning {name}, held-out accuracy {point.held_out_accuracy:.3f}", point.epoch, epochs)

        found = fine_tune(
            folder_of(spec.model), photos, labels, task, state, settings, told, groups=train.groups, device=device
        )
        place = folder / ADAPTERS / spec.name
        place.mkdir(parents=True)
        for name in FILES:
            shutil.copyfile(found.folder / name, place / name)
        notes.append(_in_words(spec.name, found))
    return notes


def _in_words(name: str, found: FineTuned) -> str:
    before, best = found.curve[0], found.best
    told = (
        f"{name} was fine-tuned on {found.n_trained} photos: on {best.n_held_out} held-out ones its accuracy went from "
        f"{before.held_out_accuracy:.3f} to {best.held_out_accuracy:.3f}, its NLL from {before.held_out_nll:.3f} to "
        f"{best.held_out_nll:.3f} (epoch {best.epoch})."
    )
    return told if best.epoch else f"{name} was fine-tuned on {found.n_trained} photos, which no epoch made better."
