"""Fine-tuning of a local vision-language model on labelled photos: a LoRA adapter, by the scores it is used for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.case import Case, Frozen, MaybeNan, Task, digest_of
from secondlook.agents.encoder import Device
from secondlook.agents.errors import ConfigError, ImageError
from secondlook.agents.folds import grouped_folds
from secondlook.agents.label_likelihoods import Normalise, label_scores, replies_of
from secondlook.agents.model_folder import digest_of_folder
from secondlook.agents.photo import Photo
from secondlook.agents.pictures import shrunk
from secondlook.agents.qwen_model import BASE, Asked, QwenModel, load_model, require_peft
from secondlook.agents.training_state import TrainingState
from secondlook.agents.vlm_question import VlmQuestion, Wording

if TYPE_CHECKING:
    import torch

ATTENTION = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)"
"""The modules that are adapted: projections of attention in the language model; the eye stays as it is."""
NAME = "default"
WARM_UP = 0.05
"""Share of the steps in which the learning rate rises to its height; after it, half a cosine down to nothing."""


class LoraSettings(Frozen):
    """How an adapter is trained."""

    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[int, Field(gt=0)] = 16
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    epochs: Annotated[int, Field(ge=1)] = 3
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Photos a step."""
    at_once: Annotated[int, Field(ge=1)] = 4
    """Photos in memory together; the gradients of a step are summed."""
    folds: Annotated[int, Field(ge=2)] = 5
    """One of so many parts of the groups is held out, for the curve and the choice of the epoch."""
    loss: Literal["likelihood", "reply"] = "likelihood"
    """``likelihood`` sets the label against the others; ``reply`` only makes its own tokens likelier."""
    normalise: Normalise = "length"
    max_pixels: Annotated[int, Field(ge=784)] = 262_144
    wording: Wording = Wording()
    four_bit: bool = False
    save_every: Annotated[int, Field(ge=1)] = 50
    """Steps after which the state is saved, besides every epoch's end."""
    seed: int = 0


class CurvePoint(Frozen):
    """The state of a training after an epoch; epoch 0 is the model as it was."""

    epoch: int
    step: int
    loss: MaybeNan
    """Mean over the epoch's photos; nan before the first."""
    held_out_nll: float
    """Nats a photo, by the softmax of the scores."""
    held_out_accuracy: float
    n_held_out: int


class FineTuned(NamedTuple):
    """What a training came to."""

    folder: Path
    """Where the best adapter is, as peft saves it."""
    curve: tuple[CurvePoint, ...]
    best: CurvePoint
    """Of the lowest held-out NLL, the first where several tie; this one's adapter is kept."""
    n_trained: int
    left_out: tuple[str, ...]
    """Why photos were left out: those that cannot be read."""


def fine_tune(
    folder: Path,
    photos: Sequence[Photo],
    labels: Sequence[str],
    task: Task,
    out: Path,
    settings: LoraSettings | None = None,
    progress: Callable[[CurvePoint], None] | None = None,
    *,
    groups: Sequence[str] | None = None,
    device: Device = "auto",
) -> FineTuned:
    """Train an adapter; called again after a kill, go on from the last state that was saved.

    The question is that of a first look. On a CPU, the curve of a training that was killed and resumed is the one that
    it would have had.

    Parameters
    ----------
    folder : Path
        The model.
    photos : sequence of Photo
        N photos.
    labels : sequence of str
        Their N labels, of the task.
    task : Task
    out : Path
        Gets adapter_config.json and adapter_model.safetensors (of the best epoch), curve.jsonl (a `CurvePoint` a line)
        and the state of the training.
    settings : LoraSettings, optional
    progress : callable, optional
        Told each point of the curve.
    groups : sequence of str, optional
        N names of what must not be on both sides of the hold-out; each photo its own by default.
    device : {"auto", "cpu", "cuda"}

    Raises
    ------
    ConfigError
        When the model cannot be loaded or has nothing to adapt, a label is none of the task, too few photos are left to
        hold any out, or `out` holds another training.
    """
    settings = settings or LoraSettings()
    kept, left_out = _readable(photos)
    truth = _truth([labels[i] for i in kept], task)
    names = [groups[i] if groups is not None else str(i) for i in kept]
    photos = [photos[i] for i in kept]
    folds = grouped_folds(truth, names, np.random.default_rng(settings.seed), settings.folds)
    if folds is None:
        raise ConfigError("A label has only one group: nothing can be held out.", "Give photos of two groups a label.")
    qwen = load_model(folder, device, settings.four_bit)
    _add_adapter(qwen.model, settings)
    training = _Training(qwen, photos, truth, task, settings)
    run = _run_digest(folder, photos, truth, names, task, settings)
    state = TrainingState.open(out, run, qwen.model, settings.learning_rate)
    with qwen.using():
        curve = training.run(np.flatnonzero(folds != 0), np.flatnonzero(folds == 0), state, out, progress)
    return FineTuned(out, curve, _best(curve), int((folds != 0).sum()), left_out)


