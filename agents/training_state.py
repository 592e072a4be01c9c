"""What a training needs to go on after a kill: weights, optimizer and curve in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from secondlook.agents.errors import ConfigError

STATE = "training.safetensors"
CURVE = "curve.jsonl"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""


class TrainingState:
    """The changing part of a training by AdamW; saved in one file, whole or not at all. Make it with `open`.

    Attributes
    ----------
    curve : list of dict
        A point for each finished epoch.
    batch : int
        Batches of the running epoch that are done.
    loss : float
        Sum over the photos of the running epoch so far.
    """

    def __init__(self, folder: Path, run: str, model: Any, learning_rate: float) -> None:
        import torch

        self.curve: list[dict[str, Any]] = []
        self.batch, self.loss = 0, 0.0
        self._folder, self._run = folder, run
        self._trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self._optimizer = torch.optim.AdamW(self._trained.values(), lr=learning_rate, weight_decay=0.0)

    @classmethod
    def open(cls, folder: Path, run: str, model: Any, learning_rate: float) -> Self:
        """Begin a training, or take up the one that the folder holds.

        Parameters
        ----------
        folder : Path
            Made where it is missing.
        run : str
            Digest of everything that decides the training.
        model : torch.nn.Module
            Its parameters that require gradients are trained, and set to what was saved.
        learning_rate : float

        Raises
        ------
        ConfigError
            When the folder cannot be written, holds another training, or its state is damaged.
        """
        state = cls(folder, run, model, learning_rate)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be made: {error}.", "Give a folder that can be written.") from error
        if (folder / STATE).is_file():
            state._load()
        return state

    def step(self, loss: float, learning_rate: float, *, save: bool) -> None:
        """Move the parameters against their gradients, and count a batch of this loss."""
        import torch

        torch.nn.utils.clip_grad_norm_(self._trained.values(), 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.loss += loss
        self.batch += 1
        if save:
            self._save()

    def end_epoch(self, point: dict[str, Any]) -> None:
        """Add a point to the curve, and save."""
        self.curve.append(point)
        self.batch, self.loss = 0, 0.0
        self._save()
        self._write_curve()

    def _write_curve(self) -> None:
        new = self._folder / f"{CURVE}.new"
        new.write_text("".join(json.dumps(point) + "\n" for point in self.curve), encoding="utf-8")
        new.replace(self._folder / CURVE)

    def _save(self) -> None:
        from safetensors.torch import save_file

        tensors = {f"weight {name}": each.detach() for name, each in self._trained.items()}
        kept = self._optimizer.state_dict()["state"]
        for number, name in enumerate(self._trained):
            tensors |= {f"{moment} {name}": kept[number][moment] for moment in MOMENTS if number in kept}
        about = {"run": self._run, "curve": self.curve, "batch": self.batch, "loss": self.loss}
        new = self._folder / f"{STATE}.new"
        save_file({name: each.contiguous().cpu() for name, each in tensors.items()}, new, {"state": json.dumps(about)})
        new.replace(self._folder / STATE)

    def _load(self) -> None:
        from safetensors import SafetensorError, safe_open

        path = self._folder / STATE
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.curve, self.batch, self.loss = about["curve"], about["batch"], about["loss"]
            if about["run"] != self._run:
                raise ConfigError(f"{self._folder} holds another training.", "Give an empty folder, or remove it.")
            self._set(tensors)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise ConfigError(
                f"The state in {path} is damaged: {error}", "Remove the folder and begin anew."
            ) from error
        self._write_curve()

    def _set(self, tensors: dict[str, Any]) -> None:
        import torch

        with torch.no_grad():
            for name, each in self._trained.items():
                each.copy_(tensors[f"weight {name}"])
        whole = self._optimizer.state_dict()
        whole["state"] = {
            number: {moment: tensors[f"{moment} {name}"] for moment in MOMENTS}
            for number, name in enumerate(self._trained)
            if f"step {name}" in tensors
        }
        self._optimizer.load_state_dict(whole)
