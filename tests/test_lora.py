"""An adapter learns what its scores are used for, goes on after a kill as if nothing had been, and is peft's own."""

from __future__ import annotations

import asyncio
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny_qwen_vl import write_tiny_qwen_vl

from secondlook.agents import lora
from secondlook.agents.case import Case, Task
from secondlook.agents.errors import ConfigError
from secondlook.agents.label_likelihoods import label_scores, replies_of
from secondlook.agents.lora import CurvePoint, FineTuned, LoraSettings, fine_tune
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Prediction
from secondlook.agents.qwen_model import Asked, load_model
from secondlook.agents.qwen_vl import QwenSpec, QwenVl
from secondlook.agents.training_state import STATE, TrainingState
from secondlook.agents.vlm_question import VlmQuestion

TASK = Task(labels=("red", "green", "blue"))
COLOURS = ((200, 40, 30), (40, 180, 50), (40, 60, 210))
SETTINGS = LoraSettings(learning_rate=2e-2, epochs=4, batch_size=6, at_once=6, folds=3, save_every=1)


def square(label: int, number: int) -> Photo:
    noise = np.random.default_rng([label, number]).normal(0, 20, (32, 32, 3))
    return Photo.of((np.array(COLOURS[label]) + noise).clip(0, 255).astype(np.uint8), name=f"{label}-{number}")


TRUTH = [i % 3 for i in range(18)]
PHOTOS = [square(label, i) for i, label in enumerate(TRUTH)]
LABELS = [TASK.labels[label] for label in TRUTH]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_qwen_vl(tmp_path_factory.mktemp("models") / "tiny-qwen")


def tune(tiny: Path, out: Path, settings: LoraSettings = SETTINGS) -> FineTuned:
    return fine_tune(tiny, PHOTOS, LABELS, TASK, out, settings, device="cpu")


@pytest.fixture(scope="module")
def tuned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    return tune(tiny, tmp_path_factory.mktemp("tuned"))


def predictions(tiny: Path, adapter: Path | None, photos: list[Photo]) -> list[Prediction]:
    spec = QwenSpec(model=str(tiny), adapter=str(adapter) if adapter else None)
    cases = [Case(id=str(i), photo=photo) for i, photo in enumerate(photos)]
    found = asyncio.run(QwenVl(spec, TASK, "cpu").predict(cases))
    return [outcome for outcome in found if isinstance(outcome, Prediction)]


def test_it_learns_coloured_squares(tiny: Path, tuned: FineTuned) -> None:
    assert [point.epoch for point in tuned.curve] == [0, 1, 2, 3, 4]
    assert tuned.best.held_out_nll < tuned.curve[0].held_out_nll - 0.3
    assert tuned.best.held_out_accuracy > tuned.curve[0].held_out_accuracy
    # By hand: 6 photos a colour dealt to 3 folds, one of them held out.
    assert (tuned.n_trained, tuned.best.n_held_out, tuned.left_out) == (12, 6, ())
    fresh = [square(label, 1000 + i) for i, label in enumerate(TRUTH)]
    right = [said.top == label for said, label in zip(predictions(tiny, tuned.folder, fresh), TRUTH, strict=True)]
    assert np.mean(right) > 0.8


def test_agents_of_one_model_each_have_their_own_adapter_or_none(tiny: Path, tuned: FineTuned, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    doubled = shutil.copytree(tuned.folder, tmp_path / "doubled") / "adapter_model.safetensors"
    save_file({name: each * 2 for name, each in load_file(doubled).items()}, doubled, {"format": "pt"})
    adapters = (None, tuned.folder, doubled.parent)
    once, twice = ([predictions(tiny, adapter, PHOTOS[:3]) for adapter in adapters] for _ in range(2))
    for first, second in zip(once, twice, strict=True):
        assert [said.scores for said in first] == [said.scores for said in second], "loading one changes no other"
    assert not np.allclose(once[0][0].scores, once[1][0].scores, atol=1e-2)
    assert not np.allclose(once[1][0].scores, once[2][0].scores, atol=1e-2)
    specs = [QwenSpec(model=str(tiny), adapter=str(adapter) if adapter else None) for adapter in adapters]
    assert len({QwenVl(spec, TASK, "cpu").key(Case(id="a", photo=PHOTOS[0])) for spec in specs}) == 3


def test_peft_itself_loads_the_adapter_and_scores_alike(tiny: Path, tuned: FineTuned) -> None:
    import torch
    from peft import PeftModel

    qwen = load_model(tiny, "cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft asks transformers for it
        adapted = PeftModel.from_pretrained(qwen.model, str(tuned.folder))
    qwen.model = adapted.base_model.model
    asked = Asked(VlmQuestion(TASK, "").text(Case(id="", photo=PHOTOS[0])), (PHOTOS[0].pixels(),))
    with torch.inference_mode():
        theirs = label_scores(qwen, qwen.inputs([asked]), replies_of(TASK.labels, qwen.processor.tokenizer))
    (ours,) = predictions(tiny, tuned.folder, PHOTOS[:1])
    np.testing.assert_allclose(theirs[0].numpy(), ours.scores, atol=1e-4)


class Killed(BaseException):
    """What a test throws where a process would be killed."""


@pytest.mark.parametrize("steps", [5])
def test_a_training_that_was_killed_goes_on_to_the_same_curve(
    tiny: Path, tuned: FineTuned, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    done = 0
    whole = TrainingState.step

    def step(self: TrainingState, loss: float, learning_rate: float, *, save: bool) -> None:
        nonlocal done
        whole(self, loss, learning_rate, save=save)
        done += 1
        if done == steps:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "step", step)
        with pytest.raises(Killed):
            tune(tiny, tmp_path)
    done = 100
    monkeypatch.setattr(TrainingState, "step", step)
    resumed = tune(tiny, tmp_path)
    assert done == 100 + 4 * 2 - steps, "no batch is trained twice"
    assert [point.model_dump_json() for point in resumed.curve] == [point.model_dump_json() for point in tuned.curve]
    assert (tmp_path / "curve.jsonl").read_bytes() == (tuned.folder / "curve.jsonl").read_bytes()
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tuned.folder))
    assert ours.keys() == theirs.keys()
    assert all(bool((ours[name] == theirs[name]).all()) for name in ours)


