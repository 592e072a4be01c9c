"""OpenCLIP for real, on a tiny model of random weights: digests, unit vectors, and mistakes named with their remedy."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_clip import CONFIG, write_tiny_clip

from secondlook.agents.case import Task
from secondlook.agents.clip_zero_shot import text_classifier
from secondlook.agents.encoder import Encoder, EncoderSpec, OpenClipEncoder, embedded_folder
from secondlook.agents.errors import ConfigError
from secondlook.agents.fakes import ToyEncoder

WEIGHTS = "open_clip_model.safetensors"
SETTINGS = "open_clip_config.json"


def load(folder: Path) -> OpenClipEncoder:
    return OpenClipEncoder(EncoderSpec(model=str(folder)), "cpu")


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (40, 24), colour) for colour in ("red", "green", "blue")]


@pytest.fixture(scope="module")
def encoder(tiny_clip: Path) -> OpenClipEncoder:
    return load(tiny_clip)


@pytest.fixture
def copy(tiny_clip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_clip, tmp_path / "copy"))


def settings_of(folder: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    config = json.loads((folder / SETTINGS).read_text())
    change(config)
    (folder / SETTINGS).write_text(json.dumps(config))


@pytest.mark.parametrize("kind", ["tiny", "toy"])
def test_images_and_texts_become_unit_vectors(kind: str, encoder: OpenClipEncoder) -> None:
    tried: Encoder = encoder if kind == "tiny" else ToyEncoder()
    images = tried.encode([tried.preprocess(image) for image in pictures()])
    texts = tried.encode_texts(["a red leaf", "a blue leaf"])
    assert images.shape == (3, tried.dim)
    assert texts.shape == (2, tried.dim)
    for rows in (images, texts):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert np.abs(images[0] - images[2]).max() > 0.01, "red is not blue"
    np.testing.assert_allclose(texts[:1], tried.encode_texts(["a red leaf"]), atol=1e-6)


def test_vectors_are_those_of_open_clip(encoder: OpenClipEncoder, tiny_clip: Path) -> None:
    import open_clip
    import torch

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tiny_clip}")
    with torch.inference_mode():
        images = model.eval().encode_image(torch.stack([preprocess(image) for image in pictures()]), normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer(f"local-dir:{tiny_clip}")(["a leaf"]), normalize=True)
    found = encoder.encode([encoder.preprocess(image) for image in pictures()])
    np.testing.assert_allclose(found, images.numpy(), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_texts(["a leaf"]), texts.numpy(), atol=1e-6)


def test_the_logit_scale_is_the_checkpoints(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(copy / WEIGHTS)
    state["logit_scale"].fill_(np.log(7.0))
    save_file(state, copy / WEIGHTS)
    encoder = load(copy)
    assert encoder.logit_scale == pytest.approx(7.0)
    classifier = text_classifier(encoder, Task(labels=("rust", "scab"), negatives=("a cat",)), ["a {} leaf"])
    assert classifier.logit_scale == pytest.approx(7.0)
    # One template and one phrase: the mean of one unit vector is that vector.
    np.testing.assert_allclose(classifier.vectors, encoder.encode_texts(["a rust leaf", "a scab leaf"]), atol=1e-6)
    assert classifier.negatives.shape == (1, 32)


@pytest.mark.parametrize("templates", [[], ["a leaf"], ["{} and {}"]], ids=["none", "no place", "two places"])
def test_a_template_without_one_place_for_the_label_is_refused(templates: list[str]) -> None:
    with pytest.raises(ConfigError, match="once"):
        text_classifier(ToyEncoder(), Task(labels=("rust", "scab")), templates)


def test_the_digest_is_that_of_the_content(tiny_clip: Path, copy: Path) -> None:
    digest = load(tiny_clip).digest
    assert digest == load(tiny_clip).digest == load(copy).digest
    (copy / "README.md").write_text("a card changes no vector")
    assert load(copy).digest == digest
    settings_of(copy, lambda config: config["preprocess_cfg"].update(mean=[0.4, 0.5, 0.5]))
    changed = load(copy).digest
    assert changed != digest
    write_tiny_clip(copy, seed=1)
    assert load(copy).digest not in (digest, changed)


def test_the_digest_needs_no_model(copy: Path) -> None:
    (copy / WEIGHTS).write_bytes(b"not weights")
    assert len(load(copy).digest) == 16


def sha(*parts: bytes) -> str:
    return hashlib.sha256(b"".join((b"preprocess 1;", *parts))).hexdigest()[:16]


def test_the_digest_is_computed_as_it_always_was(copy: Path, tmp_path: Path) -> None:
    """Caches and fitted models of earlier versions name it."""
    named = OpenClipEncoder(EncoderSpec(model="ViT-B-32", pretrained="laion2b_s34b_b79k"), "cpu")
    assert named.digest == sha(b"ViT-B-32;laion2b_s34b_b79k")
    file = tmp_path / "weights.pt"
    file.write_bytes(b"some weights")
    assert OpenClipEncoder(EncoderSpec(model="RN50", pretrained=str(file)), "cpu").digest == sha(
        b"RN50", hashlib.sha256(b"some weights").digest()
    )
    files = [name.encode() + hashlib.sha256((copy / name).read_bytes()).digest() for name in (SETTINGS, WEIGHTS)]
    assert load(copy).digest == sha(*files)


def test_the_digest_covers_the_text_length_and_every_kind_of_weights(copy: Path) -> None:
    digest = load(copy).digest
    longer = EncoderSpec(model=str(copy), text_length=36)
    assert OpenClipEncoder(longer, "cpu").digest != digest
    (copy / "open_clip_pytorch_model.pth").write_bytes(b"other weights")
    assert load(copy).digest != digest


def write_biomedical(folder: Path) -> None:
    """Write a hub repository like those of biomedical CLIP models: a BERT text tower with its own tokenizer."""
    import open_clip
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "rust": 4, "scab": 5}
    bert = folder / "bert"
    BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    ).save_pretrained(bert)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(bert)
    text = {
        "hf_model_name": str(bert),
        "hf_tokenizer_name": str(bert),
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 16,
    }
    config = {**CONFIG, "model_cfg": {**CONFIG["model_cfg"], "text_cfg": text}}
    (folder / SETTINGS).write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    save_file(model.state_dict(), folder / WEIGHTS)


def test_a_hub_id_with_a_foreign_text_tower_is_loaded_from_the_local_hub_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    repository = tmp_path / "models--someone--leaf-clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0123")
    snapshot = repository / "snapshots/0123"
    snapshot.mkdir(parents=True)
    write_biomedical(snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    spec = EncoderSpec(model="hf-hub:someone/leaf-clip")
    encoder = OpenClipEncoder(spec, "cpu")
    texts = encoder.encode_texts(["rust", "scab"])
    assert texts.shape == (2, 32)
    assert np.abs(texts[0] - texts[1]).max() > 1e-3
    assert encoder.digest == sha(b"hf-hub:someone/leaf-clip;None")
    # The same files as a folder give the same vectors.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(snapshot / "bert" / name, snapshot / name)
    np.testing.assert_allclose(load(snapshot).encode_texts(["rust", "scab"]), texts, atol=1e-6)
    longer = EncoderSpec(model="hf-hub:someone/leaf-clip", text_length=32)
    with pytest.raises(ConfigError, match="cannot be stretched"):
        OpenClipEncoder(longer, "cpu").encode_texts(["rust"])


def test_equal_weights_give_equal_vectors_from_many_threads(tiny_clip: Path, encoder: OpenClipEncoder) -> None:
    fresh = load(tiny_clip)
    with ThreadPoolExecutor(4) as pool:  # all of them want the model at once, before it is loaded
        tensors = list(pool.map(fresh.preprocess, pictures() * 4))
    expected = encoder.encode([encoder.preprocess(image) for image in pictures()])
    np.testing.assert_allclose(fresh.encode(tensors)[:3], expected, atol=1e-6)


def test_loading_leaves_the_programs_logging_and_random_state_alone(tiny_clip: Path) -> None:
    import torch

    root = logging.getLogger()
    level, state = root.level, torch.get_rng_state()
    root.setLevel(logging.INFO)
    try:
        assert load(tiny_clip).dim == 32
        assert root.level == logging.INFO
    finally:
        root.setLevel(level)
    assert torch.equal(torch.get_rng_state(), state)


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])


def half(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"not a checkpoint")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "weights cut in their header": truncate,
    "weights cut in half": half,
    "empty weights": lambda folder: (folder / WEIGHTS).write_bytes(b""),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "weights of another kind": pickled,
    "config cut short": lambda folder: (folder / SETTINGS).write_text("{"),
    "empty config": lambda folder: (folder / SETTINGS).write_text("{}"),
    "another width": lambda folder: settings_of(folder, lambda config: config["model_cfg"].update(embed_dim=16)),
    "unknown option": lambda folder: settings_of(folder, lambda config: config["model_cfg"].update(nonsense=1)),
    "no image tower": lambda folder: settings_of(folder, lambda config: config["model_cfg"].pop("vision_cfg")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_named_with_a_remedy(damage: str, copy: Path) -> None:
    DAMAGE[damage](copy)
    with pytest.raises(ConfigError) as caught:
        assert load(copy).dim
    assert str(copy) in caught.value.what
    assert "undamaged folder" in caught.value.remedy


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no open_clip_config\.json") as caught:
        assert load(tmp_path).digest
    assert str(tmp_path) in caught.value.what
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("spec", "says", "remedy"),
    [
        (EncoderSpec(model="ViT-none", pretrained="random"), "'ViT-none'", "OpenCLIP name"),
        (EncoderSpec(model="ViT-B-32"), "no weights", "--pretrained"),
        (EncoderSpec(model="ViT-B-32", pretrained="no-such-tag"), "no-such-tag", "--pretrained TAG or FILE"),
        (EncoderSpec(model="models/missing"), "not a folder", "--pretrained"),
        (EncoderSpec(model="hf-hub:org/name", pretrained="random"), "brings its own weights", "--pretrained"),
    ],
    ids=["unknown model", "no weights", "unknown tag", "missing folder", "hub id with weights"],
)
def test_a_wrong_name_is_named_with_a_remedy(spec: EncoderSpec, says: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        assert OpenClipEncoder(spec, "cpu").dim
    assert says in caught.value.what
    assert remedy in caught.value.remedy


def test_a_gpu_that_is_not_there_is_said_so(tiny_clip: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match="No CUDA device") as caught:
        assert OpenClipEncoder(EncoderSpec(model=str(tiny_clip)), "cuda").dim
    assert "--device cpu" in caught.value.remedy


def test_the_shipped_model_is_the_default() -> None:
    assert EncoderSpec().folder == embedded_folder()
    assert (embedded_folder() / SETTINGS).is_file()


def test_importing_the_room_loads_no_heavy_library() -> None:
    rooms = (
        "encoder",
        "checkpoint",
        "long_text",
        "backbones",
        "embedder",
        "clip_zero_shot",
        "clip_head",
        "linear_head",
        "head",
        "lessons",
        "calibration",
        "typicality",
        "views",
        "fakes",
    )
    program = (
        f"import sys; from secondlook.agents import {', '.join(rooms)};"
        "print([m for m in ('torch', 'open_clip', 'sklearn', 'scipy', 'transformers', 'chromadb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_the_tiny_model_says_what_it_was_written_with(encoder: OpenClipEncoder) -> None:
    assert encoder.dim == CONFIG["model_cfg"]["embed_dim"]
    assert encoder.preprocess(pictures()[0]).shape == (3, 32, 32)
