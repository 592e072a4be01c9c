"""What can be loaded is listed as OpenCLIP has it, in 80 columns, without loading or fetching anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import run_cli

from secondlook.agents.backbones import list_backbones
from secondlook.doctor import backbone_lines


def test_every_architecture_and_tag_of_open_clip_is_listed_once() -> None:
    import open_clip

    found = list_backbones().architectures
    published = {(one.name, tag.name) for one in found for tag in one.tags}
    assert len(found) == len({one.name for one in found})
    assert {one.name for one in found} >= {name for name in open_clip.list_models() if not name.startswith("tiny-")}
    assert published == set(open_clip.list_pretrained())
    for one in found[::20]:
        assert one.dim == open_clip.get_model_config(one.name)["embed_dim"]


@pytest.mark.parametrize(
    ("word", "name", "tag"),
    [
        ("siglip", "ViT-B-16-SigLIP", "webli"),
        ("MobileCLIP", "MobileCLIP-S1", "datacompdr"),
        ("datacomp", "ViT-B-32", "datacomp_xl_s13b_b90k"),
        ("metaclip", "ViT-L-14-quickgelu", "metaclip_fullcc"),
        ("vit b 32", "ViT-B-32", "laion2b_s34b_b79k"),
    ],
)
def test_a_word_finds_names_families_and_tags(word: str, name: str, tag: str) -> None:
    found = {one.name: one for one in list_backbones(word).architectures}
    assert tag in [known.name for known in found[name].tags]
    assert len(found) < 60
    flat = word.replace(" ", "").lower()
    for one in found.values():
        held = [one.name, one.family, *(known.name for known in one.tags)]
        assert any(flat in text.replace("-", "").replace("_", "").lower() for text in held), one.name


def test_weights_of_another_activation_are_marked() -> None:
    """OpenAI's weights learnt with QuickGELU, which only the names that end so have."""
    fits = {one.name: {tag.name: tag.fits for tag in one.tags} for one in list_backbones("ViT-B-32").architectures}
    assert fits["ViT-B-32-quickgelu"]["openai"]
    assert not fits["ViT-B-32"]["openai"]
    assert fits["ViT-B-32"]["laion2b_s34b_b79k"]


def test_a_foreign_text_tower_says_what_it_needs() -> None:
    (one,) = list_backbones("xlm-roberta-base").architectures
    assert (one.text_tower, one.tokens, one.needs) == ("xlm-roberta-base", 77, ("transformers",))
    lines = backbone_lines(list_backbones("xlm-roberta-base"), detail=True)
    assert "      text tower xlm-roberta-base" in lines


def test_what_is_cached_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    def keep(name: str, *files: str) -> None:
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text("0123")
        (folder / "snapshots/0123").mkdir(parents=True)
        for file in files:
            (folder / "snapshots/0123" / file).write_text("{}")

    keep("timm/ViT-B-16-SigLIP", "open_clip_model.safetensors")
    keep("someone/leaf--clip", "open_clip_config.json", "open_clip_pytorch_model.bin")
    keep("someone/settings-alone", "open_clip_config.json")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = list_backbones("siglip")
    cached = {one.name for one in found.architectures for tag in one.tags if tag.cached}
    assert cached == {"ViT-B-16-SigLIP"}
    assert found.hub == ("hf-hub:someone/leaf--clip",)
    lines = backbone_lines(found, detail=True)
    assert "      webli*" in lines
    assert "    hf-hub:someone/leaf--clip" in lines


@pytest.mark.parametrize("word", ["", "siglip", "vit", "openai"])
def test_the_list_is_read_at_eighty_columns(word: str) -> None:
    lines = backbone_lines(list_backbones(word), detail=bool(word))
    assert max(len(line) for line in lines) <= 80
    assert all(line == line.rstrip() for line in lines)


def test_the_command_lists_and_filters() -> None:
    out = run_cli("doctor", "--backbones", "mobileclip2-s0").out
    assert "MobileCLIP2-S0" in out
    assert "dfndr2b" in out
    found = json.loads(run_cli("doctor", "--backbones", "mobileclip2-s0", "--json").out)
    assert [one["name"] for one in found["architectures"]] == ["MobileCLIP2-S0"]
    nothing = run_cli("doctor", "--backbones", "no-such-thing")
    assert nothing.code != 0
    assert "called like 'no-such-thing'" in nothing.err
    assert run_cli("doctor", "siglip").code != 0
