"""The report is one page that needs nothing else, tells the truth about the run, and takes text only as text."""

from __future__ import annotations

import hashlib
import html
import io
import json
import re
import shutil
import subprocess
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageDraw

from secondlook.agents.case import Neighbour
from secondlook.agents.errors import ConfigError
from secondlook.eval import case_blocks, report
from secondlook.eval.charts import LEFT, RIGHT, reliability_chart, risk_chart
from secondlook.eval.report import write_report
from secondlook.eval.standings import RULES
from secondlook.eval.tally import Tally, read_rows
from secondlook.orchestrator.policies import POLICIES
from secondlook.orchestrator.verdict import LookTrail, Opinion, Reason, Verdict

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


@cache
def made_up_lines() -> list[dict]:
    """300 lines of a labelled run; longer runs repeat them under other ids."""
    rng = np.random.default_rng(5)
    made = (verdict_of(i, rng) for i in range(300))
    return [verdict.model_dump(mode="json") | {"truth": truth} for verdict, truth in made]


def write_run(run: Path, n: int, labelled: bool = True, change: Callable[[dict], dict] = lambda line: line) -> Path:
    """Write a run folder as `evaluate` or `triage` leaves it."""
    run.mkdir(parents=True, exist_ok=True)
    lines = made_up_lines()
    with (run / "verdicts.jsonl").open("w") as file:
        for i in range(n):
            line = lines[i % len(lines)] | {"id": f"leaf-{i:05d}"}
            if lines[i % len(lines)]["digest"]:
                line["digest"] = f"d{i:05d}"
            if not labelled:
                del line["truth"]
            file.write(json.dumps(change(line)) + "\n")
    manifest = {
        "version": "0.1.0", "created": "2026-11-20 14:02 UTC",
        "model": {"path": "leaf-model", "digest": "6f1c09ab44d2e871"},
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
        "n": tally.n, "sel/target_risk": 0.05, "cal/ece": 0.021, "base/best_agent_name": "head",
        "agents/head/ece": 0.03, "agents/zero-shot/ece": 0.118, "agents/neighbours/ece": None,
        "agents/zero-shot/n": tally.n - 3, "time/images_per_s": 41.2, "ood/background/auroc": 0.991, "sel/aurc": None,
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


def dump(page: Path, hash_: str = "") -> str:
    """Return the page's DOM after its script has run, without the scripts."""
    if CHROMIUM is None:
        pytest.skip("no Chromium to open the page in")
    with tempfile.TemporaryDirectory() as profile:
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --dump-dom"
        )
        done = subprocess.run(
            [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", f"{page.as_uri()}{hash_}"],
            capture_output=True, timeout=60, check=True,
        )  # fmt: skip
    return re.sub(r"<script.*?</script>", "", done.stdout.decode(), flags=re.DOTALL)


def text_of(dom: str, pattern: str) -> str:
    """Return what a reader sees of the first element that matches."""
    match = re.search(pattern, dom, re.DOTALL)
    assert match, pattern
    return html.unescape(re.sub(r"<[^>]*>", " ", match[0]))


def lines_of(page: Path) -> list[dict]:
    return [json.loads(line) for line in (page.parent / "verdicts.jsonl").read_text().splitlines()]


def test_the_page_is_balanced_and_fetches_nothing(page: Path) -> None:
    parsed = outline(page)
    assert parsed.fetched == []
    assert parsed.handlers == []
    assert "link" not in parsed.tags
    assert "http" not in page.read_text().lower().replace("http-equiv", "")


def wrong_with_evidence(page: Path) -> int:
    wrong = (i for i, v in enumerate(lines_of(page)) if v["label"] != v["truth"])
    return next(i for i in wrong if lines_of(page)[i]["evidence"] and lines_of(page)[i]["action"] == "review")


@pytest.fixture(scope="module")
def opened_dom(page: Path) -> str:
    """The wrong cases, least trusted first, one of them open."""
    return dump(page, f"#show=wrong&sort=low&open={wrong_with_evidence(page)}")


def test_filters_count_and_list_what_the_verdicts_say(page: Path, opened_dom: str) -> None:
    lines = lines_of(page)
    wrong = [v for v in lines if v["label"] != v["truth"]]
    expected = {
        "all": len(lines),
        "accepted": sum(v["action"] == "accept" for v in lines),
        "review": sum(v["action"] == "review" for v in lines),
        "wrong": len(wrong),
        "accepted and wrong": sum(v["action"] == "accept" for v in wrong),
        "confident and wrong": sum(v["confidence"] is not None and v["confidence"] >= 0.8 for v in wrong),
        "second look": sum(len(v["looks"]) == 2 for v in lines),
        "strangers": sum(v["reason"] == "stranger" for v in lines),
    }
    dom = opened_dom
    shown = re.findall(r'<a [^>]*>([a-z ]+)<span class="num">([\d,]+)', text := dom[dom.index('id="filters"') :])
    assert {name: int(n) for name, n in shown} == expected
    assert f"1 to {min(40, len(wrong))} of {len(wrong)}" in text_of(text, r'id="status".*?</p>')
    # Least trusted first; no trust at all comes before any.
    order = sorted(wrong, key=lambda v: -1 if v["trust"] is None else v["trust"])
    assert re.findall(r'<span class="id">(.*?)</span>', text) == [v["id"] for v in order][:40]
    assert text.count("✗ truth:") == min(40, len(wrong))


def test_a_cell_of_the_matrix_leads_to_its_cases(page: Path) -> None:
    cells = Counter((v["truth"], v["label"]) for v in lines_of(page))
    for (truth, label), n in cells.items():
        assert f'<a href="#truth={truth}&amp;label={label or ""}"' in page.read_text()
        assert f"truth {truth}, verdict {label or 'no answer'}" in page.read_text()
        assert n
    dom = dump(page, "#truth=rust&label=rust&open=99999")
    assert f"of {cells['rust', 'rust']}" in text_of(dom, r'id="status".*?</p>')
    assert "✗" not in text_of(dom, r'<ol id="list".*?</ol>')


def test_an_opened_case_shows_looks_gate_and_neighbours(page: Path, opened_dom: str) -> None:
    verdict = lines_of(page)[wrong_with_evidence(page)]
    case = text_of(opened_dom, r'<details open="">.*?</details>')
    assert "First look" in case
    assert "Second look" in case
    assert "Gate: look again." in case
    assert "Gate: review." in case
    for neighbour in verdict["evidence"]:
        assert f"cosine {neighbour['similarity']:.3f}" in case
    for share in verdict["probs"]:
        assert f"{100 * round(share, 4):.1f}" in case


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_has_contrast_in_light_and_dark(scheme: int) -> None:
    css = (Path(report.__file__).parent / "report.css").read_text()
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", css.split(":root {")[1 + scheme].split("}")[0]))

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    # WCAG 2.1: at least 4.5 to 1 for text of ordinary size; on the page, on a hovered row, and on the system's row.
    for front in ("ink", "soft", "accent", "bad"):
        for back in ("paper", "faint", "tint"):
            light, dark = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (front, back)


def test_text_from_the_run_is_never_markup(tmp_path: Path) -> None:
    def nasty(line: dict) -> dict:
        line = json.loads(json.dumps(line).replace('"scab"', json.dumps(NASTY)))
        for look in line["looks"]:
            look["why"] = NASTY
            look["opinions"][0] |= {"agent": NASTY, "probs": None, "label": None, "confidence": None, "error": NASTY}
        return line | {"id": NASTY + line["id"], "group": NASTY, "path": NASTY, "why": NASTY, "model": NASTY}

    run = write_run(tmp_path, 60, change=nasty)
    metrics = json.loads((run / "metrics.json").read_text())
    extra = {
        f"agents/{NASTY}/acc": 0.5,
        f"errors/head + {NASTY}/both_wrong": 0.2,
        f"ood/{NASTY}/auroc": 0.5,
        "base/best_agent_name": NASTY,
        f"{NASTY}": 1.0,
    }
    (run / "metrics.json").write_text(json.dumps(metrics | extra))
    (run / "manifest.json").write_text(
        json.dumps({"notes": [NASTY], "data": NASTY, "created": NASTY, NASTY: {NASTY: 1}})
    )
    page = write_report(run, picture)
    parsed = outline(page)
    assert "alert(1)" not in re.sub(
        r"&lt;script&gt;alert\(1\)", "", re.sub(r"\\u003cscript>alert\(1\)", "", page.read_text())
    )
    data = [attrs.get("type") for attrs, _ in parsed.scripts]
    assert data == ["application/json", "application/json", "application/jsonl", "application/jsonl", None]
    dom = dump(page)
    assert "<script>alert" not in dom
    assert NASTY + "leaf-00000" in text_of(dom, r'<ol id="list".*?</ol>')


@pytest.mark.parametrize(
    ("gain", "said"), [(0.01, "The system is not the best here."), (-0.01, "No alternative was right")]
)
def test_the_comparison_says_who_was_better(tmp_path: Path, gain: float, said: str) -> None:
    run = write_run(tmp_path, 20)
    metrics = {"acc/top1": 0.9, "base/neighbour_vote": 0.9 + gain, "base/oracle": 1.0, "agents/head/acc": 0.85}
    (run / "metrics.json").write_text(json.dumps(metrics))
    text = write_report(run, picture).read_text()
    assert said in text
    assert ("+1.0 better" in text) == (gain > 0)
    assert "knows the truth" in text


def with_metrics(run: Path, metrics: dict[str, float | str | None]) -> str:
    """Write the page of a small run that was measured like this."""
    write_run(run, 20)
    (run / "metrics.json").write_text(json.dumps(metrics))
    return write_report(run, picture).read_text()


def test_a_lead_within_its_interval_is_called_chance_and_one_beyond_it_is_not(tmp_path: Path) -> None:
    lead = {"acc/top1": 0.9, "base/stacked": 0.92, "base/stacked/gain": 0.02, "base/stacked/gain/hi": 0.05}
    chance = with_metrics(tmp_path / "a", lead | {"base/stacked/gain/lo": -0.01})
    assert "by no more than chance allows: stacked logistic regression by 2.0 points; intervals reach 0." in chance
    assert "+2.0 better" not in chance
    assert "−1.0 to +5.0" in chance
    sure = with_metrics(tmp_path / "b", lead | {"base/stacked/gain/lo": 0.01})
    assert "not the best here. More often right, beyond chance: stacked logistic regression by 2.0 points." in sure
    assert "<strong>+2.0 better</strong>" in sure


def test_every_policy_has_its_name_in_words_and_many_rows_fold_away_what_is_no_rule(tmp_path: Path) -> None:
    assert set(RULES) == set(POLICIES) - {"auto"}
    metrics: dict[str, float | str | None] = {"acc/top1": 0.9, "agents/head@2/acc": 0.8, "base/oracle": 1.0}
    few = with_metrics(tmp_path / "a", metrics)
    assert "head (second look)" in few
    assert "<details" not in few.partition('id="cases"')[0]
    many = with_metrics(tmp_path / "b", metrics | {f"base/{key}": 0.5 for key in RULES})
    shown, folded = many.partition('id="cases"')[0].split('<details class="more">')
    assert all(name in shown for name in RULES.values())
    assert '<th scope="row">head (second look)' not in shown
    assert '<th scope="row">head (second look)' in folded
    assert "oracle" in folded


def test_errors_that_agents_share_are_a_matrix_with_what_agreement_is_worth(tmp_path: Path) -> None:
    agents: dict[str, float | str | None] = {"agents/a/acc": 0.9, "agents/b/acc": 0.8, "agents/a@2/acc": 0.7}
    pairs = {"a + b": (0.5, 0.08), "a + a@2": (0.9, 0.1), "b + a@2": (None, 0.05)}
    for pair, (phi, wrong) in pairs.items():
        agents |= {f"errors/{pair}/phi": phi, f"errors/{pair}/both_wrong": wrong}
    text = with_metrics(tmp_path, agents | {"errors/a + b/wrong_of_agreed": 0.1, "acc/top1": 0.9})
    # a and a@2 share more, but they are one agent.
    assert (
        "a and b are most often wrong together: on 8.0\u202f% of the images; where they agree, 10.0\u202f% is" in text
    )
    cells = re.findall(r"<td[^>]*>(.*?)</td>", text.split('id="h-shared"')[1].split("</table>")[0])
    seen = [[w for w in html.unescape(re.sub(r"<[^>]*>", " ", cell)).split(" ") if w] for cell in cells]
    assert seen == [["10.0\u202f%", "alone"], ["8.0\u202f%", "0.50"], ["20.0\u202f%", "alone"], ["10.0\u202f%", "0.90"],
                    ["5.0\u202f%", "–"], ["30.0\u202f%", "alone"]]  # fmt: skip


@pytest.mark.parametrize(
    ("upper", "said"), [(0.88, "promised 90\u202f%, not kept here"), (0.93, "promised 90\u202f%, within the interval")]
)
def test_sets_stand_beside_what_they_promised(tmp_path: Path, upper: float, said: str) -> None:
    ends = {"set/coverage/lo": 0.8, "set/coverage/hi": upper, "set/coverage_worst_label": 0.5}
    text = with_metrics(tmp_path, {"set/coverage": 0.85, "set/level": 0.9} | ends)
    assert f"{said}; 50.0\u202f% for the worst label" in text
    assert f"80.0\u202f% to {100 * upper:.1f}\u202f%" in text


def test_strangers_are_told_in_three_ways(tmp_path: Path) -> None:
    figures = {"ood/cats/n": 1.0, "ood/cats/review_share": 0.9, "ood/cats/auroc": 0.91, "ood/cats/aupr": 0.72}
    text = with_metrics(tmp_path, figures | {"ood/cats/fpr95": None})
    words = text_of(text, r'<table class="strangers">.*?</table>').split(" ")
    assert [w for w in words if w.strip()][-7:] == ["cats", "1", "image", "90.0\u202f%", "0.910", "0.720", "–"]


def test_every_reason_for_review_has_words() -> None:
    assert set(report.REVIEWS) == set(get_args(Reason))


def test_thresholds_are_said_for_each_look_where_they_differ(tmp_path: Path) -> None:
    def strict_first(line: dict) -> dict:
        return line | {"looks": [look | {"threshold": 0.95 if look["look"] == 1 else 0.8} for look in line["looks"]]}

    def none(line: dict) -> dict:
        return line | {"looks": [look | {"threshold": None} for look in line["looks"]]}

    def held(line: dict) -> dict:
        return line | {"action": "review", "reason": "drift"}

    pages = {name: write_report(write_run(tmp_path / name, 40, change=change), picture).read_text()
             for name, change in {"one": dict, "two": strict_first, "none": none, "held": held}.items()}  # fmt: skip
    assert "The gate accepts from a trust of 0.820." in pages["one"]
    assert "The gate accepts from a trust of 0.950 at look 1, 0.800 at look 2." in pages["two"]
    assert "The gate accepts from" not in pages["none"]
    assert "The gate would accept from a trust of 0.820." in pages["held"]
    assert "moved away from what the model was fitted on" in pages["held"]


def test_with_costs_the_curve_has_no_target_and_a_case_says_why_its_label_is_not_the_likeliest(tmp_path: Path) -> None:
    def costly(line: dict) -> dict:
        looks = [look | {"label": "scab" if look["look"] == len(line["looks"]) else "rust"} for look in line["looks"]]
        return line | {"label": "scab", "looks": looks}

    run = write_run(tmp_path, 20, change=costly)
    (run / "metrics.json").write_text(json.dumps({"sel/target_risk": 0.05, "sel/accepted_cost": 0.02}))
    page = write_report(run, picture)
    assert 'class="target"' not in page.read_text()
    lines = lines_of(page)
    at = next(
        i for i, v in enumerate(lines) if v["probs"] and v["probs"].index(max(v["probs"])) != 3 and len(v["looks"]) > 1
    )
    dom = dump(page, f"#open={at}")
    assert "label of least expected cost: scab" in dom
    assert "2 looks, first rust" in dom


def test_a_missed_target_is_said_first(tmp_path: Path) -> None:
    run = write_run(tmp_path, 20)
    (run / "metrics.json").write_text(json.dumps({"sel/accepted_error": 0.08, "sel/target_risk": 0.05}))
    text = write_report(run, picture).read_text()
    assert "The gate missed its target: 8\u202f% of what it accepted is wrong, not at most 5\u202f%." in text
    assert '<div class="alarm">' in text


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path, 20)
    (run / "metrics.json").unlink()
    (run / "manifest.json").unlink()
    text = write_report(run, picture).read_text()
    assert "Beside the alternatives" not in text
    assert "of all labels, right" in text
    assert "nan" not in re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL)


