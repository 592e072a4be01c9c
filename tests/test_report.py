"""The report is one page that needs nothing else, tells the truth about the run, and takes text only as text."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from secondlook.agents.case import Neighbour
from secondlook.eval.report import write_report
from secondlook.eval.tally import Tally, read_rows
from secondlook.orchestrator.verdict import LookTrail, Opinion, Verdict

LABELS = ("black-rot", "healthy", "rust", "scab")
AGENTS = ("zero-shot", "head", "neighbours")
THRESHOLD = 0.82
NASTY = "</script><script>alert(1)</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def picture(key: str) -> bytes:
    """A 112 px JPEG of something leaf-like whose colours follow from the key."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4])
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (112, 112), (205, 200, 190))
    draw = ImageDraw.Draw(image)
    draw.ellipse((22, 6, 90, 106), fill=(60 + seed % 50, 120 + seed % 60, 50))
    draw.line((56, 8, 56, 110), fill=(150, 180, 110), width=2)
    for x, y in rng.integers(30, 80, (seed % 9, 2)).tolist():
        draw.ellipse((x, y, x + 9, y + 9), fill=(110, 60 + seed % 40, 25))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=75)
    return out.getvalue()


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max())
    return e / e.sum()


def verdict_of(i: int, rng: np.random.Generator) -> tuple[Verdict, str]:
    """One made-up verdict and its truth: about 90 % right, some looked at twice, a few strangers and failures."""
    y = int(rng.integers(len(LABELS)))
    clear = rng.gamma(3.0, 1.4)
    common = dict(id=f"leaf-{i:05d}", group=f"g{i // 3}", labels=LABELS, model="6f1c09ab44d2e871")
    if rng.random() < 0.01:
        failures = tuple(Opinion(agent=a, look=1, error="the file is empty (0 bytes)") for a in AGENTS)
        trail = LookTrail(
            look=1,
            opinions=failures,
            fused_by="log-linear pool",
            probs=None,
            trust=None,
            threshold=THRESHOLD,
            decision="review",
            why="No agent could answer.",
        )
        return Verdict(**common, label=None, confidence=None, probs=None, prediction_set=LABELS, action="review",
                       reason="no_outcome", why="No agent could answer: the file is empty (0 bytes).", trust=None,
                       typicality=None, looks=(trail,)), LABELS[y]  # fmt: skip
    looks: list[LookTrail] = []
    opinions: list[Opinion] = []
    stranger = rng.random() < 0.04
    shared = rng.normal(0, 1.2, len(LABELS))
    for look in (1, 2):
        for agent in AGENTS:
            p = softmax(shared + clear * look**0.5 * np.eye(len(LABELS))[y] + rng.normal(0, 1, len(LABELS)))
            opinions.append(
                Opinion(agent=agent, look=look, label=LABELS[p.argmax()], confidence=p.max(), probs=tuple(p))
            )
        belief = np.mean([o.probs for o in opinions], axis=0)
        trust = float(np.clip(belief.max() - 0.05 * rng.random(), 0, 1))
        decision = (
            "accept"
            if trust >= THRESHOLD and not stranger
            else "look_again"
            if look == 1 and not stranger
            else "review"
        )
        why = f"Trust {trust:.3f} against the {THRESHOLD} that hold a risk of 5 %."
        looks.append(LookTrail(look=look, opinions=tuple(opinions), fused_by="log-linear pool", probs=tuple(belief),
                               trust=trust, threshold=THRESHOLD, decision=decision, why=why))  # fmt: skip
        if decision != "look_again":
            break
    near = tuple(
        Neighbour(id=f"train-{j}", label=LABELS[y if rng.random() < 0.8 else int(rng.integers(4))],
                  similarity=float(0.97 - 0.02 * rank), path=f"train/{j}.jpg")
        for rank, j in enumerate(rng.integers(0, 400, 6).tolist())
    ) if len(looks) > 1 else ()  # fmt: skip
    reason = "trusted" if decision == "accept" else "stranger" if stranger else "low_trust"
    verdict = Verdict(**common, path=f"photos/leaf-{i:05d}.jpg", digest=f"d{i:05d}", label=LABELS[belief.argmax()],
                      confidence=belief.max(), probs=tuple(belief), prediction_set=(LABELS[belief.argmax()],),
                      action="accept" if decision == "accept" else "review", reason=reason,
                      why=why if not stranger else "Only 0.4 % of known images are as unusual as this one.",
                      trust=trust, typicality=0.004 if stranger else float(rng.uniform(0.05, 1)), looks=tuple(looks),
                      evidence=near)  # fmt: skip
    return verdict, LABELS[y]