class _Training:
    """The loop, and all that stays the same in it."""

    def __init__(
        self, qwen: QwenModel, photos: Sequence[Photo], truth: NDArray[np.intp], task: Task, settings: LoraSettings
    ) -> None:
        self._qwen, self._photos, self._truth, self._settings = qwen, photos, truth, settings
        self._replies = replies_of(task.labels, qwen.processor.tokenizer)
        question = VlmQuestion(task, "", settings.wording)
        self._text = question.text(Case(id="", photo=Photo.of(b"")))

    def run(
        self,
        train: NDArray[np.intp],
        held_out: NDArray[np.intp],
        state: TrainingState,
        out: Path,
        progress: Callable[[CurvePoint], None] | None,
    ) -> tuple[CurvePoint, ...]:
        steps = math.ceil(len(train) / self._settings.batch_size)
        curve = [CurvePoint.model_validate(point) for point in state.curve]
        while len(curve) <= self._settings.epochs:
            epoch = len(curve)
            if epoch:
                self._epoch(epoch, train, steps, state)
            curve.append(self._point(epoch, epoch * steps, state.loss / len(train) if epoch else math.nan, held_out))
            if _best(curve) is curve[-1]:
                save_adapter(self._qwen, out)
            state.end_epoch(json.loads(curve[-1].model_dump_json()))
            if progress is not None:
                progress(curve[-1])
        return tuple(curve)

    def _epoch(self, epoch: int, train: NDArray[np.intp], steps: int, state: TrainingState) -> None:
        # The order follows from the seed and the epoch: a training that is resumed sees the same batches.
        order = np.random.default_rng([self._settings.seed, epoch]).permutation(train)
        for number in range(state.batch, steps):
            rows = order[number * self._settings.batch_size :][: self._settings.batch_size]
            rate = self._settings.learning_rate * _height(
                ((epoch - 1) * steps + number) / (steps * self._settings.epochs)
            )
            state.step(self._gradients(rows), rate, save=(number + 1) % self._settings.save_every == 0)

    def _gradients(self, rows: NDArray[np.intp]) -> float:
        """Add up the gradients of a batch's mean loss; return its sum."""
        total = 0.0
        for start in range(0, len(rows), self._settings.at_once):
            loss = self._loss(rows[start : start + self._settings.at_once])
            (loss / len(rows)).backward()
            total += float(loss.detach())
        return total

    def _loss(self, rows: NDArray[np.intp]) -> torch.Tensor:
        """Loss summed over photos: of the softmax over labels, or of the own label's score alone."""
        import torch

        scores = self._scores(rows)
        truth = torch.as_tensor(self._truth[rows], device=scores.device)
        if self._settings.loss == "reply":
            return -scores.gather(1, truth[:, None]).sum()
        return torch.nn.functional.cross_entropy(scores, truth, reduction="sum")

    def _scores(self, rows: NDArray[np.intp]) -> torch.Tensor:
        asked = []
        for photo in (self._photos[i] for i in rows):
            asked.append(Asked(self._text, (shrunk(photo, self._settings.max_pixels),)))
            photo.release()
        return label_scores(self._qwen, self._qwen.inputs(asked), self._replies, self._settings.normalise)

    def _point(self, epoch: int, step: int, loss: float, held_out: NDArray[np.intp]) -> CurvePoint:
        import torch

        size = self._settings.at_once
        with torch.no_grad():
            parts = [self._scores(held_out[start : start + size]) for start in range(0, len(held_out), size)]
        log_p = torch.cat(parts).double().log_softmax(dim=1).cpu().numpy()
        truth = self._truth[held_out]
        return CurvePoint(
            epoch=epoch,
            step=step,
            loss=loss,
            held_out_nll=float(-log_p[np.arange(len(truth)), truth].mean()),
            held_out_accuracy=float((log_p.argmax(axis=1) == truth).mean()),
            n_held_out=len(truth),
        )


