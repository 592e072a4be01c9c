"""Label likelihoods are the model's own, whatever is asked beside them; a local model's words become outcomes."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_qwen_vl import write_tiny_qwen_vl

from secondlook.agents.base import Agent
from secondlook.agents.case import Case, Evidence, Neighbour, Task
from secondlook.agents.errors import ConfigError
from secondlook.agents.label_likelihoods import label_scores, letter_scores, letter_tokens, replies_of
from secondlook.agents.photo import Photo
from secondlook.agents.pictures import show
from secondlook.agents.prediction import Failure, Outcome, Prediction
from secondlook.agents.qwen_model import Asked, QwenModel, load_model, shared_model
from secondlook.agents.qwen_vl import QwenSpec, QwenVl

TASK = Task(labels=("red", "reddish-green", 'a "b" <|im_end|>', "(x"), phrases={"red": ("a red square",)})
SIZES = ((32, 32), (64, 32), (40, 64), (32, 48))


def photo(number: int) -> Photo:
    width, height = SIZES[number % len(SIZES)]
    noise = np.random.default_rng(number).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    return Photo.of(noise.repeat(4, axis=0).repeat(4, axis=1), name=f"photo {number}")


def case(number: int, **more: Any) -> Case:
    return Case(id=f"{number}", photo=photo(number), **more)


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a real Qwen2.5-VL of random weights; shared, so never written to."""
    return write_tiny_qwen_vl(tmp_path_factory.mktemp("models") / "tiny-qwen")


@pytest.fixture(scope="session")
def qwen(tiny_qwen: Path) -> QwenModel:
    return shared_model(tiny_qwen, "cpu")


def ask(agent: Agent, cases: Sequence[Case]) -> list[Outcome]:
    return asyncio.run(agent.predict(cases))


def scores(outcomes: Sequence[Outcome]) -> np.ndarray:
    assert all(isinstance(outcome, Prediction) for outcome in outcomes), outcomes
    return np.array([outcome.scores for outcome in outcomes if isinstance(outcome, Prediction)])


QUESTIONS = (
    Asked("What?", (photo(0).pixels(),)),
    Asked("What is it, I ask of you, now?", (photo(1).pixels(),)),
    Asked("Hm", (photo(2).pixels(), photo(3).pixels())),
)
"""Pictures of different sizes and numbers, texts of different lengths."""


def one_by_one(qwen: QwenModel, asked: Asked, ending: Sequence[int], beginning: Sequence[int]) -> list[float]:
    """Log-probability of each token of a label, from one pass over the whole sequence, nothing kept."""
    import torch

    inputs = qwen.inputs([asked])
    ids = torch.tensor([[*inputs["input_ids"][0].tolist(), *beginning, *ending]])
    kinds = torch.zeros_like(ids)
    kinds[:, : inputs["mm_token_type_ids"].shape[1]] = inputs["mm_token_type_ids"]
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
    with torch.inference_mode():
        log_p = qwen.model(**inputs, use_cache=False).logits[0].log_softmax(dim=-1)
    start = ids.shape[1] - len(ending)
    return [float(log_p[start - 1 + j, token]) for j, token in enumerate(ending)]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_batched_likelihoods_are_those_of_plain_loops_over_whole_sequences(family: Any, tmp_path: Path) -> None:
    import torch

    qwen = load_model(write_tiny_qwen_vl(tmp_path, family), "cpu")
    replies = replies_of(TASK.labels, qwen.processor.tokenizer)
    with qwen.using(), torch.inference_mode():
        together = label_scores(qwen, qwen.inputs(QUESTIONS), replies).numpy()
        summed = label_scores(qwen, qwen.inputs(QUESTIONS), replies, "none").numpy()
        alone = np.concatenate([label_scores(qwen, qwen.inputs([each]), replies).numpy() for each in QUESTIONS])
    looped = [[one_by_one(qwen, each, ending, replies.beginning) for ending in replies.endings] for each in QUESTIONS]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_allclose(together, [[np.mean(tokens) for tokens in row] for row in looped], atol=1e-4)
    np.testing.assert_allclose(summed, [[np.sum(tokens) for tokens in row] for row in looped], atol=1e-4)
    assert (np.ptp(together, axis=0) > 1e-3).all(), "the questions and pictures are not told apart"


