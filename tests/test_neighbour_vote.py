"""The neighbours' vote on published features: as right as published, and its confidences true once calibrated."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from neighbour_vote import measure


def test_the_vote_of_ten_is_as_right_as_published_and_true_once_calibrated(data_folder: Path) -> None:
    features = data_folder / "orchestrator-agent-trust" / "clip_vitb32_train512.npz"
    if not features.is_file():
        pytest.skip(f"no features in {data_folder}")
    found = measure(features, repeats=1)
    assert found["n"] == 512
    assert 0.947 <= found["as_voted/accuracy"] <= 0.955
    assert found["temperature/accuracy"] == found["as_voted/accuracy"], "a temperature changes no label"
    assert found["temperature/ece"] <= 0.02 < found["as_voted/ece"]
    assert found["chosen/nll"] < found["temperature/nll"] < found["as_voted/nll"]
    # Chosen by NLL, not by ECE: within what as many exactly true confidences would show, and their scatter.
    assert found["chosen/ece"] <= found["chosen/expected_ece"] + 0.015
