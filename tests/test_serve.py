"""A real server with a real model: `transformers serve` with leaf-tiny-vl on this machine, asked through the graph."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import anyio
import numpy as np
import pytest
from tiny_clip import write_tiny_clip

from secondlook.agents.case import Case, Evidence, Neighbour, Statement
from secondlook.agents.chat import ChatModel
from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.encoder import EncoderSpec
from secondlook.agents.endpoint import Endpoint
from secondlook.agents.model_folder import packaged_folder
from secondlook.agents.openai_vlm import Belief, OpenAISpec, OpenAIVlm
from secondlook.agents.photo import Photo
from secondlook.agents.prediction import Failure, Prediction
from secondlook.agents.qwen_vl import QwenSpec, QwenVl
from secondlook.demo import demo_image
from secondlook.eval.evaluate import evaluate
from secondlook.eval.fit import fit
from secondlook.eval.tally import read_rows
from secondlook.eval.task_file import read_task
from secondlook.leaves import LABELS
from secondlook.orchestrator.config import Config
from secondlook.orchestrator.language import Language

STARTS_WITHIN_S = 90
LEAVES = {"train": 2, "calibration": 5, "test": 1}
"""Of each label."""
TASK = read_task(sorted(LABELS), None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """`transformers serve` in a process of its own, ended by its process id."""
    home, port = tmp_path_factory.mktemp("serve"), free_port()
    # Without a hub cache folder the server answers a question for its models with an error.
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(home), "OMP_NUM_THREADS": "1"}
    command = [Path(sys.executable).parent / "transformers", "serve", packaged_folder()]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen([*command, *options], stdout=log, stderr=log, env={**os.environ, **quiet})
        try:
            wait_for(f"http://127.0.0.1:{port}/health", server, home / "log")
            yield Endpoint(base_url=f"http://127.0.0.1:{port}/v1", concurrency=2)
        finally:
            server.terminate()
            server.wait(30)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no answer from {url}: {log.read_text(errors='replace')[-2000:]}")


def agent(endpoint: Endpoint, belief: Belief, n_pictures: int = 0) -> OpenAIVlm:
    model = str(packaged_folder())
    spec = OpenAISpec(
        name="far", model=model, endpoint=endpoint, belief=belief, max_tokens=80, max_side=256, n_pictures=n_pictures
    )
    return OpenAIVlm(spec.name, ChatModel(endpoint, model), TASK, spec)


def leaf(label: str, seed: int = 31_000) -> Case:
    return Case(id=f"{label}-{seed}", photo=Photo.of(demo_image(label, seed), name=label))


def second(case: Case, label: str, path: Path | None = None) -> Case:
    """The case as a second look sees it, nine of ten neighbours and an answer of its own at hand."""
    near = [Neighbour(id=str(i), label=label, similarity=0.95, path=path and str(path)) for i in range(9)]
    near.append(Neighbour(id="9", label=TASK.labels[0], similarity=0.9))
    said = Statement(agent="far", look=1, label=TASK.labels[0], confidence=0.6)
    return case.model_copy(update={"evidence": Evidence(neighbours=tuple(near)), "heard": (said,)})


def test_stated_answers_at_both_looks_are_those_of_the_same_model_without_a_server(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    cases = [leaf("scab"), leaf("healthy")]
    demo_image("scab", 31_007).save(tmp_path / "near.png")
    cases += [second(cases[0], "scab"), second(cases[1], "healthy", tmp_path / "near.png")]
    far = anyio.run(agent(endpoint, "stated", n_pictures=1).predict, cases)
    spec = QwenSpec(name="far", model=str(packaged_folder()), belief="stated", n_pictures=1)
    near = anyio.run(QwenVl(spec, TASK, "cpu").predict, cases)
    for there, here in zip(far, near, strict=True):
        assert isinstance(there, Prediction), there
        assert isinstance(here, Prediction), here
        assert (there.scale, there.top, there.reason) == ("stated", here.top, here.reason)
        assert there.scores == pytest.approx(here.scores)
        assert there.reason
        assert there.cost.vlm_calls >= 1
        assert there.cost.seconds > 0


def test_decisions_are_distributions_over_the_labels(endpoint: Endpoint) -> None:
    said = anyio.run(agent(endpoint, "decision").predict, [leaf("rust"), second(leaf("rust"), "rust")])
    for each in said:
        assert isinstance(each, Prediction), each
        assert each.scale == "probability"
        assert sum(each.scores) == pytest.approx(1, abs=1e-3)


def test_a_server_without_log_probabilities_is_told_so(endpoint: Endpoint) -> None:
    # transformers 5.23 takes the request for them, and leaves them out of its answer.
    (said,) = anyio.run(agent(endpoint, "logprob").predict, [leaf("rust")])
    assert isinstance(said, Failure)
    assert "no log-probabilities" in said.error


def test_the_graph_fits_and_judges_with_a_model_behind_a_server(endpoint: Endpoint, tmp_path: Path) -> None:
    data = write_leaves(tmp_path / "data")
    clip = write_tiny_clip(tmp_path / "clip")
    spec = OpenAISpec(
        name="far", model=str(packaged_folder()), endpoint=endpoint, belief="decision", max_side=256, looks=(1, 2)
    )
    config = Config(encoder=EncoderSpec(model=str(clip)), language=Language(agents=(spec,)), neighbours=4)
    with EmbeddingCache(tmp_path / "cache") as cache:
        model = fit(data, tmp_path / "model", config=config, cache=cache)
        evaluate(data, tmp_path / "model", tmp_path / "run", cache=cache, report=False)
    records = {(r.agent, r.look): r for r in model.records}
    assert records["far", 1].n == records["far", 2].n == 4 * LEAVES["calibration"]
    assert records["far", 1].n_failed == records["far", 2].n_failed == 0
    rows = list(read_rows(tmp_path / "run" / "verdicts.jsonl"))
    assert len(rows) == 4 * LEAVES["test"]
    for row in rows:
        opinions = [o for look in row.looks for o in look.opinions if o.agent == "far" and o.look == look.look]
        assert len(opinions) == len(row.looks)
        assert all(o.probs is not None and np.isclose(sum(o.probs), 1) for o in opinions)
        assert row.cost.vlm_calls == len(row.looks)


def write_leaves(folder: Path) -> Path:
    rows = []
    for label in TASK.labels:
        seed = 32_000
        for split, n in LEAVES.items():
            for _ in range(n):
                seed += 1
                path = f"{split}/{label}/{seed}.png"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                demo_image(label, seed).save(folder / path)
                rows.append((path, label, f"{label}-{seed}", split))
    with (folder / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "group", "split"), *rows])
    return folder
