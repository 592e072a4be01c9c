"""Adapters of both towers: what they change, what they must not, and what is kept, on tiny real models."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from secondlook.agents.adaptation import ABOUT, NUMBERS, Adaptation, AnyAdapter, read_adaptation
from secondlook.agents.adapted_encoder import AdaptedEncoder, adapted_agent
from secondlook.agents.adapter_training import adapt
from secondlook.agents.case import Case, Task
from secondlook.agents.clip_svd import ClipSvdSpec, decompose, weights_of
from secondlook.agents.clip_zero_shot import text_classifier
from secondlook.agents.embedder import Embedder
from secondlook.agents.encoder import EncoderSpec, OpenClipEncoder
from secondlook.agents.errors import ConfigError
from secondlook.agents.folds import grouped_folds
from secondlook.agents.maple import MapleSpec
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Prediction
from secondlook.agents.random_crops import random_crops
from secondlook.leaves import LABELS, Leaf, render_leaf

TASK = Task(labels=("red", "blue"), phrases={"red": ("a red thing", "something red")}, negatives=("a car",))
TEMPLATE = "a photo of {}"
PICTURES = [(colour, seed) for seed in range(6) for colour in ("red", "blue")]
TRUTH = np.array([TASK.labels.index(colour) for colour, _ in PICTURES], dtype=np.intp)
SPECS: tuple[AnyAdapter, ...] = (
    ClipSvdSpec(epochs=3, learning_rate=0.01, batch_size=5, smallest_crop=0.5),
    MapleSpec(epochs=3, learning_rate=0.01, warm_up=1),
)
both = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)


def photo(colour: str, seed: int) -> Photo:
    """A noisy picture of one colour."""
    noise = np.random.default_rng(seed).integers(0, 90, (32, 32, 3))
    full = np.array(Image.new("RGB", (32, 32), colour), dtype=np.int64)
    return Photo.of(np.clip(full * 2 // 3 + noise, 0, 255).astype(np.uint8), name=f"{colour}-{seed}")


@cache
def photos() -> tuple[Photo, ...]:
    return tuple(photo(colour, seed) for colour, seed in PICTURES)


def base(tiny_clip: Path) -> EncoderSpec:
    return EncoderSpec(model=str(tiny_clip))


Train = Callable[..., tuple[Path, Adaptation]]


@pytest.fixture
def train(tiny_clip: Path, tmp_path: Path) -> Train:
    def run(spec: AnyAdapter, name: str = "out", **changed: Any) -> tuple[Path, Adaptation]:
        out = tmp_path / name
        given: dict[str, Any] = {
            "spec": spec,
            "encoder": base(tiny_clip),
            "photos": photos(),
            "truth": TRUTH,
            "groups": [f"leaf {i}" for i in range(len(PICTURES))],
            "task": TASK,
            "templates": [TEMPLATE],
            "out": out,
            "device": "cpu",
        } | changed
        return out, adapt(**given)

    return run


@pytest.fixture(scope="module")
def kept(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a trained adapter; shared, so never written to."""
    out = tmp_path_factory.mktemp("kept") / "out"
    groups = [f"leaf {i}" for i in range(len(PICTURES))]
    spec = ClipSvdSpec(epochs=1, smallest_crop=1.0)
    adapt(spec, base(tiny_clip), photos(), TRUTH, groups, TASK, [TEMPLATE], out, device="cpu")
    return out


