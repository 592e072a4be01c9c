"""A frozen encoder and the few numbers that adapt it: kept in a folder, loaded as an encoder like any other."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.adaptation import ABOUT, NUMBERS, TRAINED, Arrays, damaged, read_adaptation, read_arrays
from secondlook.agents.adapter import Adapter
from secondlook.agents.clip_zero_shot import ClipZeroShot, TextClassifier
from secondlook.agents.embedder import Embedder
from secondlook.agents.encoder import Device, EncoderSpec, OpenClipEncoder, Towers
from secondlook.agents.errors import ConfigError

ALIKE = 0.999
"""Least cosine of what an encoder made when it was trained and what it makes when it is loaded."""


class AdaptedEncoder(OpenClipEncoder):
    """An OpenCLIP model with an adapter, as `secondlook.agents.adapter_training.adapt` wrote it.

    Parameters
    ----------
    folder : Path
        Holds adapter.json and adapter.safetensors.
    device : {"auto", "cpu", "cuda"}
    encoder : EncoderSpec, optional
        Where the frozen encoder is now; by default where it was.

    Raises
    ------
    ConfigError
        When the folder is missing or damaged, or the frozen encoder is not the one that was adapted.
    """

    def __init__(self, folder: Path, device: Device = "auto", encoder: EncoderSpec | None = None) -> None:
        self.folder = folder
        self.about = read_adaptation(folder)
        super().__init__(encoder or self.about.encoder, device)

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits over the frozen encoder and the adapter, and the arithmetic they run in."""
        sha = hashlib.sha256(self._frozen.digest.encode())
        try:
            sha.update((self.folder / ABOUT).read_bytes() + (self.folder / NUMBERS).read_bytes())
        except OSError as error:
            raise damaged(self.folder, error) from error
        return sha.hexdigest()[:16] + ("" if self._dtype_name == "float32" else f"-{self._dtype_name}")

    @cached_property
    def dim(self) -> int:
        """D, the length of a vector."""
        return int(self.classifier.vectors.shape[1])

    @cached_property
    def logit_scale(self) -> float:
        """The factor on cosines before the softmax, as the checkpoint has it."""
        return self.classifier.logit_scale

    @cached_property
    def classifier(self) -> TextClassifier:
        """The labels' words as the adapted text tower encodes them."""
        t = self._arrays
        return TextClassifier(t["classifier.vectors"], t["classifier.negatives"], t["classifier.logit_scale"].item())

    @cached_property
    def _arrays(self) -> Arrays:
        arrays = read_arrays(self.folder)
        shape, labels = arrays["classifier.vectors"].shape, len(self.about.labels)
        negatives = arrays["classifier.negatives"].shape
        if len(shape) != 2 or shape[0] != labels or len(negatives) != 2 or negatives[1] != shape[1]:
            raise damaged(self.folder, f"classifier: expected [{labels}, D] and [J, D], got {shape} and {negatives}")
        return arrays

    @cached_property
    def _frozen(self) -> OpenClipEncoder:
        """The encoder in single precision: of rounded weights an adapter would not be the same."""
        frozen = OpenClipEncoder(self.spec, "cpu")
        if frozen.digest != self.about.encoder_digest:
            raise ConfigError(
                f"{self.folder} adapts the encoder {self.about.encoder_digest}, and {self.spec.model!r} is "
                f"{frozen.digest}.",
                "Put the old weights back, or adapt again.",
            )
        return frozen

    def _load(self) -> Towers:
        import torch

        if self._device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("No CUDA device is available.", "Use --device cpu, or --device auto.")
        towers = OpenClipEncoder(self._frozen.spec, "cpu").towers
        adapter = self.about.spec.install(towers, self.about.template, self.about.seed)
        self._set(adapter)
        adapter.merge()
        towers.model.requires_grad_(False)
        self._check(towers)
        if self._dtype_name == "float32":
            return towers
        device, dtype = torch.device("cuda"), torch.bfloat16
        return towers._replace(model=towers.model.to(device, dtype), device=device, dtype=dtype)

    def _set(self, adapter: Adapter) -> None:
        import torch

        found = {name.removeprefix(TRAINED): a for name, a in self._arrays.items() if name.startswith(TRAINED)}
        if wrong := sorted(set(found) ^ set(adapter.trained)):
            state = "holds a surplus" if wrong[0] in found else "lacks the"
            raise damaged(self.folder, f"it {state} array {wrong[0]}")
        with torch.no_grad():
            for name, parameter in adapter.trained.items():
                if found[name].shape != tuple(parameter.shape):
                    raise damaged(
                        self.folder, f"{name}: expected {list(parameter.shape)}, got {list(found[name].shape)}"
                    )
                parameter.copy_(torch.from_numpy(found[name]))

    def _check(self, towers: Towers) -> None:
        """Refuse to go on where the same numbers make another encoder than the one that was trained."""
        image, text = probe(towers, [self.about.template.replace("{}", self.about.labels[0])])
        for name, vector in (("image", image[0]), ("text", text[0])):
            if (cosine := float(vector @ self._arrays[f"probe.{name}"])) < ALIKE:
                raise ConfigError(
                    f"{self.folder}: with its numbers {self.spec.model!r} encodes a made-up {name} otherwise than when "
                    f"it was trained (cosine {cosine:.3f}).",
                    "Adapt again with this installation.",
                )


def adapted_agent(encoder: AdaptedEncoder, embedder: Embedder, name: str | None = None) -> ClipZeroShot:
    """Make the agent: cosines of an image and the labels' words, both as the adapted towers encode them.

    Parameters
    ----------
    encoder : AdaptedEncoder
    embedder : Embedder
        Of this encoder, not the panel's; a cache may be shared. Closed by whoever made it.
    name : str, optional
        Of the agent; by default that of its spec.
    """
    return ClipZeroShot(embedder, encoder.classifier, name or encoder.about.spec.name)


def probe(towers: Towers, texts: list[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Encode a made-up image and some texts, by a model in single precision.

    Returns
    -------
    image : ndarray of shape (1, D)
    texts : ndarray of shape (T, D)
        Unit vectors.
    """
    import torch
    from PIL import Image

    picture = Image.fromarray((np.arange(64 * 64 * 3) * 7 % 256).astype(np.uint8).reshape(64, 64, 3))
    for step in towers.crop:
        picture = step(picture)
    with torch.no_grad():
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(towers.device).float() / 255
        for step in towers.normalise:
            image = step(image)
        tokens = towers.tokenizer(texts).to(towers.device)
        vectors = towers.model.encode_image(image, normalize=True), towers.model.encode_text(tokens, normalize=True)
    return vectors[0].cpu().numpy(), vectors[1].cpu().numpy()
