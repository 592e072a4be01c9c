"""A local vision-language model of the Qwen kind: loaded once for all, its inputs, its own words."""

from __future__ import annotations

import importlib.util
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from secondlook.agents.encoder import Device
from secondlook.agents.errors import ConfigError
from secondlook.agents.model_folder import digest_of_folder

if TYPE_CHECKING:
    import torch
    from PIL import Image

Inputs = dict[str, "torch.Tensor"]
BASE = "model_digest"
"""The key in an adapter's metadata under which stands the digest of the model it was trained on."""


class Asked(NamedTuple):
    """One question, as the model is given it."""

    text: str
    images: tuple[Image.Image, ...]
    """RGB, in the order in which the text speaks of them; before it."""
    begun: str = ""
    """How the reply begins, where it is not left to the model."""


def on_cuda(device: Device) -> bool:
    """Whether a model for this device runs on a GPU.

    Raises
    ------
    ConfigError
        When one is asked for and there is none.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("No CUDA device is available.", "Use --device cpu, or --device auto.")
    return device != "cpu" and torch.cuda.is_available()


class QwenModel:
    """A loaded model. One at a time may use it: ask inside `using`.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        In evaluation mode, its generation greedy whatever its files say.
    processor : transformers.ProcessorMixin
    digest : str
        Of its files.
    lock : threading.RLock
        Held by `using`.
    """

    def __init__(self, model: Any, processor: Any, digest: str) -> None:
        self.model, self.processor, self.digest = model, processor, digest
        self.lock = threading.RLock()
        self._adapters: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        found: torch.device = self.model.device
        return found

    @contextmanager
    def using(self, adapter: Path | None = None) -> Iterator[None]:
        """Have the model for oneself, with a LoRA adapter of its own or with none.

        Raises
        ------
        ConfigError
            When the adapter cannot be loaded, or is not of this model.
        """
        with self.lock:
            if adapter is not None:
                self._adapt(adapter)
            elif self._adapters:
                self.model.disable_adapters()
            yield

    def _adapt(self, folder: Path) -> None:
        name = f"adapter_{digest_of_folder(folder)}"
        if name not in self._adapters:
            _load_adapter(self.model, folder, name, self.digest)
            self._adapters.add(name)
        self.model.enable_adapters()
        self.model.set_adapter(name)

    def inputs(self, asked: Sequence[Asked]) -> Inputs:
        """Turn N questions into one batch, padded on the left, on the model's device."""
        texts = [self._chat(each) for each in asked]
        images = [image for each in asked for image in each.images]
        batch = self.processor(
            text=texts, images=images or None, return_tensors="pt", padding=True, padding_side="left"
        )
        return dict(batch.to(self.device))

    def _chat(self, asked: Asked) -> str:
        content: list[dict[str, str]] = [{"type": "image"} for _ in asked.images]
        content.append({"type": "text", "text": asked.text})
        prompt: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return prompt + asked.begun

    def replies(self, asked: Sequence[Asked], max_tokens: int, stop: str | None = None) -> list[str]:
        """Let the model reply to N questions, each word the likeliest.

        Parameters
        ----------
        asked : sequence of Asked
        max_tokens : int
            The longest reply.
        stop : str, optional
            Ends a reply where it occurs.
        """
        inputs = self.inputs(asked)
        ends: dict[str, Any] = {"stop_strings": [stop], "tokenizer": self.processor.tokenizer} if stop else {}
        said = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, **ends)
        new = said[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self.processor.batch_decode(new, skip_special_tokens=True)
        return texts


_shared: dict[tuple[str, bool, bool], QwenModel] = {}
_sharing = threading.Lock()


def shared_model(folder: Path, device: Device = "auto", four_bit: bool = False) -> QwenModel:
    """Return a model, loaded once in this process for all who ask for it; see `load_model`."""
    key = (digest_of_folder(folder), on_cuda(device), four_bit)
    with _sharing:
        if key not in _shared:
            _shared[key] = load_model(folder, device, four_bit)
        return _shared[key]


def load_model(folder: Path, device: Device = "auto", four_bit: bool = False) -> QwenModel:
    """Load a model from its folder: bfloat16 on a GPU, float32 elsewhere.

    Parameters
    ----------
    folder : Path
        As transformers saves it, its weights as safetensors. Code in it is never run.
    device : {"auto", "cpu", "cuda"}
    four_bit : bool
        Weights in 4 bits (NF4), which bitsandbytes brings; needs a GPU.

    Raises
    ------
    ConfigError
        When files are missing or damaged, or the device or bitsandbytes is.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor

    cuda = on_cuda(device)
    more = {"quantization_config": _four_bit(cuda)} if four_bit else {}
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    damage = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError)
    try:
        with _quiet():
            processor = AutoProcessor.from_pretrained(folder, **local)
            model = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=torch.bfloat16 if cuda else torch.float32,
                device_map="cuda" if cuda else None,
                use_safetensors=True,
                **local,
                **more,
            )
    except damage as error:
        raise ConfigError(
            f"The model in {folder} cannot be loaded: {error}",
            "Give an undamaged folder of a vision-language model, as transformers saves it.",
        ) from error
    if getattr(processor, "image_processor", None) is None:
        raise ConfigError(f"The model in {folder} takes no pictures.", "Give a vision-language model.")
    if not getattr(processor, "chat_template", None):
        raise ConfigError(f"The model in {folder} has no chat template.", "Give one that was taught to answer.")
    model.generation_config = _greedy(model.generation_config)
    return QwenModel(model.eval(), processor, digest_of_folder(folder))


def _load_adapter(model: Any, folder: Path, name: str, base: str) -> None:
    """Add a LoRA adapter, as peft saves it; one that names the digest of its model must be of this one."""
    require_peft()
    from safetensors import SafetensorError, safe_open

    weights, remedy = (
        folder / "adapter_model.safetensors",
        "Give the folder of an adapter that was trained on this model.",
    )
    if not weights.is_file():
        raise ConfigError(f"{folder} holds no adapter_model.safetensors.", remedy)
    try:
        with safe_open(weights, framework="pt") as file:
            trained_on = (file.metadata() or {}).get(BASE, base)
        if trained_on != base:
            raise ConfigError(f"The adapter in {folder} was trained on another model.", remedy)
        with _quiet():
            found = model.load_adapter(str(folder), name, adapter_kwargs={"local_files_only": True})
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        _drop_adapter(model, name)
        raise ConfigError(f"The adapter in {folder} cannot be loaded: {error}", remedy) from error
    # Adapters that were loaded before are missing too, and stay as they are.
    if found.unexpected_keys or any(name in key for key in found.missing_keys):
        _drop_adapter(model, name)
        raise ConfigError(f"The adapter in {folder} does not fit the model.", remedy)


def _drop_adapter(model: Any, name: str) -> None:
    if name in getattr(model, "peft_config", {}):
        with _quiet():
            model.delete_adapter(name)


def require_peft() -> None:
    """Raise a `ConfigError` where peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("A LoRA adapter needs peft, which is not installed.", "Install it: pip install peft")


def _four_bit(cuda: bool) -> Any:
    if not cuda or importlib.util.find_spec("bitsandbytes") is None:
        lack = "bitsandbytes, which is not installed" if cuda else "a GPU"
        raise ConfigError(f"Weights of 4 bits need {lack}.", "Leave four_bit out, or run: pip install bitsandbytes")
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def _greedy(own: Any) -> Any:
    """Keep of a model's generation settings only which tokens end and pad: its sampling would be noise here."""
    from transformers import GenerationConfig

    return GenerationConfig(eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id, do_sample=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, and without warnings of what is meant to be: that there are several adapters."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            warnings.filterwarnings("ignore", "Adapter .* was active which is now deleted")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