def test_replies_are_cut_as_in_running_text_and_no_label_becomes_a_token_of_control(qwen: QwenModel) -> None:
    tokenizer = qwen.processor.tokenizer
    replies = replies_of(TASK.labels, tokenizer)
    written = [tokenizer.decode([*replies.beginning, *ending]) for ending in replies.endings]
    assert [json.loads(text.removesuffix(",") + "}")["label"] for text in written[:2]] == ["red", "reddish-green"]
    # By hand: the shared beginning ends before the label, though two labels begin alike.
    assert tokenizer.decode(replies.beginning) == '{"label": "'
    control = set(tokenizer.all_special_ids)
    assert not control & {token for ending in replies.endings for token in ending}
    with pytest.raises(ConfigError, match="same tokens"):
        replies_of(("x" * 500, "x" * 501), tokenizer)


def test_the_library_pipeline_gives_the_same_probabilities_of_letters(qwen: QwenModel) -> None:
    import torch
    from transformers import pipeline
    from transformers.decision.template_utils import DECISION_PROMPT, Question
    from transformers.utils.chat_template_utils import _compile_jinja_template

    criteria = {"red": "a red square", "green": None, "blue": "a blue one"}
    question = {"type": "choice", "instructions": "What does the picture show?", "criteria": criteria}
    pictures = [photo(number).pixels() for number in range(3)]
    tokenizer = qwen.processor.tokenizer
    before = len(tokenizer)
    decide = pipeline("decision", model=qwen.model, processor=qwen.processor, tokenizer=tokenizer)
    answers = [
        decide({"state": "img-1", "questions": {"which": question}, "assets": {"img-1": picture}})["which"]
        for picture in pictures
    ]
    parsed = Question.from_request("which", question, decide.decision_config)
    text = _compile_jinja_template(DECISION_PROMPT).render(state="", question=parsed)
    with torch.inference_mode():
        inputs = qwen.inputs([Asked(text, (picture,)) for picture in pictures])
        ours = letter_scores(qwen, inputs, letter_tokens(3, tokenizer)).exp().numpy()
    theirs = [[answer["probabilities"][name] for name in criteria] for answer in answers]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert len(tokenizer) == before + 2, "the pipeline adds its two marks; they are in no text of ours"


def test_letters_are_averaged_over_orders_of_the_options(tiny_qwen: Path, qwen: QwenModel) -> None:
    import torch

    cases = [case(i) for i in range(3)]
    spec = QwenSpec(model=str(tiny_qwen), belief="letters", permutations=4)
    agent = QwenVl(spec, TASK, "cpu")
    found = scores(ask(agent, cases))
    # By hand: order t lists label (i + t) mod 4 at letter i.
    total = np.zeros((3, 4))
    for turn in range(4):
        order = [(i + turn) % 4 for i in range(4)]
        asked = [Asked(agent._question.text(each, order), (each.photo.pixels(),)) for each in cases]
        with torch.inference_mode():
            rows = letter_scores(qwen, qwen.inputs(asked), letter_tokens(4, qwen.processor.tokenizer)).numpy()
        for i, label in enumerate(order):
            total[:, label] += rows[:, i]
    np.testing.assert_allclose(found, total / 4, atol=1e-4)
    once = QwenVl(spec.model_copy(update={"permutations": 1}), TASK, "cpu")
    assert not np.allclose(scores(ask(once, cases)), found, atol=1e-3)
    assert (agent.cost, once.cost) == ({"vlm_calls": 4.0}, {"vlm_calls": 1.0})


