"""Words learned through the text tower: it is OpenCLIP's own, and the descents are those of the papers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax
from scipy.stats import median_abs_deviation

from secondlook.agents.biomedcoop_head import BiomedCoopSpec, selected, teachers
from secondlook.agents.case import Task
from secondlook.agents.clip_zero_shot import TextClassifier, text_classifier
from secondlook.agents.coop_head import WARM_UP_RATE, ContextSpec, CoopSpec
from secondlook.agents.encoder import OpenClipEncoder, Towers
from secondlook.agents.errors import ConfigError
from secondlook.agents.lessons import Lessons
from secondlook.agents.text_tower import TextTower

Floats = NDArray[np.float64]
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
LABELS = ("red rust", "scab", "black rot of the leaf")
TEMPLATES = ("a photo of {}.", "a leaf with {}.")

TOWERS: dict[str, tuple[bool, dict[str, Any]]] = {
    "CLIP": (False, {}),
    "custom text": (True, {}),
    "pooled at the end token by its id": (True, {"pool_type": "eos", "eos_id": 49407}),
    "CLIP pooled by its id": (False, {"pool_type": "eos", "eos_id": 49407}),
    "sees ahead, pooled at the last token": (True, {"pool_type": "last", "no_causal_mask": True, "proj_bias": True}),
    "sees back, pooled at the last token": (True, {"pool_type": "last"}),
    "sees ahead, pooled at the first token": (True, {"pool_type": "first", "no_causal_mask": True}),
    "no projection": (True, {"proj_type": "none"}),
}


@cache
def towers(kind: str) -> Towers:
    """A model of random weights whose text tower is of a kind."""
    import open_clip
    import torch

    custom, settings = TOWERS[kind]
    make = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(32, VISION, {**TEXT, **settings}).eval().requires_grad_(False)
    return wrapped(model, open_clip.get_tokenizer("ViT-B-32", context_length=24))


def wrapped(model: Any, tokenizer: Any) -> Towers:
    import torch

    return Towers(model, (), (), tokenizer, torch.device("cpu"), torch.float32)


class NoStart:
    """CLIP's tokenizer as those are that begin with the word itself and close with padding."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: list[str]) -> Any:
        import torch

        ids = self.tokenizer(texts)
        ids = torch.where(ids >= 49406, 0, ids)[:, 1:]
        return torch.cat([ids, torch.zeros_like(ids[:, :1])], dim=1)


@cache
def leaf_tiny() -> OpenClipEncoder:
    return OpenClipEncoder(device="cpu")


def sentences(tower: TextTower, words: str) -> NDArray[np.float32]:
    context = tower.words(words)
    found: NDArray[np.float32] = tower.encode(
        tower.prompts([f"{label}." for label in LABELS], len(context)), context
    ).numpy()
    return found


@pytest.mark.parametrize("words", ["a photo of a", "a", "a blurred, old picture, once more, of"])
@pytest.mark.parametrize("kind", [*TOWERS, "leaf-tiny", "no start token"])
def test_with_the_words_own_embeddings_a_prompt_is_its_sentence(kind: str, words: str) -> None:
    import torch

    if kind == "no start token":
        plain = towers("sees ahead, pooled at the last token")
        found = plain._replace(tokenizer=NoStart(plain.tokenizer))
    else:
        found = leaf_tiny().towers if kind == "leaf-tiny" else towers(kind)
    with torch.no_grad():
        expected = found.model.encode_text(found.tokenizer([f"{words} {label}." for label in LABELS]), normalize=True)
        vectors = sentences(TextTower(found), words)
    np.testing.assert_allclose(vectors, expected.numpy(), atol=2e-6)


@pytest.mark.parametrize("kind", ["CLIP", "sees ahead, pooled at the last token"])
def test_each_prompt_may_have_a_context_of_its_own(kind: str) -> None:
    import torch

    tower = TextTower(towers(kind))
    contexts = torch.stack([tower.words(words) for words in ("one red", "two blue", "no green")])
    prompts = tower.prompts(LABELS, 2)
    together = tower.encode(prompts, contexts)
    for row, context in enumerate(contexts):
        torch.testing.assert_close(tower.encode(prompts, context)[row], together[row], atol=2e-6, rtol=0)


def test_the_gradient_is_the_contexts_alone() -> None:
    import torch

    found = towers("CLIP")
    tower, direction = TextTower(found), torch.from_numpy(np.random.default_rng(0).normal(size=(2, 32))).float()
    prompts, context = tower.prompts(LABELS, 2), tower.words("a photo").requires_grad_()

    def height(at: torch.Tensor) -> torch.Tensor:
        return tower.encode(prompts, at)[:, :3].sum()

    height(context).backward()
    assert context.grad is not None
    with torch.no_grad():
        step = 1e-2 * direction * context.abs().mean()
        difference = height(context + step) - height(context - step)
        assert float((context.grad * 2 * step).sum()) == pytest.approx(float(difference), rel=0.02)
    assert all(parameter.grad is None for parameter in found.model.parameters())