def test_a_finished_training_is_not_trained_again_and_the_best_epoch_is_kept(
    tiny: Path, tuned: FineTuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "save_adapter", lambda *_: pytest.fail("written again"))
    again = tune(tiny, tuned.folder)
    assert again.best == tuned.best == min(tuned.curve, key=lambda point: point.held_out_nll)
    lines = (tuned.folder / "curve.jsonl").read_text().splitlines()
    assert [CurvePoint.model_validate_json(line).held_out_nll for line in lines] == [
        point.held_out_nll for point in tuned.curve
    ]
    assert json.loads(lines[0])["loss"] is None
    assert not any(path.suffix in (".pt", ".pth", ".bin", ".pkl", ".new") for path in tuned.folder.iterdir())


def test_groups_stay_together_and_unreadable_photos_are_named(tiny: Path, tmp_path: Path) -> None:
    photos = [*PHOTOS[:12], Photo.of(b"no image", name="bad.jpg")]
    groups = [f"leaf {i // 6}" for i in range(13)]
    settings = SETTINGS.model_copy(update={"epochs": 1, "folds": 2})
    seen: list[CurvePoint] = []
    found = fine_tune(tiny, photos, LABELS[:13], TASK, tmp_path, settings, seen.append, groups=groups, device="cpu")
    # By hand: two groups of six, one of them held out.
    assert (found.n_trained, found.best.n_held_out) == (6, 6)
    assert len(found.left_out) == 1
    assert "bad.jpg" in found.left_out[0]
    assert [point.epoch for point in seen] == [0, 1]


def test_what_cannot_be_trained_is_said_with_a_remedy(tiny: Path, tuned: FineTuned, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    before = predictions(tiny, None, PHOTOS[:1])
    with pytest.raises(ConfigError, match="another training"):
        tune(tiny, tuned.folder, SETTINGS.model_copy(update={"rank": 4}))
    with pytest.raises(ConfigError, match="none of the task's"):
        fine_tune(tiny, PHOTOS[:2], ["red", "pink"], TASK, tmp_path, device="cpu")
    with pytest.raises(ConfigError, match="only one group"):
        fine_tune(tiny, PHOTOS[:3], LABELS[:3], TASK, tmp_path, device="cpu")
    (tmp_path / STATE).write_bytes(b"cut short")
    with pytest.raises(ConfigError, match="is damaged"):
        tune(tiny, tmp_path)
    other = write_tiny_qwen_vl(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="trained on another model"):
        predictions(other, tuned.folder, PHOTOS[:1])
    foreign = shutil.copytree(tuned.folder, tmp_path / "foreign")
    weights = load_file(foreign / "adapter_model.safetensors")
    save_file(
        {name.replace("layers.0", "layers.7"): each for name, each in weights.items()},
        foreign / "adapter_model.safetensors",
    )
    with pytest.raises(ConfigError, match="does not fit"):
        predictions(tiny, foreign, PHOTOS[:1])
    config = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps({**config, "r": 2}))
    with pytest.raises(ConfigError, match=r"cannot be loaded|does not fit"):
        predictions(tiny, foreign, PHOTOS[:1])
    assert predictions(tiny, None, PHOTOS[:1])[0].scores == before[0].scores, "the model is none the worse"