def test_an_unlabelled_run_says_nothing_of_truth(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path, 30, labelled=False), picture)
    dom = dump(page)
    assert "truth" not in text_of(dom, r"<body>.*</body>")
    assert "wrong" not in text_of(dom, r'<nav id="filters".*?</nav>')
    assert "What was found" in dom
    assert "1 to 30 of 30" in dom


def test_an_empty_run_is_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "verdicts.jsonl").touch()
    page = write_report(tmp_path, picture)
    outline(page)
    assert "This run holds no verdicts." in page.read_text()
    assert "No case is like this." in dump(page)


def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    run = write_run(tmp_path, 10)
    path = run / "verdicts.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    text = write_report(run, picture).read_text()
    assert "The last line of verdicts.jsonl is torn" in text
    assert "9 images, 4 labels" in text


def test_a_broken_line_or_no_file_is_the_users_to_mend(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no verdicts\.jsonl"):
        write_report(tmp_path, picture)
    run = write_run(tmp_path, 3)
    lines = (run / "verdicts.jsonl").read_text().splitlines()
    (run / "verdicts.jsonl").write_text("\n".join([lines[0], '{"id": 3}', lines[2]]))
    with pytest.raises(ConfigError, match="line 2 is not a verdict"):
        write_report(run, picture)
    (run / "verdicts.jsonl").write_text(lines[0] + "\n" + lines[1].replace('"scab"', '"mildew"') + "\n")
    with pytest.raises(ConfigError, match="line 2 has the labels"):
        write_report(run, picture)
    (run / "verdicts.jsonl").write_text(lines[0] + "\n")
    (run / "metrics.json").write_text("[1]")
    with pytest.raises(ConfigError, match="not a JSON object"):
        write_report(run, picture)
    assert not (run / "report.html").exists()


def test_many_labels_are_listed_by_their_confusions(tmp_path: Path) -> None:
    labels = [f"kind-{k}" for k in range(20)]

    def widen(line: dict) -> dict:
        looks = [look | {"probs": None, "opinions": []} for look in line["looks"]]
        return line | {"labels": labels, "label": "kind-3", "truth": "kind-4", "probs": None, "looks": looks}

    text = write_report(write_run(tmp_path, 12, change=widen), picture).read_text()
    assert '<table class="confusion"' not in text
    assert "kind-4 taken for kind-3" in text


def test_each_picture_is_asked_for_once_and_neighbours_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()

    def ask(key: str) -> bytes:
        asked[key] += 1
        return b"x" * (case_blocks.MAX_PICTURE_BYTES + (key == "d00003"))

    monkeypatch.setattr(case_blocks, "MAX_NEIGHBOUR_PICTURES", 7)
    page = write_report(write_run(tmp_path, 150), ask)
    assert set(asked.values()) == {1}
    assert sum(key.startswith("train/") for key in asked) == 7
    blocks = {a["class"]: [] for a, _ in outline(page).scripts if "class" in a}
    for attrs, text in outline(page).scripts:
        if "class" in attrs:
            blocks[attrs["class"]] += text.split("\n")
    assert len(blocks["pictures"]) == 7
    assert len(blocks["cases"]) == 150
    # One picture is a byte too large: left out, the case is not.
    assert [json.loads(blocks["cases"][i])["picture"] is None for i in (2, 3)] == [False, True]


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    peaks = []
    for n in (100, 100, 400):
        run = write_run(tmp_path / str(n), n)
        tracemalloc.start()
        write_report(run, lambda key: b"\xff\xd8" + bytes(3000))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The first writing also pays for the template; 300 more cases are 9 bytes each and some names.
    assert peaks[2] < 1.15 * peaks[1]


def test_two_thousand_cases_make_a_page_quickly_and_a_small_dom(tmp_path: Path) -> None:
    run = write_run(tmp_path, 2000)
    leaf = picture("one")
    start = time.perf_counter()
    page = write_report(run, lambda key: leaf)
    assert time.perf_counter() - start < 10
    dom = dump(page, "#page=50")
    assert "1,961 to 2,000 of 2,000" in dom
    assert len(re.findall(r"<[a-z]", dom)) < 2000


def test_curves_are_drawn_where_the_numbers_say() -> None:
    # Four cases: trusts .9 .8 .7 .6, the third wrong; two accepted. Risk 0, 0, 1/3, 1/4 at coverage 1/4 ... 1.
    tally = Tally(n=4, labelled=4, right=3, accepted_labelled=2)
    tally.trust.extend([0.9, 0.8, 0.7, 0.6])
    tally.confidence.extend([0.9, 0.9, float("nan"), 0.5])
    tally.correct.extend([1, 1, 0, 1])
    risk = risk_chart(tally, target=0.25)
    assert risk is not None
    width, height = RIGHT - LEFT, risk.y0 - risk.y1
    drawn = [tuple(map(float, point.split(","))) for point in risk.points.split()]
    # The axis ends at 50 %, the next step above 1.1 x 1/3.
    hand = [(LEFT + width * c, risk.y0 - height * r / 0.5) for c, r in [(0.25, 0), (0.5, 0), (0.75, 1 / 3), (1, 0.25)]]
    assert np.allclose(drawn, hand, atol=0.1)
    assert risk.gate is not None
    assert risk.gate[:2] == pytest.approx((LEFT + width / 2, risk.y0))
    assert risk.target == pytest.approx(risk.y0 - height / 2, abs=0.1)
    reliability = reliability_chart(tally)
    assert reliability is not None
    assert [(d.n, round(d.confidence, 3), d.accuracy) for d in reliability.dots] == [(1, 0.5, 1.0), (2, 0.9, 1.0)]
    assert risk_chart(Tally(), None) is None
    assert reliability_chart(Tally()) is None