def test_a_text_that_leaves_no_room_is_named() -> None:
    tower = TextTower(towers("CLIP"))
    text = "leaf " * 18  # 20 tokens with the start and the end
    assert tower.prompts([text], 4).ends.tolist() == [23]
    with pytest.raises(ConfigError, match="5 learned words are longer than the encoder's 24 tokens") as error:
        tower.prompts(["leaf", text], 5)
    assert "'leaf leaf" in error.value.what
    with pytest.raises(ConfigError, match="longer"):
        tower.prompts(["leaf " * 100], 1)


def hugging_face(folder: Path) -> Any:
    from open_clip.hf_model import HFTextEncoder
    from transformers import BertConfig

    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertConfig(vocab_size=99, **sizes).save_pretrained(folder)
    model = towers("custom text").model.__class__(32, VISION, TEXT)
    model.text = HFTextEncoder(str(folder), output_dim=32, pooler_type="mean_pooler", pretrained=False)
    return model


def coca(_: Path) -> Any:
    import open_clip

    decoder = {**TEXT, "layers": 1}
    return open_clip.CoCa(32, decoder, {**TEXT, "embed_cls": True, "output_tokens": True}, VISION)


@pytest.mark.parametrize(("make", "named"), [(hugging_face, "HFTextEncoder"), (coca, "TextTransformer")])
def test_other_text_towers_are_refused(make: Callable[[Path], Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named) as error:
        TextTower(wrapped(make(tmp_path), towers("CLIP").tokenizer))
    assert error.value.remedy


def lessons(
    n_each: int = 4, scale: float = 20.0, phrases: dict[str, tuple[str, ...]] | None = None, noise: float = 0.05
) -> Lessons:
    """Images around the sentences of other words: a context is there to be found."""
    encoder, rng = leaf_tiny(), np.random.default_rng(0)
    task = Task(labels=LABELS, phrases=phrases or {})
    hidden = encoder.encode_texts([f"brown leaf leaf orange {task.phrases_of(label)[0]}." for label in LABELS])
    truth = np.repeat(np.arange(len(LABELS)), n_each)
    vectors = hidden[truth] + noise * rng.normal(size=(len(truth), encoder.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words = text_classifier(encoder, task, TEMPLATES)
    classifier = TextClassifier(words.vectors, words.negatives, scale)
    groups = tuple(map(str, range(len(truth))))
    return Lessons(vectors, truth, groups, task, classifier, TEMPLATES, encoder)


def loss(logits: Floats, truth: NDArray[np.intp]) -> float:
    return -float(log_softmax(logits, axis=1)[np.arange(len(truth)), truth].mean())


CONTEXTS: dict[str, ContextSpec] = {
    "words": CoopSpec(),
    "drawn": CoopSpec(words=None),
    "each label its own": CoopSpec(per_label=True),
    "each drawn": CoopSpec(words=None, per_label=True),
    "biomedcoop": BiomedCoopSpec(),
}


@pytest.mark.parametrize("spec", CONTEXTS.values(), ids=CONTEXTS)
def test_learning_lowers_the_cross_entropy(spec: ContextSpec) -> None:
    problem = lessons()
    short = spec.model_copy(update={"steps": 1})
    # The first step is at the low rate of the warm-up: next to nothing is learned in it.
    before = loss(short.fit(problem).logits(problem.vectors), problem.truth)
    after = loss(spec.model_copy(update={"steps": 60}).fit(problem).logits(problem.vectors), problem.truth)
    assert after < before - 0.01


def test_the_first_steps_are_those_of_descent_with_momentum() -> None:
    import torch

    problem, rate = lessons(), 0.05
    tower = TextTower(leaf_tiny().towers)
    context = tower.words("a photo of")
    prompts = tower.prompts([f"{label}." for label in LABELS], len(context))
    velocity = torch.zeros_like(context)
    # Two steps: the first at the warm-up's rate, the second at the middle of the cosine, rate (1 + cos(pi / 2)) / 2.
    for now in (WARM_UP_RATE, rate / 2):
        at = context.clone().requires_grad_()
        logits = 20.0 * torch.from_numpy(problem.vectors) @ tower.encode(prompts, at).T
        picked = logits.log_softmax(dim=1)[range(len(problem)), problem.truth]
        (gradient,) = torch.autograd.grad(-picked.mean(), at)
        velocity = 0.9 * velocity + gradient + 5e-4 * context
        context = context - now * velocity
    found = CoopSpec(steps=2, rate=rate).fit(problem)
    np.testing.assert_allclose(found.vectors, tower.encode(prompts, context).numpy(), atol=1e-6)


def test_the_steps_are_by_the_images_of_a_label() -> None:
    assert [CoopSpec().steps_for(lessons(n)) for n in (1, 2, 4, 5, 16)] == [50, 100, 100, 200, 200]
    assert CoopSpec(steps=7).steps_for(lessons(1)) == 7


def test_a_drawn_context_is_drawn_from_the_seed() -> None:
    spec, problem = CoopSpec(words=None, steps=1), lessons()
    first, again, other = (spec.fit(replace(problem, seed=seed)).vectors for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4


def test_vectors_are_unit_and_the_scale_is_the_checkpoints() -> None:
    head = CoopSpec(steps=3).fit(lessons(scale=17.0))
    np.testing.assert_allclose(np.linalg.norm(head.vectors, axis=1), 1, atol=1e-6)
    assert head.scale == 17.0


def test_what_cannot_be_learned_is_said() -> None:
    with pytest.raises(ConfigError, match="did not converge"):
        CoopSpec(steps=3).fit(lessons(scale=3e38))
    with pytest.raises(ConfigError, match="words has none"):
        CoopSpec(words="").fit(lessons())
    two = lessons().part(lessons().truth != 1)
    with pytest.raises(ConfigError, match="'scab' has 0"):
        CoopSpec().fit(two)


def test_descriptions_of_labels_with_fewer_are_repeated_in_turn() -> None:
    problem = lessons(phrases={"scab": ("scab", "dark blotches", "spots")})
    found = teachers(problem)
    assert found.shape == (3, 3 * 2, 128)  # three descriptions in two templates
    texts = [t.replace("{}", p) for p in ("scab", "dark blotches", "spots") for t in TEMPLATES]
    np.testing.assert_allclose(found[1], leaf_tiny().encode_texts(texts), atol=1e-6)
    np.testing.assert_array_equal(found[0, :2], found[0, 2:4])


def test_the_further_terms_are_those_of_the_paper() -> None:
    import torch

    problem, rng = lessons(phrases={"scab": ("scab", "dark blotches")}), np.random.default_rng(0)
    vectors, logits = rng.normal(size=(3, 128)), rng.normal(size=(len(problem), 3))
    spec = BiomedCoopSpec(near=2.0, alike=3.0, spread=100.0)
    penalty = spec.penalty(problem, torch.device("cpu"))
    found = penalty(torch.from_numpy(vectors).float(), torch.from_numpy(logits).float())
    mean = teachers(problem).mean(axis=1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    near = ((vectors - mean) ** 2).mean()
    zero_shot, student = log_softmax(20.0 * problem.vectors @ mean.T, axis=1), log_softmax(logits, axis=1)
    alike = (np.exp(zero_shot) * (zero_shot - student)).mean()  # the mean over N K entries, as the paper's code has it
    assert float(found) == pytest.approx(2 * near + 3 * alike, rel=1e-5)


def test_heavy_terms_keep_the_labels_where_their_descriptions_are() -> None:
    problem = lessons()
    target = teachers(problem).mean(axis=1)
    target /= np.linalg.norm(target, axis=1, keepdims=True)

    def cosine(near: float) -> float:
        spec = BiomedCoopSpec(steps=80, rate=0.1, near=near, alike=0)
        return float((spec.fit(problem).vectors * target).sum(axis=1).mean())

    assert cosine(1000.0) > cosine(0.0) + 0.01


@given(st.integers(2, 30), st.integers(0, 1000), st.sampled_from([0.5, 1.0, 1.5, 2.0]))
def test_standardising_by_the_median_first_selects_the_same_sentences(n: int, seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    images, sentences = rng.normal(size=(4, 5)), rng.standard_t(2, size=(3, n, 5))
    scores = (7.0 * np.einsum("nd,kid->nki", images, sentences)).max(axis=1).mean(axis=0)
    robust = (scores - np.median(scores)) / median_abs_deviation(scores)
    z = np.abs(robust - robust.mean()) / robust.std(ddof=1)
    if np.abs(z - spread).min() > 1e-9:
        np.testing.assert_array_equal(selected(7.0, images, sentences, spread), z <= spread)


@pytest.mark.parametrize("n", [1, 3])
def test_sentences_that_score_alike_are_all_kept(n: int) -> None:
    assert selected(1.0, np.ones((2, 1)), np.ones((2, n, 1)), 1.5).all()
