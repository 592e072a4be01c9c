"""Images and texts to unit vectors, by any OpenCLIP model; owns the checkpoint's logit scale."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.case import Frozen
from secondlook.agents.errors import ConfigError
from secondlook.agents.long_text import KEPT, LONGEST
from secondlook.agents.towers import Towers as Towers
from secondlook.agents.towers import load_towers

if TYPE_CHECKING:
    import torch
    from PIL import Image

Device = Literal["auto", "cpu", "cuda"]
EMBEDDED = "leaf-tiny"
HUB = "hf-hub:"
HASHED = {".json", ".safetensors", ".bin", ".pt", ".pth"}
"""Endings of the files of a folder that its digest is taken of."""


def embedded_folder() -> Path:
    """Folder of the OpenCLIP model that the package ships."""
    return Path(str(files("secondlook") / "assets" / EMBEDDED))


class EncoderSpec(Frozen):
    """Which encoder, by name: enough to load it again."""

    model: str = EMBEDDED
    """`leaf-tiny`, an OpenCLIP model name, a folder with open_clip_config.json and its weights, or `hf-hub:ORG/NAME`
    for such a folder on the hub."""
    pretrained: str | None = None
    """For a model name: a tag OpenCLIP knows, or a checkpoint file (see `secondlook.agents.checkpoint`); with one of
    a model that learnt with QuickGELU, a name that ends in -quickgelu. `random`: seeded random weights, for timing."""
    text_length: Annotated[int, Field(gt=KEPT, le=LONGEST)] | None = None
    """Tokens of a text, where the text tower is to be stretched as Long-CLIP's (248 for one of 77)."""

    @property
    def folder(self) -> Path | None:
        """The local folder the model is loaded from, if it is."""
        if self.model == EMBEDDED:
            return embedded_folder()
        path = Path(self.model.removeprefix("local-dir:"))
        return path if self.model.startswith("local-dir:") or path.is_dir() else None