def inputs(encoder: OpenClipEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return images, encoder.towers.tokenizer(["a photo of a leaf", "a photo of a cat that sleeps"])


def vectors(encoder: OpenClipEncoder) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    images, tokens = inputs(encoder)
    model = encoder.towers.model
    with torch.no_grad():
        return model.encode_image(images).numpy(), model.encode_text(tokens).numpy()


def test_a_decomposed_model_is_the_original_to_rounding(tiny_clip: Path) -> None:
    encoder = OpenClipEncoder(base(tiny_clip), "cpu")
    before = vectors(encoder)
    adapter = decompose(weights_of(encoder.towers.model))
    for found in (vectors(encoder), (adapter.merge(), vectors(encoder))[1]):
        np.testing.assert_allclose(found[0], before[0], atol=1e-5)
        np.testing.assert_allclose(found[1], before[1], atol=1e-5)
    assert not any(parameter.requires_grad for parameter in encoder.towers.model.parameters())


def test_query_key_and_value_have_singular_values_of_their_own(tiny_clip: Path) -> None:
    model = OpenClipEncoder(base(tiny_clip), "cpu").towers.model
    attention = model.visual.transformer.resblocks[0].attn
    stacked = attention.in_proj_weight.detach().clone()
    trained = decompose(weights_of(model)).trained
    values = trained["visual.transformer.resblocks.0.attn.in_proj_weight"]
    expected = np.stack([np.linalg.svd(part, compute_uv=False) for part in stacked.numpy().reshape(3, 64, 64)])
    np.testing.assert_allclose(values.detach().numpy(), expected, rtol=1e-4)
    with torch.no_grad():
        values[1] *= 2
    np.testing.assert_allclose(attention.in_proj_weight.detach()[64:128], 2 * stacked[64:128], atol=1e-5)
    np.testing.assert_allclose(attention.in_proj_weight.detach()[:64], stacked[:64], atol=1e-5)


def test_directions_that_a_weight_does_not_have_are_not_learned() -> None:
    # A matrix of rank 1: its second pair of singular vectors could be any, on any machine.
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [2.0, 4.0]]))
    (values,) = decompose(weights_of(torch.nn.Sequential(layer))).trained.values()
    layer.weight.sum().backward()
    assert values.grad is not None
    assert values.grad[0, 0] != 0
    assert values.grad[0, 1] == 0


def test_convolutions_of_one_pixel_are_linear_layers_and_others_are_not() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, 1), torch.nn.Conv2d(6, 6, 3), torch.nn.Conv2d(6, 6, 1, groups=2), torch.nn.Linear(6, 2)
    )
    assert [(weight.path, weight.rank) for weight in weights_of(model)] == [("0.weight", 4), ("3.weight", 2)]
    images = torch.rand(1, 4, 5, 5)
    before = model[0](images)
    decompose(weights_of(model))
    torch.testing.assert_close(model[0](images), before)


def vit_b_16() -> Any:
    """The architecture alone: no number is ever made."""
    import open_clip

    config = open_clip.get_model_config("ViT-B-16")
    with torch.device("meta"):
        return open_clip.CLIP(**config)


def test_a_vit_b_16_has_as_many_singular_values_as_the_paper_trains() -> None:
    # 12 layers of 6 matrices (query, key, value, out, two of the perceptron), 768 in the image tower, 512 in the other.
    assert sum(weight.rank for weight in weights_of(vit_b_16())) == 12 * 6 * (768 + 512) == 92_160


def test_prompts_of_a_vit_b_16_are_as_many_as_the_paper_trains() -> None:
    from open_clip import get_tokenizer

    from secondlook.agents.encoder import Towers

    towers = Towers(vit_b_16(), (), (), get_tokenizer("ViT-B-16"), torch.device("meta"), torch.float32)
    adapter = MapleSpec().install(towers, TEMPLATE, 0)
    # 9 layers of 2 prompts of 512 numbers, and of a linear map from 512 to 768; the paper says 3.55 million.
    assert sum(each.numel() for each in adapter.trained.values()) == 9 * (2 * 512 + 513 * 768) == 3_555_072


def test_the_first_prompts_begin_as_the_words_they_replace(tiny_clip: Path) -> None:
    encoder = OpenClipEncoder(base(tiny_clip), "cpu")
    before, words = vectors(encoder)
    adapter = MapleSpec(depth=1).install(encoder.towers, TEMPLATE, 0)
    image, text = vectors(encoder)
    # With no deeper prompt in the text tower nothing has changed for it; the image tower sees two patches more.
    np.testing.assert_allclose(text, words, atol=1e-6)
    assert np.abs(image - before).max() > 1e-4
    assert set(adapter.trained) == {"text.0", "project.0.weight", "project.0.bias"}


def test_prompts_move_what_they_are_meant_to(tiny_clip: Path) -> None:
    encoder = OpenClipEncoder(base(tiny_clip), "cpu")
    adapter = MapleSpec(depth=9).install(encoder.towers, TEMPLATE, 0)
    # The text tower has one layer only, so that is how deep prompts go.
    assert sum(name.startswith("text.") for name in adapter.trained) == 1
    image, text = vectors(encoder)
    with torch.no_grad():
        adapter.trained["project.0.bias"][0] += 3
    assert np.abs(vectors(encoder)[0] - image).max() > 1e-4
    np.testing.assert_array_equal(vectors(encoder)[1], text)
    with torch.no_grad():
        adapter.trained["text.0"][0, 0] += 1
    assert np.abs(vectors(encoder)[1] - text).max() > 1e-4