def save_adapter(qwen: QwenModel, out: Path) -> None:
    """Write the adapter as peft does, its weights whole or not at all; they name the model they are for."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    # Embeddings are not trained; asked to find that out itself, peft would look for the model on the hub.
    state = get_peft_model_state_dict(qwen.model, adapter_name=NAME, save_embedding_layers=False)
    whole = {f"base_model.model.{name}": value.detach().contiguous().cpu() for name, value in state.items()}
    new = out / "adapter_model.new"
    save_file(whole, new, {"format": "pt", BASE: qwen.digest})
    config = qwen.model.peft_config[NAME]
    config.inference_mode = True
    config.save_pretrained(str(out))
    new.replace(out / "adapter_model.safetensors")


def _add_adapter(model: Any, settings: LoraSettings) -> None:
    require_peft()
    import torch
    from peft import LoraConfig

    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=ATTENTION, lora_dropout=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        try:
            model.add_adapter(config, NAME)
        except ValueError as error:
            raise ConfigError(f"The model has nothing to adapt: {error}", "Give a Qwen model.") from error
    model.peft_config[NAME].base_model_name_or_path = None  # a path of this machine is of no use elsewhere
    for parameter in model.parameters():
        if parameter.requires_grad:  # small steps would be lost in bfloat16
            parameter.data = parameter.data.float()


def _readable(photos: Sequence[Photo]) -> tuple[list[int], tuple[str, ...]]:
    kept, errors = [], []
    for i, photo in enumerate(photos):
        try:
            photo.shrink()
            kept.append(i)
        except ImageError as error:
            errors.append(str(error))
        photo.release()
    return kept, tuple(errors)


def _truth(labels: Sequence[str], task: Task) -> NDArray[np.intp]:
    if unknown := sorted(set(labels) - set(task.labels)):
        raise ConfigError(f"Labels that are none of the task's: {unknown}.", f"The labels are {list(task.labels)}.")
    return np.array([task.labels.index(label) for label in labels], dtype=np.intp)


def _run_digest(
    folder: Path,
    photos: Sequence[Photo],
    truth: NDArray[np.intp],
    groups: Sequence[str],
    task: Task,
    settings: LoraSettings,
) -> str:
    rows = [[photo.digest, int(y), group] for photo, y, group in zip(photos, truth, groups, strict=True)]
    whole = [digest_of_folder(folder), digest_of(task), digest_of(settings), rows]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:16]


def _best(curve: Sequence[CurvePoint]) -> CurvePoint:
    return min(curve, key=lambda point: point.held_out_nll)


def _height(done: float) -> float:
    """Learning rate, as a share of its height, when a share of all steps is done."""
    return min(1.0, (done + 1e-3) / WARM_UP) * (1 + math.cos(math.pi * done)) / 2
