"""The command line: one JSON object where asked, help that teaches, and runs that survive Ctrl-C and kills."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import Ran, run_cli
from rich.console import Console
from test_evaluate import PROMISED
from toy import LABELS, evaluated, toy, toy_image

from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.cli import app, main
from secondlook.console import progress
from secondlook.eval.evaluate import triage
from secondlook.eval.run_folder import TABLE, VERDICTS
from secondlook.orchestrator.fitted import Model
from secondlook.show import print_metrics, print_model

HEAVY = ("torch", "torchvision", "chromadb", "langgraph", "pydantic", "numpy", "sklearn", "open_clip", "transformers")


def strict(text: str) -> dict[str, object]:
    """Read exactly one JSON object."""
    found = json.loads(text, parse_constant=pytest.fail)
    assert isinstance(found, dict)
    return found


# -- help


def test_help_waits_for_nothing_heavy() -> None:
    script = (
        "import sys; from secondlook.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in ran.stdout.splitlines()[-1].split()}
    assert "typer" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("command", [c.callback.__name__ for c in app.registered_commands if c.callback])
def test_the_help_of_a_command_explains_each_of_its_arguments(command: str) -> None:
    ran = run_cli(command, "--help")
    assert ran.code == 0
    words = {
        "demo": ("offline", "--out", "--json"),
        "fit": ("DATA", "path,label,group,split", "--out", "--target-risk", "60/20/20", "share a group"),
        "triage": ("IMAGES", "--model", "--out", "resumes", "verdicts.jsonl", "--batch-size", "--device"),
        "evaluate": ("DATA", "--split", "--ood", "--allow-seen", "never shown to an agent"),
        "replay": ("ANSWERS.csv", "cheap-first", "--folds", "in rows of the agent truth", "Example:"),
        "feedback": ("TRUTH.csv", "id,label", "--acknowledge", "--half-life", "Examples:"),
        "show": ("MODEL", "track records", "--json"),
        "doctor": ("installed", "--json"),
    }
    flat = " ".join(ran.out.split())
    for word in words.get(command, ("--json",)):
        assert word in flat, word


def test_without_a_command_the_way_to_start_is_shown() -> None:
    ran = run_cli()
    out = ran.out + ran.err
    assert "secondlook demo" in out
    assert out.index("secondlook fit DATA") < out.index("secondlook evaluate DATA") < out.index("secondlook triage")


# -- what a person and a program read


def test_fit_prints_the_model_as_json_and_what_to_do_next(tmp_path: Path) -> None:
    t = toy()
    arguments = ["fit", t.data, "--out", tmp_path / "m", "--encoder", t.clip, "--target-risk", "0.15", "-k", "5"]
    ran = run_cli(*arguments, "--json", cache=tmp_path / "cache")
    assert (ran.code, ran.err) == (0, "")
    assert strict(ran.out)["digest"] == t.fitted.digest
    shown = run_cli("show", tmp_path / "m")
    assert f"Model {t.fitted.digest}" in shown.out


def test_evaluate_prints_one_json_object_with_every_promised_figure(tmp_path: Path) -> None:
    t, _ = toy(), evaluated()
    ran = run_cli(
        "evaluate", t.data, "-m", t.model, "-o", tmp_path / "run", "--ood", t.home / "gray", "--json", "--no-report",
        "--no-cache",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    found = strict(ran.out)
    assert set(found) >= PROMISED
    same = {k: v for k, v in evaluated()[1].metrics.items() if not k.startswith("time/")}
    assert {k: found[k] for k in same} == pytest.approx(same, abs=1e-5)


def test_triage_prints_one_json_object_and_without_it_sentences(tmp_path: Path) -> None:
    t = toy()
    arguments = ["triage", t.data / "test", "-m", t.model, "-o", tmp_path / "run"]
    ran = run_cli(*arguments, "--json", cache=tmp_path / "cache")
    found = strict(ran.out)
    assert (found["n"], found["judged_now"], found["out"]) == (36, 36, str(tmp_path / "run"))
    assert found["accepted"] + sum(found["review"].values()) == 36  # type: ignore[attr-defined, operator]
    again = strict(run_cli(*arguments, "--json", cache=tmp_path / "cache").out)
    assert (again["judged_now"], again["images_per_s"]) == (0, None)
    said = run_cli(*arguments, cache=tmp_path / "cache").out
    assert f"36 images: {found['accepted']} accepted, " in said
    assert str(tmp_path / "run" / "report.html") in said
    assert (tmp_path / "run" / TABLE).is_file()


def test_show_says_what_a_tighter_promise_would_need() -> None:
    out = run_cli("show", toy().model).out
    # (1 - .02)^n <= .1 first holds for n = 114, (1 - .01)^n <= .1 for n = 230.
    assert "A target of 2% would need 114 calibration groups with an accepted image and not one error" in out
    assert "A target of 1% would need 230 calibration groups" in out
    assert "there are 42" in out
    for record in toy().fitted.records:
        m = record.accuracy
        assert f"{m.value:.3f} [{m.low:.3f}, {m.high:.3f}]" in out


def test_show_prints_the_model_as_strict_json() -> None:
    found = strict(run_cli("show", toy().model, "--json").out)
    assert found.pop("digest") == toy().fitted.digest
    assert Model.model_validate(found).digest == toy().fitted.digest


def test_doctor_says_what_is_installed() -> None:
    found = strict(run_cli("doctor", "--json").out)
    assert set(found) >= {"python", "machine", "secondlook", "torch", "gpu", "leaf-tiny", "embedding cache"}
    assert all(isinstance(value, str) and value for value in found.values())
    for name in found:
        assert name in run_cli("doctor").out


def on_console(width: int, what: object) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=False)
    if isinstance(what, Model):
        print_model(what, console)
    else:
        print_metrics(what, console)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_number_is_cut_on_a_narrow_console(width: int) -> None:
    model, metrics = toy().fitted, evaluated()[1].metrics
    shown = on_console(width, model)
    assert "…" not in shown
    for r in model.records:
        for number in (r.accuracy.value, r.accuracy.low, r.accuracy.high, r.ece.value, r.ece_raw, r.nll):
            assert f"{number:.3f}" in shown
    shown = on_console(width, metrics)
    assert "…" not in shown
    for name, value in metrics.items():
        if isinstance(value, float) and "/gain" not in name and not name.startswith("errors/"):
            assert f"{value:.4f}" in shown or f"{value:.3f}" in shown


def test_names_that_look_like_markup_are_shown_as_they_are() -> None:
    labels = ("[red]", "[/bold]", "blue")
    task = toy().fitted.task.model_copy(update={"labels": labels})
    assert "[red], [/bold], blue" in on_console(200, toy().fitted.model_copy(update={"task": task}))
    shown = on_console(200, {"n": 1, "n_groups": 1, "ood/[/x]/auroc": 0.5})
    assert "ood/[/x]/auroc" in shown


def test_progress_in_a_log_says_each_stage_once_and_then_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 10.0, 10.1, 16.0, 17.0, 18.0])
    monkeypatch.setattr("secondlook.console.time", SimpleNamespace(monotonic=lambda: next(now)))
    with progress() as report:
        for done in (0, 1, 2, 10, 11):
            report("judging", done, 40)
        report("writing", 0, None)
    # The pace counts from the first result, at 10 s: 9 more by 16 s, so 6 / 9 s each, 20 s for the other 30. Of the
    # second one alone, a tenth of a second later, nothing is concluded.
    assert capsys.readouterr().err.splitlines() == [
        "judging (40) ...",
        "judging: 10 of 40, about 20 s left",
        "writing ...",
    ]


def test_quiet_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=True) as report:
        report("judging", 0, 40)
    assert capsys.readouterr() == ("", "")


# -- Ctrl-C and kills


def in_child(arguments: list[str], out: str, err: str) -> None:
    """Be the `secondlook` command in a process of its own."""
    for path, standard in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), standard)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    main(arguments)


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    """Real processes that need not import everything anew."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["secondlook.eval.evaluate", "open_clip", "chromadb", "langgraph.graph", "scipy.stats"]
    )
    return context


