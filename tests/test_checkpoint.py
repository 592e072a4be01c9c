"""Weights in every published form give the model they came from; what does not fit or holds code is refused by name."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_clip import CONFIG, SIZES, register, rounded, tiny_model, vectors_of, write_torchscript

from secondlook.agents.checkpoint import PREFERRED, read_checkpoint, weights_in
from secondlook.agents.encoder import EncoderSpec, OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.torchscript import is_torchscript, read_torchscript

ARCHITECTURE = "tiny-for-checkpoints"
State = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def architecture(tmp_path_factory: pytest.TempPathFactory) -> None:
    register(tmp_path_factory.mktemp("architecture"), ARCHITECTURE)


@pytest.fixture(scope="module")
def state() -> State:
    return dict(rounded(tiny_model(seed=3)).state_dict())


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenAI's form: a traced program of a model with QuickGELU."""
    return write_torchscript(rounded(tiny_model(seed=3, quick_gelu=True)), tmp_path_factory.mktemp("jit") / "clip.pt")


def encoder_of(file: Path) -> OpenClipEncoder:
    return OpenClipEncoder(EncoderSpec(model=ARCHITECTURE, pretrained=str(file)), "cpu")


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (40, 24), colour)


def assert_same_vectors(encoder: OpenClipEncoder, model: Any) -> None:
    import open_clip
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2

    preprocess = image_transform_v2(PreprocessCfg(size=32), is_train=False)  # of a bare file: OpenAI's mean and scale
    inputs = torch.stack([preprocess(picture(colour)) for colour in ("red", "green", "blue")])
    texts = ["a red leaf", "a leaf with brown spots"]
    images, words = vectors_of(model, inputs, open_clip.SimpleTokenizer(context_length=24)(texts))
    found = encoder.encode([encoder.preprocess(picture(colour)) for colour in ("red", "green", "blue")])
    np.testing.assert_allclose(found, images, atol=2e-6)
    np.testing.assert_allclose(encoder.encode_texts(texts), words, atol=2e-6)


def save_safetensors(state: State, path: Path) -> Path:
    from safetensors.torch import save_file

    save_file(state, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def save_torch(found: Any, path: Path, **options: Any) -> Path:
    import torch

    torch.save(found, path, **options)
    return path


def training(state: State, path: Path) -> Path:
    """As OpenCLIP's training on several GPUs saves it, with what its relatives add."""
    import torch

    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    found = {
        "epoch": 32,
        "name": "a run",
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=1e-3, epochs=32),
    }
    return save_torch(found, path)


def halved(state: State) -> State:
    return {name: tensor.half() for name, tensor in state.items()}


FORMS: dict[str, Callable[[State, Path], Path]] = {
    "safetensors": save_safetensors,
    "safetensors in half precision": lambda state, path: save_safetensors(halved(state), path),
    "training checkpoint": training,
    "state dict": save_torch,
    "state dict of an old torch": lambda s, path: save_torch(s, path, _use_new_zipfile_serialization=False),
    "two wrappers": lambda s, path: save_torch({f"module.clip.{name}": t for name, t in s.items()}, path),
    "an outer model": lambda s, path: save_torch({"model": {f"model.{name}": t for name, t in s.items()}}, path),
    "logit scale as a list of one": lambda s, path: save_torch(s | {"logit_scale": s["logit_scale"][None]}, path),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_vectors_of_the_model_it_came_from(form: str, state: State, tmp_path: Path) -> None:
    encoder = encoder_of(FORMS[form](state, tmp_path / "weights.pt"))
    assert_same_vectors(encoder, rounded(tiny_model(seed=3)))
    assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-3)


def test_openais_archive_is_read_without_running_it_and_gets_quick_gelu(archive: Path) -> None:
    assert_same_vectors(encoder_of(archive), rounded(tiny_model(seed=3, quick_gelu=True)))


def test_the_state_dict_of_openais_archive_gets_quick_gelu_too(state: State, tmp_path: Path) -> None:
    import torch

    sizes = {name: torch.tensor(size) for name, size in SIZES.items()}
    encoder = encoder_of(save_torch(halved(state) | sizes, tmp_path / "clip.pt"))
    assert_same_vectors(encoder, rounded(tiny_model(seed=3, quick_gelu=True)))


