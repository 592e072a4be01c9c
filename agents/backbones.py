"""The backbones that this installation can load: OpenCLIP's architectures and tags, and what is cached of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from secondlook.agents.case import Frozen

FAMILIES = {
    "Text towers of other makers": "nllb|mt5|roberta",
    "SigLIP": "SigLIP",
    "MobileCLIP": "MobileCLIP",
    "CLIPA": "CLIPA",
    "Perception Encoder": "^PE-",
    "EVA": "^EVA",
    "ViTamin": "^ViTamin",
    "CoCa": "^coca",
    "ConvNeXt": "^convnext",
    "ResNet": "^RN",
    "ViT": "^ViT",
    "Others": "",
}
"""What an architecture's name holds; the first that fits."""
TOKENS = 77
"""OpenCLIP's default where an architecture names no number."""
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Where a hub repository of OpenCLIP keeps its weights."""


class Tag(Frozen):
    """Published weights of an architecture."""

    name: str
    cached: bool
    """Whether they are on this machine."""
    fits: bool
    """False for weights that learnt with QuickGELU under a name without it: the vectors would be somewhat wrong, and
    the name that ends in -quickgelu is the right one."""


class Backbone(Frozen):
    """An architecture, with its published weights."""

    name: str
    family: str
    dim: int
    """D, the length of a vector."""
    tokens: int
    """Of a text, with those that begin and end it."""
    pixels: int
    """Side of the image it sees."""
    text_tower: str | None
    """Hub id of a text tower that is not OpenCLIP's own; its settings come from there."""
    tokenizer: str | None
    """Hub id of the tokenizer, where it is not CLIP's."""
    needs: tuple[str, ...]
    """Packages for them."""
    tags: tuple[Tag, ...]


class Backbones(Frozen):
    """What an encoder can be made of."""

    architectures: tuple[Backbone, ...]
    """By family; empty where nothing holds the word that was looked for."""
    hub: tuple[str, ...]
    """Models in the local hub cache, as `hf-hub:ORG/NAME`."""
    missing: tuple[str, ...]
    """Packages that some of the architectures need and that are not installed."""


def list_backbones(word: str = "") -> Backbones:
    """List OpenCLIP's architectures and tags, by family; no model is loaded and nothing is fetched.

    Parameters
    ----------
    word : str
        What the name of the architecture, its family or its tag holds, whatever its case and punctuation. Where only
        tags hold it, the others are left out.

    Returns
    -------
    Backbones
    """
    import open_clip

    published: dict[str, list[str]] = {}
    for name, tag in open_clip.list_pretrained():
        published.setdefault(name, []).append(tag)
    found = []
    for name in open_clip.list_models():
        family = next(family for family, pattern in FAMILIES.items() if re.search(pattern, name))
        tags = published.get(name, [])
        if not (_holds(name, word) or _holds(family, word)):
            tags = [tag for tag in tags if _holds(tag, word)]
            if not tags:
                continue
        config = open_clip.get_model_config(name)
        found.append(_backbone(name, family, config, {tag: open_clip.get_pretrained_cfg(name, tag) for tag in tags}))
    order = list(FAMILIES)
    found.sort(key=lambda backbone: order.index(backbone.family))
    needs = sorted({need for backbone in found for need in backbone.needs})
    missing = tuple(need for need in needs if find_spec(need) is None)
    return Backbones(architectures=tuple(found), hub=_cached_hub_ids(), missing=missing)


def _backbone(name: str, family: str, config: Mapping[str, Any], sources: Mapping[str, Mapping[str, Any]]) -> Backbone:
    text, size = config["text_cfg"], config["vision_cfg"].get("image_size", 224)
    quick = config.get("quick_gelu", False)
    tower, tokenizer = text.get("hf_model_name"), text.get("hf_tokenizer_name")
    return Backbone(
        name=name,
        family=family,
        dim=config["embed_dim"],
        tokens=text.get("context_length", TOKENS),
        pixels=size if isinstance(size, int) else max(size),
        text_tower=tower,
        tokenizer=tokenizer,
        needs=("transformers",) if tower or tokenizer else (),
        tags=tuple(
            Tag(name=tag, cached=_cached(source), fits=source.get("quick_gelu", False) == quick)
            for tag, source in sources.items()
        ),
    )


def _cached_hub_ids() -> tuple[str, ...]:
    """List hub ids whose OpenCLIP settings and weights are on this machine."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = set()
    for settings in Path(HF_HUB_CACHE).glob("models--*/snapshots/*/open_clip_config.json"):
        if any((settings.parent / name).is_file() for name in WEIGHTS):
            found.add("hf-hub:" + settings.parents[2].name.removeprefix("models--").replace("--", "/", 1))
    return tuple(sorted(found))


def _cached(source: Mapping[str, Any]) -> bool:
    """Whether the weights that a tag stands for are where OpenCLIP looks first."""
    from huggingface_hub import try_to_load_from_cache

    if repository := source.get("hf_hub"):
        repo, _, file = repository.rpartition("/")
        files = [str(Path(file).with_suffix(".safetensors")), file] if file else WEIGHTS
        return any(isinstance(try_to_load_from_cache(repo, name), str) for name in files)
    address = source.get("url", "")
    return bool(address) and (Path.home() / ".cache/clip" / address.rpartition("/")[2]).is_file()


def _holds(name: str, word: str) -> bool:
    return re.sub("[-_ ]", "", word).casefold() in re.sub("[-_ ]", "", name).casefold()
