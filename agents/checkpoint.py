"""Weights of a CLIP model from a file: read as tensors alone, and put in only where every name and shape fits."""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from secondlook.agents.errors import ConfigError
from secondlook.agents.long_text import LONGEST, joined
from secondlook.agents.torchscript import is_torchscript, read_torchscript

if TYPE_CHECKING:
    import torch

PREFIXES = ("module.", "_orig_mod.", "model.", "clip.")
"""What wrappers of training code put before every name: for several GPUs, for compiling, for an outer model."""
STATES = ("state_dict", "model_state_dict", "model")
"""Where a training checkpoint keeps the weights, beside its epoch and its optimiser's state."""
SIZES = ("input_resolution", "context_length", "vocab_size")
"""Three sizes that OpenAI's files hold as tensors."""
PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
CONVERT = "Where you trust the file, save its tensors alone: safetensors.torch.save_file(state_dict, FILE)."
UNFIT = "Name the architecture that these weights are of, or give an undamaged folder as OpenCLIP saves it."


class Checkpoint(NamedTuple):
    """What a file of weights holds."""

    path: Path
    tensors: dict[str, torch.Tensor]
    """By name, without the prefixes of training code."""
    quick_gelu: bool
    """Whether the file can only be of a model with OpenAI's QuickGELU activations."""

    @property
    def text_length(self) -> int | None:
        """Tokens of a text that its position embeddings are for, where it has such."""
        for prefix in ("", "text."):
            if (positions := self.tensors.get(f"{prefix}positional_embedding")) is not None:
                return len(positions) - (f"{prefix}cls_emb" in self.tensors)
        return None


def weights_in(folder: Path) -> Path:
    """Return the file of weights in a folder as OpenCLIP saves it, the one that OpenCLIP would take.

    Raises
    ------
    ConfigError
        When there is none.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth"))
    if not found:
        raise ConfigError(f"{folder} holds no weights.", UNFIT)
    known = [path for path in found if path.name in PREFERRED]
    if known:
        return min(known, key=lambda path: PREFERRED.index(path.name))
    return min(found, key=lambda path: path.suffix != ".safetensors")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the weights in a file; nothing in it is run.

    Three forms are read: OpenAI's (a TorchScript archive, or the state dict of one), a training checkpoint
    of OpenCLIP and its relatives (`{"epoch": ..., "state_dict": {"module.visual...": ...}}`) or a bare state dict, and
    safetensors.

    Parameters
    ----------
    path : Path
        A file; its ending tells safetensors, its content the others.

    Raises
    ------
    ConfigError
        When it is damaged, holds code or objects beside tensors, or no named tensors.
    """
    try:
        archive = path.suffix != ".safetensors" and is_torchscript(path)
        state = _state_of(read_torchscript(path) if archive else _loaded(path))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read as weights: {_short(error)}", UNFIT) from error
    if not state:
        raise ConfigError(f"{path} holds no named tensors.", UNFIT)
    if others := [name for name, value in state.items() if not _is_tensor(value)]:
        raise ConfigError(f"{path} holds more than tensors: {_named(others)}.", CONVERT)
    names = _stripped(state)
    quick_gelu = set(SIZES) <= set(names) or "positional_embedding_res" in names
    tensors = joined({name: tensor for name, tensor in names.items() if name not in SIZES})
    return Checkpoint(path, tensors, quick_gelu)


def _loaded(path: Path) -> Any:
    from pickle import UnpicklingError  # raised for what is not tensors

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Namespaces of command-line arguments are common beside weights, and only hold what the reader allows.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    except UnpicklingError as error:
        if code := re.search(
            r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", str(error).split("WeightsUnpickler error:")[-1]
        ):
            raise ConfigError(
                f"{path} holds code beside its tensors ({code[1]}), so it is not read: reading would run it.", CONVERT
            ) from error
        raise ValueError("it is damaged, or no checkpoint") from error


