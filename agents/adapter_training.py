"""The training of an adapter: cross-entropy over the scaled cosines of images and the texts of all labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.adaptation import (
    TRAINED,
    Adaptation,
    AdaptationPoint,
    AnyAdapter,
    Arrays,
    fresh_place,
    write_adaptation,
)
from secondlook.agents.adapted_encoder import probe
from secondlook.agents.adapter import AdapterSpec
from secondlook.agents.case import Task
from secondlook.agents.encoder import Device, EncoderSpec, OpenClipEncoder, Towers
from secondlook.agents.errors import ConfigError, ImageError
from secondlook.agents.folds import grouped_folds
from secondlook.agents.photo import Photo
from secondlook.agents.random_crops import random_crops
from secondlook.agents.temperature import fit_temperature

if TYPE_CHECKING:
    import torch

MOST_BYTES = 8 * 2**30
"""Of pixels kept in memory during a training."""
AT_ONCE = 64
"""Held-out images encoded together."""
WARM_UP_RATE = 1e-5
Told = Callable[[AdaptationPoint], None]
NAN = math.nan


def adapt(
    spec: AnyAdapter,
    encoder: EncoderSpec,
    photos: Sequence[Photo],
    truth: NDArray[np.intp],
    groups: Sequence[str],
    task: Task,
    templates: Sequence[str],
    out: Path,
    *,
    seed: int = 0,
    device: Device = "auto",
    progress: Told | None = None,
) -> Adaptation:
    """Train an adapter.

    One fold of the groups is held out where every label has two of them: the numbers kept are those of the epoch that
    judges it best at the temperature that suits it, epoch 0 included. Where nothing can be held out, they are the last.

    Parameters
    ----------
    spec : ClipSvdSpec or MapleSpec
    encoder : EncoderSpec
        What is adapted; stays as it is.
    photos : sequence of Photo
        N photos; those that cannot be read are left out and named in the result.
    truth : ndarray of shape (N,)
        Label indices.
    groups : sequence of str
        N names; no group is on both sides of the hold-out.
    task : Task
    templates : sequence of str
        Prompts with {} once; the first is used where the spec names none.
    out : Path
        A folder that does not exist, or is empty; gets adapter.json and adapter.safetensors, both or nothing.
    seed : int
        Of the hold-out, the order, the crops and the numbers that are drawn.
    device : {"auto", "cpu", "cuda"}
    progress : callable, optional
        Told each point of the curve.

    Raises
    ------
    ConfigError
        When the encoder cannot be loaded or adapted, a label has no image, or `out` is taken.
    """
    import torch

    if not len(photos) == len(truth) == len(groups):
        raise ValueError(f"photos, truth, groups: expected N each, got {len(photos)}, {len(truth)}, {len(groups)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("No CUDA device is available.", "Use --device cpu, or --device auto.")
    template = spec.template or templates[0]
    with fresh_place(out) as folder:
        frozen = OpenClipEncoder(encoder, "cpu")
        images, kept, left_out = _images(photos, frozen)
        truth, groups = np.asarray(truth)[kept], [groups[i] for i in kept]
        _check_labels(spec, truth, task)
        folds = grouped_folds(truth, groups, np.random.default_rng(seed), spec.folds)
        if folds is None:
            folds = np.ones(len(truth), dtype=np.intp)
        where = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        training = _Training(spec, frozen.towers, images, truth, task, template, seed, where)
        curve, best = training.run(np.flatnonzero(folds != 0), np.flatnonzero(folds == 0), progress or _nobody)
        found = Adaptation(
            spec=spec,
            encoder=encoder,
            encoder_digest=frozen.digest,
            labels=task.labels,
            template=template,
            seed=seed,
            n_numbers=training.n_numbers,
            n_trained=int((folds != 0).sum()),
            curve=tuple(curve),
            epoch=best,
            left_out=left_out,
        )
        write_adaptation(folder, found, training.arrays(task))
    return found


class _Training:
    """The loop, and all that stays the same in it."""

    def __init__(
        self,
        spec: AnyAdapter,
        towers: Towers,
        images: torch.Tensor,
        truth: NDArray[np.intp],
        task: Task,
        template: str,
        seed: int,
        device: torch.device,
    ) -> None:
        import torch

        self._spec, self._template, self._seed = spec, template, seed
        self._adapter = spec.install(towers, template, seed)
        self._model = towers.model.to(device)
        self._towers = towers._replace(model=self._model, device=device)
        for parameter in self._adapter.trained.values():
            parameter.requires_grad_(True)
        self._images, self._truth = images, torch.from_numpy(truth)
        phrases = [task.phrases_of(label) for label in task.labels]
        texts = [template.replace("{}", phrase) for of_label in phrases for phrase in of_label]
        self._tokens = towers.tokenizer(texts).to(device)
        rows = [
            [(1 / len(own)) if own is of_label else 0.0 for of_label in phrases for _ in of_label] for own in phrases
        ]
        self._mean = torch.tensor(rows, device=device)
        self._scale = float(self._model.logit_scale.detach().exp())

    @property
    def n_numbers(self) -> int:
        return sum(each.numel() for each in self._adapter.trained.values())

    def run(self, train: NDArray[np.intp], held_out: NDArray[np.intp], told: Told) -> tuple[list[AdaptationPoint], int]:
        """Train; leave the numbers of the epoch that is kept in the model, and return it beside the curve."""
        optimizer = self._spec.optimizer(self._adapter.trained.values())
        curve = [self._point(0, NAN, held_out)]
        best, kept = 0, self._numbers()
        told(curve[0])
        for epoch in range(1, self._spec.epochs + 1):
            loss = self._epoch(epoch, train, optimizer)
            if not math.isfinite(loss):
                raise ConfigError(
                    f"The training of {self._spec.name} ran away in epoch {epoch}.", "Choose a lower learning_rate."
                )
            curve.append(self._point(epoch, loss, held_out))
            if not len(held_out) or curve[-1].held_out_nll < curve[best].held_out_nll:
                best, kept = epoch, self._numbers()
            told(curve[-1])
        self._put(kept)
        return curve, best

    def arrays(self, task: Task) -> Arrays:
        """Return everything that is kept."""
        import torch

        image, text = probe(self._towers, [self._template.replace("{}", task.labels[0])])
        words = [self._template.replace("{}", phrase) for phrase in task.negatives]
        negatives = probe(self._towers, words)[1] if words else np.zeros((0, image.shape[1]), np.float32)
        with torch.no_grad():
            vectors = self._words().cpu().numpy()
        about = {
            "classifier.vectors": vectors,
            "classifier.negatives": negatives,
            "classifier.logit_scale": np.array(self._scale, dtype=np.float32),
            "probe.image": image[0],
            "probe.text": text[0],
        }
        return about | {f"{TRAINED}{name}": each.cpu().numpy() for name, each in self._numbers().items()}

    def _numbers(self) -> dict[str, torch.Tensor]:
        return {name: each.detach().clone() for name, each in self._adapter.trained.items()}

    def _put(self, numbers: dict[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, each in self._adapter.trained.items():
                each.copy_(numbers[name])

    def _epoch(self, epoch: int, train: NDArray[np.intp], optimizer: torch.optim.Optimizer) -> float:
        """Pass over the images once; return their mean loss."""
        import torch

        order = np.random.default_rng([self._seed, epoch]).permutation(train)
        crops = torch.Generator().manual_seed(int(np.random.default_rng([self._seed, epoch, 1]).integers(2**63)))
        parts = [order[start : start + self._spec.batch_size] for start in range(0, len(order), self._spec.batch_size)]
        total = 0.0
        for number, rows in enumerate(parts):
            for group in optimizer.param_groups:
                group["lr"] = _rate(self._spec, epoch, number / len(parts))
            logits = self._logits(rows, crops)
            truth = self._truth[rows].to(logits.device)
            loss = torch.nn.functional.cross_entropy(logits, truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        return total / len(train)

    def _point(self, epoch: int, loss: float, held_out: NDArray[np.intp]) -> AdaptationPoint:
        import torch

        nll = accuracy = NAN
        if len(held_out):
            with torch.no_grad():
                words = self._words()
                parts = [
                    self._logits(held_out[start : start + AT_ONCE], None, words)
                    for start in range(0, len(held_out), AT_ONCE)
                ]
            logits, truth = torch.cat(parts).double().cpu().numpy(), self._truth[held_out].numpy()
            log_p = torch.from_numpy(logits / fit_temperature(logits, truth)).log_softmax(dim=1).numpy()
            nll = float(-log_p[np.arange(len(truth)), truth].mean())
            accuracy = float((logits.argmax(axis=1) == truth).mean())
        return AdaptationPoint(
            epoch=epoch, loss=loss, held_out_nll=nll, held_out_accuracy=accuracy, n_held_out=len(held_out)
        )

    def _logits(
        self, rows: NDArray[np.intp], crops: torch.Generator | None, words: torch.Tensor | None = None
    ) -> torch.Tensor:
        images = self._images[rows].to(self._towers.device).float() / 255
        if crops is not None and self._spec.smallest_crop < 1:
            images = random_crops(images, self._spec.smallest_crop, crops)
        for step in self._towers.normalise:
            images = step(images)
        vectors = self._model.encode_image(images, normalize=True)
        logits: torch.Tensor = self._scale * vectors @ (self._words() if words is None else words).T
        return logits

    def _words(self) -> torch.Tensor:
        """Return a unit vector for each label: along the mean of its phrases' own, as in zero-shot classification."""
        import torch

        each = self._model.encode_text(self._tokens, normalize=True)
        return torch.nn.functional.normalize(self._mean @ each, dim=1)