class Interrupted:
    """A triage of many small images, a batch of which takes long enough to be interrupted."""

    N = 100

    def __init__(self, home: Path, forks: ForkServerContext) -> None:
        self.home, self.forks = home, forks
        self.images = home / "images"
        self.images.mkdir()
        for i in range(self.N):
            toy_image(LABELS[i % 3], 600 + i).save(self.images / f"{i:03}.png")
        self.verdicts = home / "run" / VERDICTS

    def arguments(self) -> list[str]:
        options = ["-m", toy().model, "-o", self.home / "run", "--batch-size", 2, "--no-report", "--no-cache"]
        return [str(argument) for argument in ("triage", self.images, *options)]

    def start(self) -> ForkServerProcess:
        out, err = (str(self.home / name) for name in ("out", "err"))
        process = self.forks.Process(target=in_child, args=(self.arguments(), out, err))
        process.start()
        return process

    def lines(self) -> int:
        return self.verdicts.read_bytes().count(b"\n") if self.verdicts.exists() else 0

    def wait_for(self, lines: int, process: ForkServerProcess) -> None:
        end = time.monotonic() + 60
        while self.lines() < lines:
            assert process.is_alive(), (self.home / "err").read_text()
            assert time.monotonic() < end
            time.sleep(0.002)

    def finish(self) -> Ran:
        process = self.start()
        process.join(90)
        code = process.exitcode
        assert code is not None
        return Ran(code, (self.home / "out").read_text(), (self.home / "err").read_text())

    def check(self) -> None:
        """The rows equal those of a run that nobody disturbed."""
        with EmbeddingCache(self.home / "cache") as store:
            triage(self.images, toy().model, self.home / "calm", cache=store, batch_size=2, report=False)
        calm, disturbed = (
            [json.loads(line) for line in (self.home / name / VERDICTS).read_text().splitlines()]
            for name in ("calm", "run")
        )
        assert [row["id"] for row in disturbed] == [f"{i:03}.png" for i in range(self.N)]
        for one, other in zip(calm, disturbed, strict=True):
            assert other["probs"] == pytest.approx(one["probs"], abs=1e-5)
            assert {k: other[k] for k in ("id", "label", "action", "reason", "digest", "prediction_set")} == {
                k: one[k] for k in ("id", "label", "action", "reason", "digest", "prediction_set")
            }