def test_an_archive_holds_what_torch_itself_finds_in_it(archive: Path) -> None:
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(str(archive)).state_dict()
    found = read_torchscript(archive)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_parts_and_numbers_of_every_kind_are_read_from_an_archive(tmp_path: Path) -> None:
    import warnings

    import torch

    class Part(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
            self.register_buffer("turned", self.shared.detach().T[1:])  # a view, of other strides
            self.register_buffer("empty", torch.empty(0, 3))
            for dtype in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"):
                self.register_buffer(f"a_{dtype}", torch.tensor([[1, 0], [1, 1]], dtype=getattr(torch, dtype)))
            self.steps = [1, 2, 300]
            self.words = ("a", 0.5, True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.shared.sum() + self.steps[0]

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList([Part(), Part()])
            self.same = self.parts[0]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for part in self.parts:
                x = part(x)
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(Whole())
        scripted.save(str(tmp_path / "whole.pt"))
    found, expected = read_torchscript(tmp_path / "whole.pt"), scripted.state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_code_in_an_archives_description_is_not_run(archive: Path, tmp_path: Path) -> None:
    """A description that calls builtins.open is walked as words, and gives no tensors."""
    program = pickle.dumps({"weight": Opens(tmp_path / "made")}, protocol=2)
    changed = rewritten(archive, tmp_path / "changed.pt", {"data.pkl": program})
    assert is_torchscript(changed)
    with pytest.raises(ConfigError, match="no named tensors"):
        read_checkpoint(changed)
    assert not (tmp_path / "made").exists()


class Opens:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


class Runs(Opens):
    """Unpickled, it would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", [Opens, Runs])
@pytest.mark.parametrize("form", ["torch", "old torch", "bare pickle"])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(
    kind: type[Opens], form: str, state: State, tmp_path: Path
) -> None:
    found = {"state_dict": state, "extra": kind(tmp_path / "made")}
    path = tmp_path / "weights.pt"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(found["extra"], protocol=2))
    else:
        save_torch(found, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(ConfigError, match="holds code beside its tensors") as caught:
        encoder_of(path).encode_texts(["a"])
    assert not (tmp_path / "made").exists()
    assert str(path) in caught.value.what
    assert "safetensors" in caught.value.remedy
    # The file would have done it: this is what reading it as a pickle means.
    assert (kind(tmp_path / "made").__reduce__()[0]) in (open, os.system)


def rewritten(archive: Path, path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Copy an archive with some of its files replaced."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, files.get(name.partition("/")[2], old.read(name)))
    return path


def without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


def many_surplus(state: State) -> State:
    return state | {f"decoder.{i}": state["logit_scale"].clone() for i in range(8)}


def wider(state: State) -> State:
    import torch

    return state | {"visual.proj": torch.zeros(64, 48)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: without(s, "visual.proj", "ln_final.bias"), ["2 missing: 'ln_final.bias', 'visual.proj'."]),
        (many_surplus, ["8 surplus: 'decoder.0',", "'decoder.4', and 3 more."]),
        (wider, ["1 of another shape: 'visual.proj: (64, 48) for (64, 32)'"]),
        (
            lambda s: without(s, "logit_scale") | {"scale": s["logit_scale"].clone()},
            ["1 missing: 'logit_scale'", "1 surplus: 'scale'"],
        ),
        (lambda s: {f"student.{k}": v for k, v in s.items()}, ["50 missing", "50 surplus", "and 45 more"]),
        (lambda s: {k: v for k, v in s.items() if k.startswith("visual.")}, ["missing: 'ln_final.bias'"]),
    ],
    ids=["missing", "surplus", "another shape", "renamed", "unknown prefix", "image tower only"],
)
def test_names_that_do_not_fit_are_named(
    change: Callable[[State], State], says: list[str], state: State, tmp_path: Path
) -> None:
    path = save_safetensors(change(state), tmp_path / "weights")
    with pytest.raises(ConfigError) as caught:
        encoder_of(path).encode_texts(["a"])
    for words in (*says, str(path), ARCHITECTURE):
        assert words in caught.value.what
    assert "architecture" in caught.value.remedy


def test_a_folder_whose_weights_do_not_fit_its_config_is_named(state: State, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps(CONFIG))
    save_safetensors(without(state, "visual.proj"), tmp_path / "open_clip_model")
    with pytest.raises(ConfigError, match=r"1 missing: 'visual\.proj'"):
        assert OpenClipEncoder(EncoderSpec(model=str(tmp_path)), "cpu").dim


DAMAGE: dict[str, Callable[[Path, State, Path], object]] = {
    "empty": lambda path, state, archive: path.write_bytes(b""),
    "text": lambda path, state, archive: path.write_text("version https://git-lfs.example/spec/v1\nsize 600000000\n"),
    "half a checkpoint": lambda path, state, archive: path.write_bytes(save_torch(state, path).read_bytes()[:90_000]),
    "half an archive": lambda path, state, archive: path.write_bytes(archive.read_bytes()[:90_000]),
    "a list": lambda path, state, archive: save_torch([1, 2], path),
    "no tensors": lambda path, state, archive: save_torch({"state_dict": {}}, path),
    "a number among tensors": lambda path, state, archive: save_torch(state | {"steps": 3}, path),
    "a compressed archive": lambda path, state, archive: rewritten(archive, path, {}, zipfile.ZIP_DEFLATED),
    "a foreign description": lambda path, state, archive: rewritten(archive, path, {"data.pkl": b"garbage"}),
    "an empty description": lambda path, state, archive: rewritten(archive, path, {"data.pkl": b""}),
    "a short storage": lambda path, state, archive: rewritten(archive, path, {"data/0": b"1234"}),
    "too many text positions": lambda path, state, archive: save_torch(
        state | {"positional_embedding": state["positional_embedding"][:1].expand(5000, -1).clone()}, path
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_no_checkpoint_is_named_with_a_remedy(
    damage: str, state: State, archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    DAMAGE[damage](path, state, archive)
    with pytest.raises(ConfigError) as caught:
        encoder_of(path).encode_texts(["a"])
    assert str(path) in caught.value.what
    assert caught.value.remedy


def test_a_module_that_holds_itself_ends_in_an_error(archive: Path, tmp_path: Path) -> None:
    module: dict[str, Any] = {}
    module["again"] = module
    changed = rewritten(archive, tmp_path / "weights.pt", {"data.pkl": pickle.dumps(module, protocol=2)})
    with pytest.raises(ConfigError, match="parts within parts without end"):
        read_checkpoint(changed)


def test_image_positions_of_another_grid_are_resized_as_open_clip_does_and_said_so(
    state: State, tmp_path: Path
) -> None:
    import torch
    from open_clip.model import resize_pos_embed

    grid = torch.randn(1 + 5 * 5, 64, generator=torch.Generator().manual_seed(0))  # the architecture has 4 x 4
    path = save_torch(state | {"visual.positional_embedding": grid}, tmp_path / "weights.pt")
    encoder = encoder_of(path)
    with pytest.warns(UserWarning, match="25 image positions were resized to the 16 of the architecture"):
        found = encoder.towers.model.visual.positional_embedding
    expected = {"visual.positional_embedding": grid}
    resize_pos_embed(expected, tiny_model())
    torch.testing.assert_close(found.detach(), expected["visual.positional_embedding"])


@pytest.mark.parametrize("names", [PREFERRED, ("b.bin", "z.safetensors", "a.pth"), ("notes.json", "b.bin")])
def test_a_folder_gives_the_weights_that_open_clip_would_take(names: tuple[str, ...], tmp_path: Path) -> None:
    from open_clip.factory import _find_checkpoint_in_dir

    for name in names:
        (tmp_path / name).touch()
    while list(tmp_path.glob("*.[sbp]*")):
        chosen = weights_in(tmp_path)
        assert str(chosen) == _find_checkpoint_in_dir(tmp_path)
        chosen.unlink()
    with pytest.raises(ConfigError, match="holds no weights"):
        weights_in(tmp_path)


def test_the_digest_of_a_file_is_that_of_its_content(state: State, archive: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    shutil.copy(archive, first)
    shutil.copy(archive, second)
    assert encoder_of(first).digest == encoder_of(second).digest
    save_torch(state, second)
    assert encoder_of(first).digest != encoder_of(second).digest


def test_names_from_a_file_are_cut_and_quoted(state: State, tmp_path: Path) -> None:
    path = save_safetensors(state | {"\x1b[31m" + "x" * 5000: state["logit_scale"].clone()}, tmp_path / "weights")
    with pytest.raises(ConfigError) as caught:
        encoder_of(path).encode_texts(["a"])
    assert len(caught.value.what) < 600
    assert not re.search(r"[\x00-\x1f]", caught.value.what)