def write_run(run: Path, n: int, labelled: bool = True, change: Callable[[dict], dict] = lambda line: line) -> Path:
    """Write a run folder as `evaluate` or `triage` leaves it."""
    run.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    with (run / "verdicts.jsonl").open("w") as file:
        for i in range(n):
            verdict, truth = verdict_of(i, rng)
            line = verdict.model_dump(mode="json") | ({"truth": truth} if labelled else {})
            file.write(json.dumps(change(line)) + "\n")
    manifest = {
        "version": "0.1.0", "created": "2026-11-20 14:02 UTC", "model": {"path": "leaf-model", "digest": "6f1c09ab44d2e871"},
        "data": "data/apple-leaves", "seed": 7, "encoder": "leaf-tiny", "config": "9bd1e2c07a5f3344",
        "notes": ["Second look kept: on held-out cases it put 9 right and 2 wrong."],
    }  # fmt: skip
    (run / "manifest.json").write_text(json.dumps(manifest))
    if labelled:
        (run / "metrics.json").write_text(json.dumps(measured(run)))
    return run


def measured(run: Path) -> dict[str, float | str | None]:
    tally = Tally()
    for _ in read_rows(run / "verdicts.jsonl", tally):
        pass
    acc, risk = tally.right / max(1, tally.n), tally.accepted_wrong / max(1, tally.accepted)
    figures = {"acc/top1": acc, "sel/accepted_error": risk, "base/best_agent": acc - 0.021,
               "base/neighbour_vote": acc + 0.008, "base/majority": acc - 0.006, "base/mean": acc - 0.004,
               "base/oracle": min(1, acc + 0.04), "agents/head/acc": acc - 0.021, "agents/zero-shot/acc": acc - 0.18,
               "agents/neighbours/acc": acc - 0.03, "ood/background/review_share": 0.985}  # fmt: skip
    ends = {f"{k}{s}": v + d for k, v in figures.items() for s, d in (("/lo", -0.015), ("/hi", 0.012))}
    return figures | ends | {
        "n": tally.n, "sel/target_risk": 0.05, "cal/ece": 0.021, "base/best_agent_name": "head", "agents/head/ece": 0.03,
        "agents/zero-shot/ece": 0.118, "agents/neighbours/ece": None, "agents/zero-shot/n": tally.n - 3,
        "time/images_per_s": 41.2, "ood/background/auroc": 0.991, "sel/aurc": None,
    }  # fmt: skip


class Outline(HTMLParser):
    """Tags of a page, checked for balance; what the page would fetch; and the text of its scripts."""

    VOID = frozenset(["meta", "input", "br", "img", "link", "hr", "line", "circle", "polyline"])

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.handlers: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [
            v or "" for k, v in attrs if k in ("src", "srcset", "data", "action") or (k == "href" and tag != "a")
        ]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)


def outline(page: Path) -> Outline:
    parsed = Outline()
    parsed.feed(page.read_text())
    parsed.close()
    assert parsed.open == []
    return parsed


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("run"), 300), picture)


def test_the_page_is_balanced_and_fetches_nothing(page: Path) -> None:
    parsed = outline(page)
    assert parsed.fetched == []
    assert parsed.handlers == []
    assert "link" not in parsed.tags
    assert "http" not in page.read_text().lower().replace("http-equiv", "")
