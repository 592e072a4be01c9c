"""The vision-language model that ships with the package, and the parts it was trained with."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from secondlook.agents.case import Case
from secondlook.agents.label_likelihoods import replies_of
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Prediction
from secondlook.agents.vlm_question import VlmQuestion
from secondlook.check_leaf_tiny_vl import apple_task, ask, figures
from secondlook.leaf_dialogues import KINDS, Dialogues, VlTexts
from secondlook.leaf_vl_folder import VlShape, build_model
from secondlook.leaf_vl_language import Lessons, positions, reply_loss
from secondlook.leaf_vl_vision import encode_images, patchify
from secondlook.leaves import LABELS, Leaf, render_leaf

FOLDER = Path(__file__).resolve().parent.parent / "secondlook" / "assets" / "leaf-tiny-vl"
FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
SMALL = VlShape(vision_width=16, vision_depth=1, vision_heads=2, vision_inner=16, width=32, depth=1, inner=32)


@pytest.fixture(scope="module")
def processor() -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def small(processor: Any) -> Any:
    """Random weights of the same architecture."""
    return build_model(SMALL, processor.tokenizer, seed=0)


@pytest.fixture(scope="module")
def leaves() -> list[Image.Image]:
    # Seeds far below those the model was trained on: it has seen none of these leaves.
    return [render_leaf(Leaf.grow(label, seed), 0, 128).image for seed in range(2) for label in LABELS]


def test_the_folder_is_small_and_complete() -> None:
    assert {path.name for path in FOLDER.iterdir()} == FILES
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 20_000_000


def test_the_folder_asks_for_no_code_of_its_own() -> None:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert "auto_map" not in (FOLDER / "config.json").read_text() + (FOLDER / "tokenizer_config.json").read_text()


def test_the_processor_is_the_ordinary_one_and_makes_49_tokens_of_a_square_picture(processor: Any) -> None:
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    inputs = processor(text=["<|image_pad|>"], images=[Image.new("RGB", (256, 256))], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 14, 14]]
    assert inputs["input_ids"].shape == (1, 49)


@settings(max_examples=60)
@given(st.text(max_size=40))
def test_the_tokenizer_gives_every_text_back(processor: Any, text: str) -> None:
    # Qwen's tokenizers write letters with accents as one character (NFC).
    whole = unicodedata.normalize("NFC", text)
    assert processor.tokenizer.decode(processor.tokenizer(whole)["input_ids"]) == whole


def test_letters_and_yes_and_no_are_single_tokens(processor: Any) -> None:
    words = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "Yes", "No"]
    assert [len(ids) for ids in processor.tokenizer(words)["input_ids"]] == [1] * len(words)


def test_the_labels_are_told_apart_at_their_first_token(processor: Any) -> None:
    endings = replies_of(LABELS, processor.tokenizer).endings
    assert len({ending[0] for ending in endings}) == len(LABELS)
    # Each ends in the closing quote and the comma, which no merge joins to anything.
    assert {ending[-2:] for ending in endings} == {endings[0][-2:]}


def test_most_rendered_leaves_are_named_by_label_likelihoods(leaves: list[Image.Image]) -> None:
    cases = [Case(id=str(n), photo=Photo.of(leaf)) for n, leaf in enumerate(leaves)]
    found = figures(ask(FOLDER, cases, "likelihood"), np.arange(8) % 4)
    assert found["failures"] == 0
    assert found["accuracy"] >= 6 / 8


def test_it_writes_the_json_that_it_is_asked_for(leaves: list[Image.Image]) -> None:
    from secondlook.agents.qwen_model import Asked, shared_model

    qwen = shared_model(FOLDER, "cpu")
    text = VlmQuestion(apple_task(), "eye").text(Case(id="", photo=Photo.of(b"")))
    with qwen.using():
        said = json.loads(qwen.replies([Asked(text, (leaves[3],))], 80)[0])
    assert said["label"] in LABELS
    assert 0 <= said["confidence"] <= 1
    assert said["reason"].endswith(".")


def test_its_letters_are_read_as_predictions(leaves: list[Image.Image]) -> None:
    (said,) = ask(FOLDER, [Case(id="", photo=Photo.of(leaves[1]))], "letters")
    assert isinstance(said, Prediction)


def test_the_quick_vision_pass_is_that_of_transformers(small: Any, processor: Any, leaves: list[Image.Image]) -> None:
    square = [leaf.resize((112, 112)) for leaf in leaves[:2]]
    inputs = processor.image_processor(square, return_tensors="pt")
    pixels = torch.stack([torch.from_numpy(np.array(leaf)).permute(2, 0, 1) / 127.5 - 1 for leaf in square])
    assert torch.allclose(patchify(pixels, 8).reshape(-1, 384), inputs["pixel_values"], atol=1e-5)
    with torch.inference_mode():
        theirs = small.model.visual(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        _, ours = encode_images(small.model.visual, pixels)
    assert torch.allclose(ours.reshape(theirs.shape), theirs, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lesson_is_the_chat_and_its_loss_is_that_of_transformers(
    small: Any, processor: Any, leaves: list[Image.Image], kind: Any
) -> None:
    rng = np.random.default_rng(0)
    lessons = Lessons(processor, Dialogues(VlTexts.load(), rng, tasks=3), rng, count=12)
    written = lessons.pool(kind, truth=3)[0]
    asked = written.asked
    parts = [{"type": "text", "text": asked.before}, {"type": "image"}, {"type": "text", "text": asked.after}]
    chat = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    leaf = leaves[3].resize((112, 112))
    inputs = processor(text=[chat], images=[leaf], return_tensors="pt")
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    tokens = torch.tensor([[*written.before, *[image] * 49, *written.after]])
    assert torch.equal(tokens, inputs["input_ids"])

    starts = torch.tensor([len(written.before)])
    pixels = torch.from_numpy(np.array(leaf)).permute(2, 0, 1)[None] / 127.5 - 1
    grid, kinds = inputs["image_grid_thw"], inputs["mm_token_type_ids"]
    theirs, _ = small.model.get_rope_index(tokens, mm_token_type_ids=kinds, image_grid_thw=grid)
    assert torch.equal(positions(starts, 49, tokens.shape[1]), theirs)
    weights = (tokens != image).float()
    with torch.inference_mode():
        ours = reply_loss(small, encode_images(small.model.visual, pixels)[1], tokens, weights, starts)
        logits = small(**inputs).logits[:, :-1]
    counted = weights[:, 1:] > 0
    expected = torch.nn.functional.cross_entropy(logits[counted], tokens[:, 1:][counted])
    assert float(ours) == pytest.approx(float(expected), abs=1e-4)


def test_a_reply_names_an_offered_label_and_agrees_with_the_belief() -> None:
    dialogues = Dialogues(VlTexts.load(), np.random.default_rng(1), tasks=8)
    for n in range(40):
        asked = dialogues.ask("second" if n % 2 else "first", truth=n % 4)
        belief = asked.belief(np.eye(4)[n % 4])
        # Nothing else is seen, so nothing else is believed.
        assert int(belief.argmax()) == n % 4
        assert belief.sum() == pytest.approx(1)
        said = json.loads(dialogues.reply(asked, n % 4, 0.875))
        assert said["label"] == asked.answers[n % 4]
        assert json.dumps(said["label"]) in asked.after
        assert said["confidence"] == 0.88


def test_the_letter_of_a_reply_stands_before_its_label() -> None:
    dialogues = Dialogues(VlTexts.load(), np.random.default_rng(2), tasks=8)
    for n in range(40):
        asked = dialogues.ask("letters", truth=n % 4)
        letter = dialogues.reply(asked, n % 4, 1.0)
        assert f"\n{letter}. " in asked.after
