"""The system beside its alternatives, and in plain words whether any of them did better."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from secondlook.eval.measured import Figure, Measured

RULES = {
    "best_agent": "best agent alone",
    "neighbour_vote": "neighbour vote",
    "majority": "majority of the agents",
    "mean": "mean of the agents",
    "confidence_weighted": "agents weighted by confidence",
    "cooked": "mean of the agents as said",
    "pool": "log-linear pool",
    "confusion": "tables of answers",
    "joint_confusion": "table of joint answers",
    "stacked": "stacked logistic regression",
}
"""Keys `base/KEY` that could stand in for the system, and what they are called; unknown ones keep their key."""

BOUNDS = {"best_in_hindsight": "chosen knowing the truth", "oracle": "right if any agent is"}
"""Keys `base/KEY` that look at the truth, and how."""

NAMED = 3
"""As many better alternatives are named in the sentence; the table shows all."""


class Standing(NamedTuple):
    """One row of the comparison: how often right when this decides."""

    name: str
    kind: str
    """``system``, ``rule``, ``agent`` or ``bound``."""
    figure: Figure
    gain: float
    """Accuracy above the system's."""
    note: str = ""
    ece: float | None = None


def standings(measured: Measured, system: Figure | None) -> list[Standing]:
    """List the system, then its alternatives; nothing where none was measured beside it."""
    if system is None:
        return []
    found = []

    def add(name: str, kind: str, key: str, note: str = "", ece: float | None = None) -> None:
        if figure := measured.figure(key):
            found.append(Standing(name, kind, figure, figure.value - system.value, note, ece))

    best = measured.texts.get("base/best_agent_name", "")
    add(RULES["best_agent"], "rule", "base/best_agent", best, measured.numbers.get(f"agents/{best}/ece"))
    others = [key for key in measured.names("base") if key not in BOUNDS and key != "best_agent"]
    for key in others:
        add(RULES.get(key, key.replace("_", " ")), "rule", f"base/{key}", ece=measured.numbers.get(f"base/{key}/ece"))
    for key, note in BOUNDS.items():
        add(key.replace("_", " "), "bound", f"base/{key}", note)
    whole = measured.numbers.get("n")
    for name in measured.names("agents", "acc"):
        n = measured.numbers.get(f"agents/{name}/n", whole)
        note = "agent" if n is None or n == whole else f"agent, answered {n:,.0f}"
        add(name, "agent", f"agents/{name}/acc", note, measured.numbers.get(f"agents/{name}/ece"))
    ours = Standing("secondlook", "system", system, 0.0, "this system", measured.numbers.get("cal/ece"))
    return [ours, *found] if found else []


def comparison(ranked: list[Standing], best_agent: str | None) -> str:
    """Say plainly whether anything did better than the system.

    Examples
    --------
    >>> ours = Standing("secondlook", "system", Figure(0.90), 0.0)
    >>> vote = Standing("neighbour vote", "rule", Figure(0.88), -0.02)
    >>> comparison([ours, vote], None)
    'No alternative was right more often on these images; neighbour vote came closest, 2.0 points behind.'
    """
    rivals = [s for s in ranked if s.kind == "rule" or (s.kind == "agent" and s.name != best_agent)]
    rivals.sort(key=lambda s: -s.gain)
    # A rule that only repeats an agent, such as the neighbour vote, is named once.
    better = list({s.gain: s for s in reversed(rivals) if s.gain > 0}.values())[::-1]
    if better:
        names = ", ".join(f"{s.name} (by {100 * s.gain:.1f} points)" for s in better[:NAMED])
        more = f" and {len(better) - NAMED} more" if len(better) > NAMED else ""
        return (
            f"The system is not the best here. More often right on these images: {names}{more}. "
            "Where intervals overlap this may be chance."
        )
    if not rivals:
        return ""
    first = rivals[0]
    place = "was right as often" if first.gain == 0 else f"came closest, {-100 * first.gain:.1f} points behind"
    return f"No alternative was right more often on these images; {first.name} {place}."


def strip(ranked: list[Standing]) -> Callable[[float], float]:
    """Place accuracies on a strip 160 wide that begins below the lowest of them."""
    ends = [e for s in ranked for e in (s.figure.value, s.figure.lo) if e is not None]
    low = max(0.0, min(ends, default=0.0) - 0.02)
    return lambda share: round(2 + 156 * (share - low) / (1 - low), 1) if low < 1 else 158.0
