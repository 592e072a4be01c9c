"""A real OpenCLIP model of random weights, small enough to make in a test, in the forms that weights are kept in."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CONFIG = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}
SIZES = {"input_resolution": 32, "context_length": 24, "vocab_size": 49408}
"""What OpenAI's files hold beside the weights."""


def tiny_model(seed: int = 0, **changes: Any) -> Any:
    """Draw the model; the random image tower still tells colours apart."""
    import open_clip
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # Copied, because OpenCLIP takes entries out of it.
        return open_clip.CLIP(**(copy.deepcopy(CONFIG["model_cfg"]) | changes)).eval().requires_grad_(False)


def write_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """Write config and weights as OpenCLIP's folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    save_file(tiny_model(seed).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def register(folder: Path, name: str, *, custom_text: bool = False, **text: Any) -> str:
    """Make the tiny architecture known to OpenCLIP by a name, with changes to its text tower."""
    import open_clip

    config: dict[str, Any] = copy.deepcopy(CONFIG["model_cfg"])
    config["text_cfg"] |= text
    config["custom_text"] = custom_text
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    return name


def write_torchscript(model: Any, path: Path) -> Path:
    """Write the program and half-precision weights of a model, with its sizes, as OpenAI's files have them."""
    import torch

    for name, size in SIZES.items():
        model.__dict__.pop(name, None)
        model.register_buffer(name, torch.tensor(size))
    inputs = {
        "encode_image": torch.ones(1, 3, 32, 32),
        "encode_text": torch.zeros(1, SIZES["context_length"], dtype=torch.int),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated; the files made by it stay
        traced = torch.jit.trace_module(model, inputs, check_trace=False)
        traced.half().save(str(path))
    return path


def rounded(model: Any) -> Any:
    """Round weights to what half precision holds, so that they are the same before and after such a file."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    return model


def vectors_of(model: Any, inputs: torch.Tensor, tokens: torch.Tensor) -> tuple[Any, Any]:
    """Unit vectors of images and texts, by the model itself."""
    import torch

    with torch.inference_mode():
        return model.encode_image(inputs, normalize=True).numpy(), model.encode_text(tokens, normalize=True).numpy()