def test_deep_prompts_replace_those_of_the_layer_before() -> None:
    import open_clip

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(
            embed_dim=16,
            vision_cfg={"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
            text_cfg={"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3},
        )
    encoder = OpenClipEncoder()
    tokenizer = open_clip.SimpleTokenizer(context_length=12)
    encoder._loaded_once = encoder.towers._replace(model=model.eval().requires_grad_(False), tokenizer=tokenizer)
    adapter = MapleSpec(depth=3, n_prompts=2).install(encoder.towers, TEMPLATE, 0)
    lengths: list[tuple[int, ...]] = []
    model.visual.transformer.resblocks[2].register_forward_hook(lambda _, x, y: lengths.append(tuple(y.shape)))
    tokens = tokenizer(["a photo of a leaf"])
    found = model.encode_image(torch.rand(2, 3, 16, 16)), model.encode_text(tokens)
    # A class token, four patches and two prompts in every layer; they are gone before pooling.
    assert lengths == [(2, 7, 32)]
    assert found[0].shape == (2, 16)
    sum(each.sum() for each in found).backward()
    for name, each in adapter.trained.items():
        assert each.grad is not None, name
        # The text prompts of the last layers still count, since they are read by attention within them.
        assert each.grad.abs().max() > 0, name


def test_towers_that_prompts_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"this encoder is a CLIP with a TimmModel"):
        MapleSpec().install(OpenClipEncoder(device="cpu").towers, TEMPLATE, 0)


def test_texts_without_room_for_prompts_are_refused(tiny_clip: Path) -> None:
    encoder = OpenClipEncoder(base(tiny_clip), "cpu")
    with pytest.raises(ConfigError, match="replaces the first 2 words"):
        MapleSpec().install(encoder.towers, "photo {}", 0)
    MapleSpec().install(encoder.towers, TEMPLATE, 0)
    with pytest.raises(ConfigError, match="A text is shorter than the prompts of maple"):
        encoder.encode_texts(["leaf"])


@both
def test_what_was_trained_is_what_is_loaded(spec: AnyAdapter, train: Train, tiny_clip: Path) -> None:
    told: list[Any] = []
    out, found = train(spec, progress=told.append)
    assert sorted(path.name for path in out.iterdir()) == [ABOUT, NUMBERS]
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert tuple(told) == found.curve
    assert [point.epoch for point in found.curve] == [0, 1, 2, 3]
    assert found.n_trained + found.best.n_held_out == len(PICTURES)
    assert read_adaptation(out).model_dump_json() == found.model_dump_json()
    encoder = AdaptedEncoder(out, "cpu")
    arrays = load_file(out / NUMBERS)
    assert sum(array.size for name, array in arrays.items() if name.startswith("trained.")) == found.n_numbers
    # The words that training kept are those of the loaded encoder, by the road that every encoder goes.
    again = text_classifier(encoder, TASK, [TEMPLATE])
    np.testing.assert_allclose(encoder.classifier.vectors, again.vectors, atol=1e-5)
    np.testing.assert_allclose(encoder.classifier.negatives, again.negatives, atol=1e-5)
    assert encoder.dim == 32
    assert encoder.logit_scale == pytest.approx(OpenClipEncoder(base(tiny_clip), "cpu").logit_scale)
    # And it is an agent.
    embedder = Embedder(encoder, threads=1)
    agent = adapted_agent(encoder, embedder)
    cases = [Case(id=str(i), photo=each) for i, each in enumerate(photos()[:2])]
    outcomes = asyncio.run(agent.predict(cases))
    embedder.close()
    assert agent.name == spec.name
    images = encoder.encode([encoder.preprocess(case.photo.view("whole")) for case in cases])
    for outcome, row in zip(outcomes, encoder.classifier.logits(images), strict=True):
        assert isinstance(outcome, Prediction)
        np.testing.assert_allclose(outcome.scores, row, atol=1e-4)


@both
def test_training_learns(spec: AnyAdapter, train: Train) -> None:
    longer = spec.model_copy(update={"epochs": 6, "smallest_crop": 1.0})
    out, found = train(longer, groups=["one"] * len(PICTURES))
    # Nothing can be held out, so the last epoch is kept.
    assert found.epoch == 6
    assert math.isnan(found.best.held_out_nll)
    assert found.n_trained == len(PICTURES)
    assert found.curve[-1].loss < found.curve[1].loss * 0.9
    encoder = AdaptedEncoder(out, "cpu")
    fresh = [photo(colour, seed) for colour, seed in PICTURES[:6]]
    embeddings = encoder.encode([encoder.preprocess(each.view("whole")) for each in fresh])
    assert (encoder.classifier.logits(embeddings).argmax(axis=1) == TRUTH[:6]).all()


@both
def test_the_same_seed_gives_the_same_numbers(spec: AnyAdapter, train: Train) -> None:
    spec = spec.model_copy(update={"epochs": 1})
    (one, _), (other, _) = train(spec, "one"), train(spec, "other")
    assert (one / NUMBERS).read_bytes() == (other / NUMBERS).read_bytes()
    assert AdaptedEncoder(one).digest == AdaptedEncoder(other).digest
    state = torch.random.get_rng_state()
    third, _ = train(spec, "third", seed=1)
    assert AdaptedEncoder(third).digest != AdaptedEncoder(one).digest
    torch.testing.assert_close(torch.random.get_rng_state(), state)


def test_an_adapter_that_makes_nothing_better_leaves_the_encoder_as_it_was(train: Train, tiny_clip: Path) -> None:
    # What is learned from are pictures of the other colour; the hold-out shows that it was wrong.
    leaves = [str(i) for i in range(len(PICTURES))]
    folds = grouped_folds(TRUTH, leaves, np.random.default_rng(0))
    assert folds is not None
    wrong = [photo({"red": "blue", "blue": "red"}[c] if f else c, s) for (c, s), f in zip(PICTURES, folds, strict=True)]
    out, found = train(ClipSvdSpec(epochs=4, learning_rate=0.02, smallest_crop=1.0), photos=wrong)
    assert found.curve[-1].loss < found.curve[1].loss
    assert found.epoch == 0
    frozen, adapted = OpenClipEncoder(base(tiny_clip), "cpu"), AdaptedEncoder(out, "cpu")
    assert adapted.digest != frozen.digest
    for one, other in zip(vectors(frozen), vectors(adapted), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_training_that_runs_away_says_so(train: Train) -> None:
    with pytest.raises(ConfigError, match="ran away in epoch 1"):
        train(ClipSvdSpec(epochs=1, learning_rate=1e30, batch_size=3), groups=["one"] * len(PICTURES))


def test_photos_that_cannot_be_read_are_left_out_and_named(train: Train) -> None:
    given = (Photo.of(b"", name="empty"), *photos()[1:])
    _, found = train(SPECS[0], photos=given)
    assert found.left_out == ("empty: is empty (0 bytes).",)
    assert found.n_trained + found.best.n_held_out == len(PICTURES) - 1


def test_a_label_without_images_is_named(train: Train) -> None:
    with pytest.raises(ConfigError, match="'blue' has none"):
        train(SPECS[0], truth=np.zeros(len(PICTURES), dtype=np.intp))


def test_a_place_that_is_taken_is_left_as_it_is(train: Train, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="exists already"):
        train(SPECS[0])


def test_a_training_that_is_stopped_leaves_nothing(train: Train, tmp_path: Path) -> None:
    def stop(point: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SPECS[0], progress=stop)
    assert not list(tmp_path.iterdir())


def spoil(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def arrays(out: Path) -> None:
        found = load_file(out / NUMBERS)
        change(found)
        save_file(found, out / NUMBERS)

    return arrays


FIRST = "trained.visual.transformer.resblocks.0.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / ABOUT).unlink(), "holds no adapter.json"),
        (lambda out: (out / ABOUT).write_text("{" * 10_000), "cannot be read as an adapted encoder"),
        (lambda out: (out / ABOUT).write_text(" " * 2**21), "too long"),
        (lambda out: (out / NUMBERS).write_bytes(b"\x00" * 100), "cannot be read as an adapted encoder"),
        (lambda out: (out / NUMBERS).unlink(), "cannot be read as an adapted encoder"),
        (spoil(lambda a: a.pop("classifier.vectors")), "lacks the array classifier.vectors"),
        (spoil(lambda a: a.pop(FIRST)), f"lacks the array {FIRST.removeprefix('trained.')}"),
        (spoil(lambda a: a.update({"trained.more": np.ones(1, np.float32)})), "surplus array more"),
        (spoil(lambda a: a.update({FIRST: a[FIRST][:, 1:]})), r"c_fc.weight: expected \[1, 64\], got \[1, 63\]"),
        (spoil(lambda a: a.update({FIRST: a[FIRST] * np.nan})), "not finite"),
        (spoil(lambda a: a.update({FIRST: -3 * a[FIRST][:, ::-1].copy()})), "made-up image otherwise"),
        (spoil(lambda a: a.update({"classifier.vectors": a["classifier.vectors"][:1]})), r"expected \[2, D\]"),
    ],
)
def test_a_damaged_folder_is_refused_in_words(
    damage: Callable[[Path], None], message: str, kept: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(kept, tmp_path / "copy"))
    damage(out)
    with pytest.raises(ConfigError, match=message):
        AdaptedEncoder(out, "cpu").encode_texts([AdaptedEncoder(out, "cpu").about.template])


def test_another_encoder_is_refused(kept: Path) -> None:
    with pytest.raises(ConfigError, match="adapts the encoder"):
        _ = AdaptedEncoder(kept, "cpu", EncoderSpec()).digest


def test_crops_are_parts_of_their_images_and_half_of_them_mirrored() -> None:
    # A ramp from left to right: a crop of it is a ramp within it, its slope the share of the width.
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64)
    crops = random_crops(ramp.expand(400, -1, -1, -1), 0.25, torch.Generator().manual_seed(0))
    middle = crops[:, 0, 32]
    assert float(crops.min()) >= 0
    assert float(crops.max()) <= 1
    slopes = (middle[:, 60] - middle[:, 3]) / (57 / 64)
    assert 0.4 < float((slopes < 0).float().mean()) < 0.6
    # sqrt(area / ratio) at its least, sqrt(0.25 * 3 / 4) = 0.433, and at its most the whole.
    assert 0.42 < float(slopes.abs().min()) < 0.55
    assert float(slopes.abs().max()) < 1.03
    torch.testing.assert_close(crops[:, 0, 5], crops[:, 0, 50])