class Encoder(Protocol):
    """What the agents need of an encoder."""

    @property
    def digest(self) -> str:
        """Changes whenever the same image could get another vector."""
        ...

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        ...

    @property
    def logit_scale(self) -> float:
        """The factor on cosines before the softmax, as the checkpoint has it."""
        ...

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Return the model's input for one RGB image; thread-safe."""
        ...

    def encode(self, tensors: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """Encode preprocessed images to unit vectors of shape (N, D)."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts to unit vectors of shape (N, D)."""
        ...


class OpenClipEncoder:
    """An OpenCLIP model; loaded when first needed, so that a warm cache never loads it.

    Parameters
    ----------
    spec : EncoderSpec
        Which model and weights.
    device : {"auto", "cpu", "cuda"}
        `auto` takes the GPU where there is one. On a GPU the model runs in bfloat16.

    Raises
    ------
    ConfigError
        When the model, its weights or the device cannot be had.
    """

    def __init__(self, spec: EncoderSpec | None = None, device: Device = "auto") -> None:
        self.spec = spec or EncoderSpec()
        self._device = device
        self._lock = threading.Lock()
        self._loaded_once: Towers | None = None

    @property
    def _loaded(self) -> Towers:
        with self._lock:  # decoding threads ask for the preprocessing at the same time
            if self._loaded_once is None:
                self._loaded_once = self._load()
            return self._loaded_once

    def _load(self) -> Towers:
        from pickle import UnpicklingError  # raised for a damaged .pt, though only its tensors are read

        import torch
        from safetensors import SafetensorError

        if self._device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("No CUDA device is available.", "Use --device cpu, or --device auto.")
        cuda = self._device == "cuda" or (self._device == "auto" and torch.cuda.is_available())
        name = self._source()
        damage = (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, UnpicklingError, SafetensorError)
        try:
            return load_towers(name, self.spec.pretrained, self.spec.folder, self.spec.text_length, cuda=cuda)
        except damage as error:
            raise ConfigError(
                f"The encoder {self.spec.model!r} (weights: {self.spec.pretrained or 'its own'}) cannot be loaded: "
                f"{' '.join(str(error).split())}",
                "Give an OpenCLIP name with --pretrained TAG or FILE, or an undamaged folder as OpenCLIP saves it; "
                "secondlook doctor --backbones lists the names.",
            ) from error

    def _source(self) -> str:
        """Return OpenCLIP's name for the model, where it has weights."""
        folder, hub = self.spec.folder, self.spec.model.startswith(HUB)
        if hub and self.spec.pretrained is not None:
            raise ConfigError(f"{self.spec.model} brings its own weights.", "Leave --pretrained out.")
        if folder is None and not hub and self.spec.pretrained is None:
            raise ConfigError(
                f"The encoder {self.spec.model!r} has no weights: it is not a folder and no --pretrained is given.",
                "Add --pretrained TAG or FILE (or `random`, for timing only).",
            )
        if folder is not None and not (folder / "open_clip_config.json").is_file():
            raise ConfigError(
                f"{folder} holds no open_clip_config.json.",
                "Give a folder as OpenCLIP saves it, or the name of an OpenCLIP model.",
            )
        return self.spec.model if folder is None else f"local-dir:{folder}"

    @property
    def towers(self) -> Towers:
        """The model, its tokenizer, and where and in which arithmetic it runs; loaded when first asked for."""
        return self._loaded

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of SHA-256 over name, configuration and weights, and the arithmetic they run in.

        Of a published tag and of a hub id the name stands for the weights.
        """
        sha = hashlib.sha256(b"preprocess 1;")
        folder, weights = self.spec.folder, self.spec.pretrained
        self._source()
        if folder is not None:
            for path in sorted(p for p in folder.iterdir() if p.suffix in HASHED):
                sha.update(path.name.encode() + _file_digest(path))
        elif weights is not None and Path(weights).is_file():
            sha.update(self.spec.model.encode() + _file_digest(Path(weights)))
        else:
            # A published tag stands for its weights; hashing the tensors would need them loaded on every start.
            sha.update(f"{self.spec.model};{weights}".encode())
        if self.spec.text_length is not None:
            sha.update(f";text_length={self.spec.text_length}".encode())
        return sha.hexdigest()[:16] + ("" if self._dtype_name == "float32" else f"-{self._dtype_name}")

    @cached_property
    def _dtype_name(self) -> str:
        if self._device == "cpu" or not _may_have_cuda():
            return "float32"
        import torch

        return "bfloat16" if torch.cuda.is_available() else "float32"

    @property
    def on_gpu(self) -> bool:
        """Whether it computes elsewhere than on the cores that decode images."""
        return self._dtype_name == "bfloat16"

    @cached_property
    def dim(self) -> int:
        """D, the length of a vector."""
        return int(self.encode_texts(["a"]).shape[1])

    @cached_property
    def logit_scale(self) -> float:
        """The factor on cosines before the softmax, as the checkpoint has it."""
        return float(self._loaded.model.logit_scale.exp())

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Resize and crop one RGB image as the checkpoint's own preprocessing does; `encode` does the rest of it.

        Arithmetic on tensors is left to the batch: in many decoding threads, each with helpers of its own, it would
        take the cores from one another.

        Returns
        -------
        Tensor of uint8 of shape (3, H, W)
        """
        import torch

        for step in self._loaded.crop:
            image = step(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def encode(self, tensors: Sequence[torch.Tensor]) -> NDArray[np.float32]:
        """Encode preprocessed images.

        Returns
        -------
        ndarray of shape (N, D)
            Unit vectors.
        """
        import torch

        loaded, batch = self._loaded, torch.stack(list(tensors))
        if loaded.device.type == "cuda":
            batch = batch.pin_memory()
        with torch.inference_mode():
            # Between 0 and 1 first, as ToTensor does, then the checkpoint's mean and deviation.
            inputs = batch.to(loaded.device, non_blocking=True).float().div(255)
            for step in loaded.normalise:
                inputs = step(inputs)
            vectors = loaded.model.encode_image(inputs.to(loaded.dtype), normalize=True)
        return _unit(vectors.float().cpu().numpy())

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts.

        Returns
        -------
        ndarray of shape (N, D)
            Unit vectors.
        """
        import torch

        loaded = self._loaded
        tokens = loaded.tokenizer(list(texts))
        with torch.inference_mode():
            vectors = loaded.model.encode_text(tokens.to(loaded.device), normalize=True)
        return _unit(vectors.float().cpu().numpy())


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.maximum(norm, 1e-12)
    return unit


def _may_have_cuda() -> bool:
    """Look for a driver: where there is none, a run with a warm cache need not import torch to find that out."""
    return sys.platform != "linux" or Path("/proc/driver/nvidia/version").exists()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