def _rate(spec: AdapterSpec, epoch: int, share: float) -> float:
    """Learning rate when a share of an epoch, the first of which is 1, is done."""
    if epoch <= spec.warm_up:
        return min(WARM_UP_RATE, spec.learning_rate)
    done = (epoch - 1 - spec.warm_up + share) / (spec.epochs - spec.warm_up)
    return spec.learning_rate * (1 + math.cos(math.pi * done)) / 2


def _images(photos: Sequence[Photo], encoder: OpenClipEncoder) -> tuple[torch.Tensor, list[int], tuple[str, ...]]:
    """Decode and preprocess.

    Returns
    -------
    images : uint8 Tensor of shape (n, 3, H, W)
    kept : list of int
        Which of the photos they are.
    left_out : tuple of str
        Why the others are not among them.
    """
    import torch

    images: list[torch.Tensor] = []
    kept, left_out = [], []
    for i, photo in enumerate(photos):
        try:
            photo.shrink()
            images.append(encoder.preprocess(photo.view("whole")))
            kept.append(i)
        except ImageError as error:
            left_out.append(str(error))
        photo.release()
        if images and len(images) * images[0].numel() > MOST_BYTES:
            raise ConfigError(
                f"{len(photos)} photos do not fit into {MOST_BYTES // 2**30} GiB of memory for a training.",
                "Adapt with fewer photos of each label.",
            )
    return torch.stack(images) if images else torch.zeros(0), kept, tuple(left_out)


def _check_labels(spec: AdapterSpec, truth: NDArray[np.intp], task: Task) -> None:
    for number, label in enumerate(task.labels):
        if not (truth == number).any():
            raise ConfigError(
                f"{spec.name} needs a training image of each label, and {label!r} has none that can be read.",
                "Add images of it, or leave the label out.",
            )


def _nobody(point: AdaptationPoint) -> None:
    """Tell nobody."""
