"""The figures say what the verdicts say, also where something is undefined, and take text only as text."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from secondlook.agents.errors import ConfigError
from secondlook.eval import figures
from secondlook.eval.figures import write_figures
from secondlook.orchestrator.verdict import LookTrail, Verdict

Said = tuple[str | None, str | None, float, bool]
"""Truth, label, confidence, whether accepted."""
LABELS = ("healthy", "rust", "scab")
NAMES = ["reliability.svg", "reliability.png", "risk-coverage.svg", "risk-coverage.png", "confusion.svg",
         "confusion.png"]  # fmt: skip


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarser pictures, quicker; nothing else about them changes."""
    monkeypatch.setattr(figures, "DPI", 100)


def line(i: int, truth: str | None, label: str | None, confidence: float, accept: bool, labels: tuple[str, ...]) -> str:
    known = label is not None
    rest = (1 - confidence) / (len(labels) - 1)
    probs = tuple(confidence if name == label else rest for name in labels) if known else None
    trail = LookTrail(look=1, opinions=(), fused_by="log-linear pool", probs=probs, trust=confidence if known else None,
                      threshold=0.8, decision="accept" if accept else "review", why="")  # fmt: skip
    verdict = Verdict(id=f"{i}", labels=labels, label=label, confidence=confidence if known else None, probs=probs,
                      prediction_set=labels, action="accept" if accept else "review",
                      reason="trusted" if accept else "low_trust" if known else "no_outcome", why="",
                      trust=confidence if known else None, typicality=0.5, looks=(trail,), model="m")  # fmt: skip
    return json.dumps(verdict.model_dump(mode="json") | ({} if truth is None else {"truth": truth}))


def run_of(
    folder: Path, cases: Iterable[tuple[str | None, str | None, float, bool]], labels=LABELS, **measured
) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [line(i, *case, labels) for i, case in enumerate(cases)]
    (folder / "verdicts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(measured))
    return folder


def texts(svg: Path) -> list[str]:
    """Every text of a picture; parsing it also proves that it is XML."""
    return ["".join(node.itertext()).strip() for node in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


def pixels(png: Path) -> np.ndarray:
    with Image.open(png) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def near(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(image - colour).max(axis=2) < 24).sum())


VERMILION = (213, 94, 0)
# 10 cases: 8 accepted, 1 of them wrong (12.5 %); 8 of 10 right in all.
CASES = [("healthy", "healthy", 0.95, True)] * 5 + [("rust", "rust", 0.9, True)] * 2 + [("rust", "scab", 0.9, True)]
CASES += [("rust", "rust", 0.6, False), ("scab", "rust", 0.5, False)]


def test_the_figures_show_the_counts_of_the_run_and_are_the_same_each_time(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", CASES, **{"sel/target_risk": 0.05})
    paths = write_figures(run, run / "figures")
    first = [path.read_bytes() for path in paths]
    assert [path.name for path in paths] == NAMES
    # Bins: .95 (5 of 5 right, gap .05), .9 (2 of 3, gap .2333), .6 (1 of 1, gap .4), .5 (0 of 1, gap .5):
    # ECE = .5 x .05 + .3 x .2333 + .1 x .4 + .1 x .5 = .185
    assert "ECE 0.185, n = 10" in texts(paths[0])
    said = texts(paths[2])
    assert "gate: 12 % wrong of 80 %" in said
    assert "target 5 %" in said
    matrix = texts(paths[4])
    assert "accuracy 80.0 %, n = 10" in matrix
    assert [matrix.count(n) for n in ("5", "3", "1", "0")] == [1, 1, 2, 0]
    for path in paths[1::2]:
        image = pixels(path)
        assert min(image.shape[:2]) >= 300
        assert image.std() > 10
    assert near(pixels(paths[3]), VERMILION) > 20
    assert first == [path.read_bytes() for path in write_figures(run, run / "figures")], "the same bytes again"


def test_where_nobody_is_accepted_there_is_no_operating_point(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", [(truth, label, c, False) for truth, label, c, _ in CASES])
    paths = write_figures(run, tmp_path / "figures")
    assert "the gate accepts nothing" in texts(paths[2])
    assert near(pixels(paths[3]), VERMILION) == 0


def test_a_target_of_costs_is_no_line_among_errors(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", CASES, **{"sel/target_risk": 0.05, "sel/accepted_cost": 0.02})
    assert "target 5 %" not in texts(write_figures(run, tmp_path / "figures")[2])


def test_a_label_without_cases_keeps_its_row_and_says_so(tmp_path: Path) -> None:
    paths = write_figures(run_of(tmp_path / "run", CASES[:5]), tmp_path / "figures")
    said = texts(paths[4])
    assert {"healthy", "rust (none)", "scab (none)"} <= set(said)


def test_cases_without_an_answer_have_a_column_and_no_confidence(tmp_path: Path) -> None:
    some = write_figures(run_of(tmp_path / "some", [*CASES, ("scab", None, 0.0, False)]), tmp_path / "a")
    assert "no answer" in texts(some[4])
    assert "ECE 0.185, n = 10, 1 without an answer" in texts(some[0])


def test_a_run_without_any_answer_is_drawn_and_says_so(tmp_path: Path) -> None:
    none = write_figures(run_of(tmp_path / "none", [("scab", None, 0.0, False)]), tmp_path / "b")
    assert "no case has a confidence" in texts(none[0])


def test_labels_are_text_whatever_they_hold(tmp_path: Path) -> None:
    labels = ("$\\frac{1}$", "<b>&amp;\x1b\x00", "a" * 100)
    run = run_of(tmp_path / "run", [(name, labels[0], 0.9, True) for name in labels], labels)
    said = texts(write_figures(run, tmp_path / "figures")[4])
    assert "$\\frac{1}$" in said
    assert "<b>&amp;" in said
    assert "a" * 23 + "…" in said


def test_many_labels_are_drawn_without_numbers(tmp_path: Path) -> None:
    labels = tuple(f"kind-{k}" for k in range(70))
    run = run_of(tmp_path / "run", [(name, name, 0.9, True) for name in labels], labels)
    paths = write_figures(run, tmp_path / "figures")
    assert texts(paths[4]) == ["label given", "true label", "accuracy 100.0 %, n = 70"]
    assert max(pixels(paths[5]).shape) <= 720


def test_a_run_without_truth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no case with its truth"):
        write_figures(run_of(tmp_path / "run", [(None, "rust", 0.9, True)]), tmp_path / "figures")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_figures(run_of(tmp_path / "run", CASES), tmp_path / "file")