def test_settings_are_json() -> None:
    for spec in SPECS:
        assert type(spec).model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValueError, match="template"):
        ClipSvdSpec(template="a photo")
    assert json.loads(ClipSvdSpec().model_dump_json())["kind"] == "clip-svd"


@pytest.mark.slow
def test_the_packaged_encoder_learns_words_it_does_not_know(tmp_path: Path) -> None:
    # Rendered leaves under names that mean nothing: without training, guesses; one label in four.
    phrases = {
        label: (f"group {number}",) for label, number in zip(LABELS, ("one", "two", "three", "four"), strict=True)
    }
    task, which = Task(labels=LABELS, phrases=phrases), [(y, seed) for y in range(4) for seed in range(500, 524)]
    leaves = [Photo.of(render_leaf(Leaf.grow(LABELS[y], seed), 0, 112).image) for y, seed in which]
    truth, groups = np.array([y for y, _ in which], dtype=np.intp), [f"{y} {seed}" for y, seed in which]
    train = np.array([seed < 516 for _, seed in which])
    rows, fresh = np.flatnonzero(train), np.flatnonzero(~train)
    spec = ClipSvdSpec(epochs=20, learning_rate=2e-2, batch_size=8, smallest_crop=0.5)
    given = [leaves[i] for i in rows], truth[rows], [groups[i] for i in rows]
    adapt(spec, EncoderSpec(), *given, task, [TEMPLATE], tmp_path / "out", device="cpu")

    def accuracy(encoder: OpenClipEncoder) -> float:
        images = encoder.encode([encoder.preprocess(leaves[i].view("whole")) for i in fresh])
        logits = text_classifier(encoder, task, [TEMPLATE]).logits(images)
        return float((logits.argmax(axis=1) == truth[fresh]).mean())

    before, after = accuracy(OpenClipEncoder(device="cpu")), accuracy(AdaptedEncoder(tmp_path / "out", "cpu"))
    assert after > before + 0.25
    assert after > 0.6