def _state_of(read: Any) -> dict[str, Any]:
    for key in STATES:
        if isinstance(read, Mapping) and isinstance(read.get(key), Mapping):
            read = read[key]
    return {str(name): value for name, value in read.items()} if isinstance(read, Mapping) else {}


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _stripped(state: dict[str, Any]) -> dict[str, Any]:
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def built(name: str, checkpoint: Checkpoint, **settings: Any) -> Any:
    """Build the architecture for a checkpoint and put the weights in.

    It gets as many text positions as the file has, and QuickGELU where the file can only be of a model with it.
    Positions of an image grid of another size are resized as OpenCLIP does, with a warning.

    Parameters
    ----------
    name : str
        Of an OpenCLIP architecture, or `local-dir:FOLDER`.
    checkpoint : Checkpoint
    **settings
        For `open_clip.create_model`: precision, device.

    Returns
    -------
    open_clip.CLIP or open_clip.CustomTextCLIP

    Raises
    ------
    ConfigError
        When a tensor is missing, surplus or of another shape; the first five are named.
    """
    import open_clip

    length = checkpoint.text_length
    if length is not None and not 1 <= length <= LONGEST:
        raise ConfigError(f"{checkpoint.path} has {length} text positions; at most {LONGEST} are read.", UNFIT)
    model = open_clip.create_model(
        name,
        load_weights=False,
        pretrained_text=False,
        force_quick_gelu=checkpoint.quick_gelu,
        force_context_length=length,
        **settings,
    )
    fill(model, checkpoint, name)
    return model


def fill(model: Any, checkpoint: Checkpoint, name: str) -> None:
    """Put weights into a model where every name and shape fits; see `built`."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_state_dict(model, dict(checkpoint.tensors))  # Apple's own names of MobileCLIP
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    expected = model.state_dict()
    for scale in ("logit_scale", "logit_bias"):  # a number, or a list of one
        if scale in state and scale in expected and state[scale].numel() == expected[scale].numel():
            state[scale] = state[scale].reshape(expected[scale].shape)
    # What the architecture computes itself needs no weights: older files hold masks and numbers of positions.
    computed = {key for key, _ in model.named_buffers()} | {"text.transformer.embeddings.position_ids"}
    for key in (computed - set(expected)) & set(state):
        del state[key]
    _resize_image_positions(state, model, checkpoint.path)
    missing, surplus = set(expected) - set(state), set(state) - set(expected)
    shapes = [
        f"{key}: {tuple(state[key].shape)} for {tuple(expected[key].shape)}"
        for key in sorted(set(state) & set(expected))
        if state[key].shape != expected[key].shape
    ]
    wrong = [
        f"{len(names)} {what}: {_named(names)}"
        for what, names in (("missing", missing), ("surplus", surplus), ("of another shape", shapes))
        if names
    ]
    if wrong:
        raise ConfigError(f"{checkpoint.path} does not fit {name}; tensors {'; '.join(wrong)}.", UNFIT)
    model.load_state_dict(state)


def _resize_image_positions(state: dict[str, Any], model: Any, path: Path) -> None:
    from open_clip.model import resize_pos_embed

    key = "visual.positional_embedding"
    if key not in state or state[key].ndim != 2:
        return
    had = len(state[key])
    state[key] = state[key].float()  # half precision is not interpolated on a CPU
    try:
        resize_pos_embed(state, model)
    except RuntimeError:
        return  # no square grid: the shape is named with the others
    if len(state[key]) != had:
        warnings.warn(
            f"{path}: its {had - 1} image positions were resized to the {len(state[key]) - 1} of the architecture.",
            stacklevel=2,
        )


def _named(names: Collection[str]) -> str:
    """Name the first five; they come from a file, so they are quoted and cut."""
    first = ", ".join(repr(name[:100]) for name in sorted(names)[:5])
    return f"{first}, and {len(names) - 5} more" if len(names) > 5 else first


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
