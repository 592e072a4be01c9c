"""A loaded OpenCLIP model with what belongs to it: preprocessing, tokenizer, device and arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from secondlook.agents.checkpoint import built, read_checkpoint, weights_in
from secondlook.agents.long_text import stretch


class Towers(NamedTuple):
    """The loaded model itself, for what learns through it. Its weights are shared and frozen: nobody changes them."""

    model: Any
    """Of OpenCLIP, in evaluation mode."""
    crop: tuple[Any, ...]
    """The steps of the preprocessing that work on a picture."""
    normalise: tuple[Any, ...]
    """Those that work on tensors, after the one that makes them."""
    tokenizer: Any
    """A list of texts to token ids of shape (N, L)."""
    device: Any
    dtype: Any


def load_towers(
    name: str, pretrained: str | None, folder: Path | None, text_length: int | None, *, cuda: bool
) -> Towers:
    """Load a model; see `secondlook.agents.encoder.EncoderSpec` for what can be.

    Parameters
    ----------
    name : str
        OpenCLIP's name for the architecture: with `local-dir:` or `hf-hub:` for a folder here or on the hub.
    pretrained : str, optional
        Tag, file of weights, or `random`.
    folder : Path, optional
        The folder here, whose weights are taken.
    text_length : int, optional
        Tokens of a text that the text tower is stretched for.
    cuda : bool
        Whether on the GPU, in bfloat16.

    Raises
    ------
    ConfigError
        When a file of weights is refused or does not fit, or the text tower cannot be stretched.
    """
    import torch

    device = torch.device("cuda" if cuda else "cpu")
    settings: dict[str, Any] = {"precision": "pure_bf16" if cuda else "fp32", "device": device}
    file = weights_in(folder) if folder else Path(pretrained or "")
    length = text_length
    # Weights are drawn before they are loaded: fork_rng keeps the program's own random numbers as they were.
    with _quiet_root_logger(), torch.random.fork_rng(devices=[]):
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        if file.is_file() and file.suffix not in (".npz", ".npy"):  # OpenCLIP itself reads those, without pickles
            checkpoint = read_checkpoint(file)
            model = built(name, checkpoint, **settings)
            length = length or checkpoint.text_length
        elif pretrained == "random":
            torch.manual_seed(0)
            model = open_clip.create_model(name, **settings)
        else:
            model = open_clip.create_model(name, pretrained, require_pretrained=True, **settings)
        if text_length is not None:
            stretch(model, text_length, name)
        tokenizer = open_clip.get_tokenizer(name, context_length=length)
        steps = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False).transforms
    middle = next(i for i, step in enumerate(steps) if type(step).__name__ in ("ToTensor", "MaybeToTensor"))
    return Towers(
        model.eval().requires_grad_(False),
        tuple(steps[:middle]),
        tuple(steps[middle + 1 :]),
        tokenizer,
        device,
        torch.bfloat16 if cuda else torch.float32,
    )


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Hide open_clip's loading steps, which it logs on the root logger, and leave that as it was."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)