def test_ctrl_c_ends_with_130_a_sentence_and_whole_lines_and_the_same_command_goes_on(
    tmp_path: Path, forks: ForkServerContext
) -> None:
    run = Interrupted(tmp_path, forks)
    process = run.start()
    run.wait_for(1, process)
    assert process.pid
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    err = (tmp_path / "err").read_text()
    assert "error: Stopped.\n  try: The same command goes on where it stopped.\n" in err
    assert "Traceback" not in err
    assert 0 < run.lines() < run.N
    assert run.verdicts.read_bytes().endswith(b"\n")
    for line in run.verdicts.read_text().splitlines():
        strict(line)
    before = run.lines()
    ran = run.finish()
    assert ran.code == 0, ran.err
    assert f"{run.N} images" in ran.out
    assert f"{run.N - before} judged now" in ran.out
    run.check()


def test_kills_at_any_moment_lose_nothing_and_repeat_nothing(tmp_path: Path, forks: ForkServerContext) -> None:
    run = Interrupted(tmp_path, forks)
    rng = np.random.default_rng()
    for stop in sorted(rng.integers(1, run.N - 30, 3)):
        process = run.start()
        run.wait_for(int(stop), process)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
    ran = run.finish()
    assert ran.code == 0, ran.err
    run.check()