@pytest.mark.parametrize("belief", ["likelihood", "letters"])
def test_an_answer_does_not_depend_on_the_batch(tiny_qwen: Path, belief: Any) -> None:
    cases = [case(i) for i in range(5)]
    cases[1] = cases[1].model_copy(
        update={"evidence": Evidence(neighbours=(Neighbour(id="n", label="red", similarity=0.9),))}
    )
    agents = [QwenVl(QwenSpec(model=str(tiny_qwen), belief=belief, batch_size=n), TASK, "cpu") for n in (1, 2, 8)]
    rows = [scores(ask(agent, cases)) for agent in agents]
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-4)
    np.testing.assert_allclose(rows[2], rows[0], atol=1e-4)
    outcomes = ask(agents[2], cases)
    assert [outcome.look for outcome in outcomes] == [1, 2, 1, 1, 1]
    assert all(isinstance(o, Prediction) and o.scale == "logit" and len(o.prompt) == 64 for o in outcomes)
    assert all(outcome.cost.vlm_calls == 1 and outcome.cost.seconds > 0 for outcome in outcomes)


def test_a_picture_that_cannot_be_read_is_a_failure_of_its_case_alone(tiny_qwen: Path) -> None:
    agent = QwenVl(QwenSpec(model=str(tiny_qwen)), TASK, "cpu")
    bad = Case(id="bad", photo=Photo.of(b"no image", name="bad.jpg"))
    first, failed, last = ask(agent, [case(0), bad, case(1)])
    assert isinstance(failed, Failure)
    assert "bad.jpg" in failed.error
    assert failed.retry_after_s is None
    np.testing.assert_allclose(scores([first, last]), scores(ask(agent, [case(0), case(1)])), atol=1e-4)
    assert len(agent.key(bad)) == 64
    assert ask(agent, []) == []
    assert isinstance(ask(agent, [bad])[0], Failure)


def with_neighbours(paths: Sequence[Path]) -> Case:
    neighbours = [
        Neighbour(id=path.name, label="red", similarity=0.9 - i / 10, path=str(path)) for i, path in enumerate(paths)
    ]
    return case(0, evidence=Evidence(neighbours=tuple(neighbours)))


