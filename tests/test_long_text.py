"""Longer texts: positions stretched as worked by hand, short texts unchanged, other towers refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_clip import register, tiny_model, vectors_of

from secondlook.agents.encoder import EncoderSpec, OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.long_text import KEPT, stretched

SHORT = ["a leaf", "a photo of a red leaf with small brown spots"]
LONG = " ".join(["leaf"] * 40)


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    return register(tmp_path_factory.mktemp("architecture"), "tiny-for-long-texts")


def random_one(name: str, length: int | None = None) -> OpenClipEncoder:
    return OpenClipEncoder(EncoderSpec(model=name, pretrained="random", text_length=length), "cpu")


def test_seventy_seven_positions_become_248() -> None:
    # Old position p has the value p squared, so that a wrong neighbour shows.
    old = np.arange(77.0)[:, None] ** 2
    new = stretched(old, 248)[:, 0]
    assert len(new) == KEPT + 57 * 4 == 248
    np.testing.assert_array_equal(new[:20], old[:20, 0])  # kept
    np.testing.assert_array_equal(new[20::4], old[20:, 0])  # every fourth is an old one: 20, 21, ..., 76
    # Between 20 and 21: 400, then 3/4 400 + 1/4 441, the mean, 1/4 400 + 3/4 441.
    np.testing.assert_allclose(new[20:25], [400, 410.25, 420.5, 430.75, 441])
    # After 76 (5776) the last step, 5776 - 5625 = 151, goes on by its quarters.
    np.testing.assert_allclose(new[244:], [5776, 5776 + 37.75, 5776 + 75.5, 5776 + 113.25])


@given(old=st.integers(22, 90), more=st.integers(1, 300), slope=st.floats(-3, 3), start=st.floats(-3, 3))
def test_positions_on_a_line_stay_on_it(old: int, more: int, slope: float, start: float) -> None:
    length = old + more
    factor = (length - KEPT) / (old - KEPT)
    new = stretched((start + slope * np.arange(old))[:, None], length)
    place = np.arange(length, dtype=float)
    place[KEPT:] = KEPT + (place[KEPT:] - KEPT) / factor
    np.testing.assert_allclose(new[:, 0], start + slope * place, atol=1e-9)


@pytest.mark.parametrize(("shape", "length"), [((21, 4), 40), ((77, 4), 77), ((77, 4), 40), ((77,), 248)])
def test_positions_that_cannot_be_stretched_are_refused(shape: tuple[int, ...], length: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        stretched(np.zeros(shape), length)


def test_texts_up_to_twenty_tokens_keep_their_vectors(architecture: str) -> None:
    plain, longer = random_one(architecture), random_one(architecture, 36)
    assert longer.towers.tokenizer(SHORT).shape == (2, 36)
    # Twenty tokens are eighteen words between the tokens that begin and end a text.
    kept = [*SHORT, " ".join(["leaf"] * 18)]
    np.testing.assert_allclose(longer.encode_texts(kept), plain.encode_texts(kept), atol=1e-6)
    beyond = [" ".join(["leaf"] * 21)]
    assert np.abs(longer.encode_texts(beyond) - plain.encode_texts(beyond)).max() > 1e-4, "stretched from 20 on"


def test_what_a_longer_text_says_at_its_end_is_read(architecture: str) -> None:
    plain, longer = random_one(architecture), random_one(architecture, 52)
    texts = [f"{LONG} scab", f"{LONG} rust"]  # 43 tokens: the plain tower is cut at 24
    assert np.abs(np.diff(plain.encode_texts(texts), axis=0)).max() < 1e-6
    assert np.abs(np.diff(longer.encode_texts(texts), axis=0)).max() > 1e-4


def test_images_keep_their_vectors_and_the_digest_changes(architecture: str) -> None:
    from PIL import Image

    plain, longer = random_one(architecture), random_one(architecture, 36)
    inputs = [plain.preprocess(Image.new("RGB", (32, 32), "red"))]
    np.testing.assert_array_equal(longer.encode(inputs), plain.encode(inputs))
    assert len({plain.digest, longer.digest, random_one(architecture, 40).digest}) == 3


def longer_model() -> Any:
    """Draw a model that was trained with 36 positions."""
    from tiny_clip import CONFIG

    text: dict[str, Any] = {**CONFIG["model_cfg"]["text_cfg"], "context_length": 36}  # type: ignore[dict-item]
    return tiny_model(seed=5, text_cfg=text)


@pytest.mark.parametrize("length", [None, 36])
def test_a_checkpoint_with_more_positions_is_read_as_it_is(
    length: int | None, architecture: str, tmp_path: Path
) -> None:
    import open_clip
    import torch
    from safetensors.torch import save_file

    model = longer_model()
    save_file(model.state_dict(), tmp_path / "long.safetensors")
    spec = EncoderSpec(model=architecture, pretrained=str(tmp_path / "long.safetensors"), text_length=length)
    encoder = OpenClipEncoder(spec, "cpu")
    texts = [*SHORT, LONG]
    _, expected = vectors_of(model, torch.ones(1, 3, 32, 32), open_clip.SimpleTokenizer(context_length=36)(texts))
    np.testing.assert_allclose(encoder.encode_texts(texts), expected, atol=2e-6)


def test_the_two_tables_of_long_clips_own_checkpoints_are_joined(architecture: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    state = dict(longer_model().state_dict())
    other = torch.randn(36, 32, generator=torch.Generator().manual_seed(1))
    save_file(state | {"positional_embedding_res": other}, tmp_path / "long.safetensors")
    spec = EncoderSpec(model=architecture, pretrained=str(tmp_path / "long.safetensors"))
    model = OpenClipEncoder(spec, "cpu").towers.model
    assert torch.equal(model.positional_embedding[:20], state["positional_embedding"][:20])
    assert torch.equal(model.positional_embedding[20:], other[20:])
    # That code knows only OpenAI's activation.
    assert type(model.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"


@pytest.mark.parametrize("length", [22, 23])
def test_a_text_tower_is_not_shortened(length: int, architecture: str) -> None:
    with pytest.raises(ConfigError, match="has 24 positions") as caught:
        random_one(architecture, length).encode_texts(["a"])
    assert "more than 24" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tiny-that-reads-both-ways", {"no_causal_mask": True, "pool_type": "last"}),
        ("tiny-with-a-class-token", {"custom_text": True, "embed_cls": True}),
        ("tiny-and-short", {"context_length": 21}),
    ],
)
def test_a_tower_that_cannot_be_stretched_is_named(name: str, text: dict[str, Any], tmp_path: Path) -> None:
    register(tmp_path, name, **text)
    with pytest.raises(ConfigError, match="cannot be stretched") as caught:
        random_one(name, 36).encode_texts(["a"])
    assert name in caught.value.what
    assert "--text-length" in caught.value.remedy


def test_a_length_outside_the_limits_is_refused() -> None:
    for length in (0, 20, 2049):
        with pytest.raises(ValueError, match="text_length"):
            EncoderSpec(text_length=length)
