"""Views: names mean what they say, and an agent that sees several knows how far they agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from secondlook.agents.case import Case, Evidence
from secondlook.agents.crop import GROUPS, VIEWS, box_view, expanded, pixels_of, sides_of
from secondlook.agents.embedder import Embedder
from secondlook.agents.errors import ConfigError
from secondlook.agents.fakes import ToyEncoder
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Failure, Outcome, Prediction
from secondlook.agents.views import consistency_of, look_at
from secondlook.eval.held_out import calibrate_all
from secondlook.eval.look_fit import opinions_of
from secondlook.orchestrator.config import Config
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.panel import stack

SIDE = st.floats(0, 1)


def test_a_group_stands_for_its_views_and_none_is_taken_twice() -> None:
    assert expanded(["zoom", "five_crop", "centre", "subject"]) == ("zoom", *GROUPS["five_crop"], "subject")
    assert Config(views=("five_crop", "zoom")).views == (*GROUPS["five_crop"], "zoom")
    assert expanded(Config(views=("five_crop",)).views) == GROUPS["five_crop"]


def test_the_five_crops_are_of_one_size_and_cover_every_pixel() -> None:
    covered = np.zeros((90, 120), dtype=np.int_)
    sizes = set()
    for view in GROUPS["five_crop"]:
        left, top, right, bottom = pixels_of(sides_of(view), 120, 90)
        covered[top:bottom, left:right] += 1
        sizes.add((right - left, bottom - top))
    assert sizes == {(80, 60)}
    assert covered.min() == 1
    assert covered[45, 60] == 5


NO_VIEWS = [
    "corner",
    "Zoom",
    "box",
    "box:",
    "box:0,0,1",
    "box:0,0,1,1,1",
    "box:a,0,1,1",
    "box:0,0,nan,1",
    "box:0.5,0,0.5,1",
    "box:0,0,1,1.01",
    "box:-0.1,0,1,1",
    "box:1,0,0,1",
    "box:0,0,inf,1",
]


@pytest.mark.parametrize("view", ["", *NO_VIEWS, "box:" + "9" * 5000])
def test_a_view_that_there_is_not_is_refused_by_name(view: str) -> None:
    with pytest.raises(ConfigError, match=r"There is no view|has no four sides|A box cannot have") as found:
        expanded([view])
    assert len(str(found.value)) < 500
    with pytest.raises(ConfigError):
        Photo.of(Image.new("RGB", (8, 8))).view(view)


@given(SIDE, SIDE, SIDE, SIDE, st.integers(1, 2000), st.integers(1, 2000))
def test_every_box_has_one_name_and_at_least_one_pixel(
    a: float, b: float, c: float, d: float, width: int, height: int
) -> None:
    sides = (min(a, c), min(b, d), max(a, c), max(b, d))
    if a == c or b == d:
        return
    name = box_view(sides)
    assert sides_of(name) == sides
    assert expanded([name]) == (name,)
    left, top, right, bottom = pixels_of(sides, width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@settings(max_examples=25)
@given(st.sampled_from(sorted(VIEWS)), st.integers(8, 40), st.integers(8, 40))
def test_every_view_of_any_picture_is_a_picture(view: str, width: int, height: int) -> None:
    seen = Photo.of(Image.new("RGB", (width, height), "green")).view(view)
    assert seen.mode == "RGB"
    assert min(seen.size) >= 1


def test_consistency_is_as_by_hand() -> None:
    # Views say (.8, .2) and (.4, .6). Mean logits: ln .8 + ln .4 > ln .2 + ln .6, so label 0 leads: (.8 + .4) / 2.
    logits = np.log([[0.8, 0.2], [0.4, 0.6]])
    assert consistency_of(logits) == pytest.approx(0.6)
    assert consistency_of(logits + np.array([[700.0], [-700.0]])) == pytest.approx(0.6)
    assert consistency_of(logits[:1]) is None


def test_views_that_contradict_each_other_are_told_from_views_that_hesitate() -> None:
    # Both average to the same logits, (.5, -.5).
    contradicting, hesitating = np.array([[9.0, -9.0], [-8.0, 8.0]]), np.array([[0.5, -0.5], [0.5, -0.5]])
    np.testing.assert_allclose(contradicting.mean(axis=0), hesitating.mean(axis=0))
    # Softmax of (.5, -.5) gives the top label .731; one view is certain of it, the other of its opposite: .5.
    assert consistency_of(hesitating) == pytest.approx(0.731, abs=1e-3)
    assert consistency_of(contradicting) == pytest.approx(0.5, abs=1e-3)


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 5), st.floats(0, 300))
def test_consistency_is_a_share_and_the_order_of_the_views_does_not_matter(
    seed: int, views: int, labels: int, scale: float
) -> None:
    logits = np.random.default_rng(seed).normal(size=(views, labels)) * scale
    found = consistency_of(logits)
    assert found is not None
    assert 0 <= found <= 1
    assert consistency_of(logits[::-1]) == pytest.approx(found)
    same = consistency_of(np.tile(logits[0], (views, 1)))
    assert same is not None
    assert same >= 1 / labels - 1e-12


def _asked(views: tuple[str, ...] | None, colour: str = "green") -> Case:
    photo = Photo.of(Image.new("RGB", (32, 32), colour))
    return Case(id=colour, photo=photo, evidence=None if views is None else Evidence(views=views))


def test_only_an_answer_from_several_views_states_its_consistency() -> None:
    embedder = Embedder(ToyEncoder(), threads=1)
    weights = np.random.default_rng(0).normal(size=(embedder.encoder.dim, 3))

    def logits(x: NDArray[np.float32]) -> NDArray[np.float64]:
        return x.astype(np.float64) @ weights

    cases = [_asked(None), _asked(()), _asked(("whole",)), _asked(("zoom",)), _asked(tuple(VIEWS))]
    found = look_at(cases, embedder, logits, "eye")
    embedder.close()
    assert [p.consistency is None for p in found if isinstance(p, Prediction)] == [True, True, True, False, False]


def test_a_case_that_names_a_box_is_looked_at_there_once() -> None:
    embedder = Embedder(ToyEncoder(), threads=1)
    box = box_view((0.0, 0.0, 0.5, 0.5))
    for _ in range(2):
        look_at([_asked((box,))], embedder, lambda x: x[:, :2].astype(np.float64), "eye")
    assert embedder.encoded == 2, "the whole and the box"
    embedder.close()


def _said(consistency: float | None, agent: str = "eye", look: int = 2) -> Outcome:
    return Prediction(agent=agent, look=look, scale="logit", scores=(2.0, 0.0), consistency=consistency)


def test_consistency_goes_through_calibration_and_stacking_as_it_is() -> None:
    row = [_said(0.9), _said(None), Failure(agent="eye", look=2, error="none"), _said(0.6)]
    vote: list[Outcome] = [Prediction(agent="vote", look=2, scale="vote", scores=(0.7, 0.3))] * 4
    outcomes = {"eye@2": row, "vote@2": vote}
    stacked = stack(outcomes, ("eye@2", "vote@2"), 2)
    answers = calibrate_all(outcomes, np.array([0, 0, 1, 1]), None, 2)
    fitted = opinions_of(answers)
    expected = [[0.9, np.nan, np.nan, 0.6], [np.nan] * 4]
    for opinions in (stacked, fitted):
        assert opinions.consistency is not None
        np.testing.assert_array_equal(opinions.consistency, expected)
    assert answers[1].consistency is None
    part = stacked.of(["eye@2"]).cases([3, 0])
    assert part.consistency is not None
    np.testing.assert_array_equal(part.consistency, [[0.6, 0.9]])


def test_opinions_refuse_consistency_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"consistency: expected \[M=1, N=2\]"):
        Opinions(("a",), np.full((1, 2, 2), 0.5), np.full((1, 2, 2), 0.5), np.ones((2, 1)))