def test_pictures_of_neighbours_are_shown_where_they_can_be_read(tiny_qwen: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i in (1, 2, 3):
        photo(i).pixels().save(paths[i])
    paths[0].write_bytes(b"no image")
    asked = with_neighbours([tmp_path / "missing.png", *paths])
    seen = show(asked, 2)
    assert [each.name for each in seen.photos] == ["photo 0", "1.png", "2.png"]
    agent = QwenVl(QwenSpec(model=str(tiny_qwen), n_pictures=2), TASK, "cpu")
    assert "After it stand 2 of the similar ones" in agent._question.text(seen.case)
    with_two, without = (
        scores(ask(QwenVl(QwenSpec(model=str(tiny_qwen), n_pictures=n), TASK, "cpu"), [asked])) for n in (2, 0)
    )
    assert not np.allclose(with_two, without, atol=1e-3)
    together = scores(ask(agent, [case(3), asked]))
    np.testing.assert_allclose(together[1:], with_two, atol=1e-4)


def test_the_key_names_all_that_decides_an_answer(tiny_qwen: Path, tmp_path: Path) -> None:
    spec = QwenSpec(model=str(tiny_qwen))
    other = write_tiny_qwen_vl(tmp_path / "other", seed=1)
    evidence = Evidence(neighbours=(Neighbour(id="n", label="red", similarity=0.9),))

    def key(asked: Case, **settings: Any) -> str:
        return QwenVl(spec.model_copy(update=settings), TASK, "cpu").key(asked)

    same = {key(case(0)), key(case(0)), key(case(0), batch_size=1)}
    assert len(same) == 1
    different = [
        key(case(1)),
        key(case(0, evidence=evidence)),
        key(case(0, draw=1)),
        key(case(0), belief="letters"),
        key(case(0), belief="letters", permutations=2),
        key(case(0), belief="stated"),
        key(case(0), normalise="none"),
        key(case(0), max_pixels=1000),
        key(case(0), reason=True),
        key(case(0), model=str(other)),
        QwenVl(spec, TASK.model_copy(update={"phrases": {}}), "cpu").key(case(0)),
    ]
    assert len({*same, *different}) == 12
    copy = shutil.copytree(tiny_qwen, tmp_path / "copy")
    assert key(case(0), model=str(copy)) in same, "the files count, not where they are"


def test_a_reason_is_written_only_when_asked_for_and_changes_no_score(tiny_qwen: Path) -> None:
    cases = [case(i) for i in range(3)]
    silent, speaking = (
        ask(QwenVl(QwenSpec(model=str(tiny_qwen), reason=r), TASK, "cpu"), cases) for r in (False, True)
    )
    np.testing.assert_allclose(scores(silent), scores(speaking), atol=1e-6)
    assert not any(outcome.reason for outcome in silent if isinstance(outcome, Prediction))
    reasons = [outcome.reason for outcome in speaking if isinstance(outcome, Prediction)]
    assert any(reasons)
    assert all('"' not in reason and reason.isprintable() for reason in reasons)


def test_what_is_stated_is_read_or_fails_and_is_never_guessed(tiny_qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = QwenVl(QwenSpec(model=str(tiny_qwen), belief="stated"), TASK, "cpu")
    babble = ask(agent, [case(0)])
    assert isinstance(babble[0], Failure), "random weights write no JSON"
    said = ['{"label": "red", "confidence": 0.8, "reason": "It is."}', "I cannot tell."]
    monkeypatch.setattr(QwenModel, "replies", lambda *_, **__: said)
    answer, refusal = ask(agent, [case(0), case(1)])
    assert isinstance(answer, Prediction)
    assert (answer.scale, answer.scores, answer.reason) == ("stated", (0.8, 0.0, 0.0, 0.0), "It is.")
    assert isinstance(refusal, Failure)


def test_one_model_serves_all_agents_that_name_it_and_event_loops_go_on(tiny_qwen: Path, qwen: QwenModel) -> None:
    agents = [QwenVl(QwenSpec(name=name, model=str(tiny_qwen)), TASK, "cpu") for name in "ab"]
    ticks = 0

    async def both() -> None:
        nonlocal ticks
        asked = asyncio.gather(*(agent.predict([case(i) for i in range(4)]) for agent in agents))
        while not asked.done():
            await asyncio.sleep(0.001)
            ticks += 1
        one, other = await asked
        np.testing.assert_array_equal(scores(one), scores(other))

    asyncio.run(both())
    assert ticks > 3
    assert all(agent._qwen is qwen for agent in agents)


def test_what_the_user_can_put_right_is_said_with_a_remedy(tiny_qwen: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        QwenVl(QwenSpec(model=str(tmp_path)), TASK, "cpu").key(case(0))
    with pytest.raises(ConfigError, match="no folder here"):
        QwenVl(QwenSpec(model="no such/folder here"), TASK, "cpu").key(case(0))
    silent = shutil.copytree(tiny_qwen, tmp_path / "silent")
    (silent / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        ask(QwenVl(QwenSpec(model=str(silent)), TASK, "cpu"), [case(0)])
    broken = shutil.copytree(tiny_qwen, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        ask(QwenVl(QwenSpec(model=str(broken)), TASK, "cpu"), [case(0)])
    with pytest.raises(ConfigError, match="4 bits need"):
        ask(QwenVl(QwenSpec(model=str(tiny_qwen), four_bit=True), TASK, "cpu"), [case(0)])
    with pytest.raises(ConfigError, match=r"holds no adapter_model\.safetensors"):
        ask(QwenVl(QwenSpec(model=str(tiny_qwen), adapter=str(tmp_path)), TASK, "cpu"), [case(0)])
    with pytest.raises(ConfigError, match="a letter has no reason"):
        QwenSpec(model="m", belief="letters", reason=True)
    with pytest.raises(ConfigError, match="only letters are permuted"):
        QwenSpec(model="m", permutations=2)
    many = Task(labels=tuple(f"label {i}" for i in range(27)))
    with pytest.raises(ConfigError, match="more than there are letters"):
        QwenVl(QwenSpec(model=str(tiny_qwen), belief="letters"), many, "cpu")
