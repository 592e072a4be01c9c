"""A panel with heads and adapters of all kinds: fitted, kept, opened again, and held back when a part changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from toy import toy, toy_config

from secondlook.agents.clip_svd import ClipSvdSpec
from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.errors import ConfigError
from secondlook.agents.gda_head import GdaSpec
from secondlook.agents.linear_head import LinearSpec
from secondlook.agents.ncm_head import NcmSpec
from secondlook.eval.evaluate import evaluate
from secondlook.eval.fit import fit
from secondlook.eval.panel_file import read_panel
from secondlook.eval.tally import read_rows
from secondlook.orchestrator.adapted import ENCODERS, adapted_parts
from secondlook.orchestrator.build import load_pipeline
from secondlook.orchestrator.fitted import Model, load_model

ADAPTER = ClipSvdSpec(epochs=1, smallest_crop=1.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    t, folder = toy(), tmp_path_factory.mktemp("adapted") / "model"
    heads = (LinearSpec(), GdaSpec(), NcmSpec())
    config = toy_config(t.clip, candidates=heads, candidate_seconds=60, adapters=(ADAPTER,), boxes=True)
    return folder, fit(t.data, folder, config=config)


def test_the_panel_that_was_chosen_is_what_the_folder_holds(made: tuple[Path, Model]) -> None:
    folder, model = made
    again, arrays = load_model(folder)
    chosen = {row.name for row in model.candidates if row.chosen}
    assert {row.name for row in again.candidates} == {"linear-head", "gda", "ncm"}
    assert chosen == set(arrays.heads) == {spec.name for spec in again.config.panel}
    assert {"zero-shot", "clip-svd", "com-clip", *chosen} == {r.agent for r in model.records if r.look == 1}
    assert {"neighbour-vote"} == {r.agent for r in model.records if r.look == 2} - {
        r.agent for r in model.records if r.look == 1
    }
    assert any(note.startswith("clip-svd adapted the encoder with") for note in model.notes)


def test_a_model_that_was_opened_again_judges_with_all_of_them(made: tuple[Path, Model], tmp_path: Path) -> None:
    folder, _ = made
    evaluate(toy().data, folder, tmp_path / "run", cache=EmbeddingCache(tmp_path / "cache"), report=False)
    rows = list(read_rows(tmp_path / "run" / "verdicts.jsonl"))
    assert len(rows) > 20
    assert np.mean([row.label == row.truth for row in rows]) > 0.6


def test_the_bindings_of_an_adapted_encoder_name_it_and_not_the_panels(made: tuple[Path, Model]) -> None:
    folder, model = made
    own = adapted_parts((ADAPTER,), folder)["clip-svd"]["encoder"]
    assert f"encoder:{own}" in model.bindings["clip-svd"]
    assert own not in model.bindings["zero-shot"]
    assert "arrays" not in model.bindings["clip-svd"]


def test_an_adapter_that_is_gone_or_damaged_is_named(made: tuple[Path, Model], tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(made[0], copy)
    place = copy / ENCODERS / "clip-svd" / "adapter.safetensors"
    place.write_bytes(place.read_bytes()[:100])
    with pytest.raises(ConfigError, match="cannot be read as an adapted encoder"):
        load_pipeline(copy)
    shutil.rmtree(copy / ENCODERS)
    with pytest.raises(ConfigError, match="clip-svd holds no adapter"):
        load_pipeline(copy)


def test_adapters_are_named_on_the_command_line_beside_heads() -> None:
    found = read_panel("gda,clip-svd")
    assert [spec.kind for spec in found.panel or ()] == ["gda"]
    assert [spec.kind for spec in found.adapters] == ["clip-svd"]
    assert read_panel("maple").panel is None
