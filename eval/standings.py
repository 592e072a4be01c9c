"""The system beside its alternatives, and in plain words whether any of them did better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from secondlook.eval.measured import Figure, Measured

RULES = {
    "best_agent": "best agent alone",
    "neighbour_vote": "neighbour vote",
    "judge": "judge that hears the agents",
    "majority": "majority of the agents",
    "mean": "mean of the agents",
    "confidence_weighted": "agents weighted by confidence",
    "cooked": "mean of the agents, uncalibrated",
    "pool": "log-linear pool",
    "confusion": "answer table of each agent",
    "joint_confusion": "answer table of all agents together",
    "stacked": "stacked logistic regression",
}
"""Keys `base/KEY` that could stand in for the system, and what they are called; unknown ones keep their key."""

BOUNDS = {"best_in_hindsight": "the agent that was best here", "oracle": "right if any agent is"}
"""Keys `base/KEY` that look at the truth, and how."""

NAMED = 3
"""As many better alternatives are named in the sentence; the table shows all."""


class Standing(NamedTuple):
    """One row of the comparison: how often right when this decides."""

    name: str
    kind: str
    """``system``, ``rule``, ``agent`` or ``bound``."""
    right: float
    gain: Figure
    """Accuracy above the system's, paired case by case."""
    note: str = ""
    ece: float | None = None

    @property
    def better(self) -> bool:
        """Whether it beat the system by more than its interval allows to be chance, or has no interval to tell."""
        return self.gain.value > 0 and (self.gain.lo is None or self.gain.lo > 0)


def standings(measured: Measured, system: Figure | None) -> list[Standing]:
    """List the system, then what could stand in for it, the best first, then agents alone and what knows the truth."""
    if system is None:
        return []
    numbers, best = measured.numbers, measured.texts.get("base/best_agent_name", "")

    def row(name: str, kind: str, key: str, suffix: str = "", note: str = "") -> Standing:
        right = numbers[key + suffix]
        gain = measured.figure(f"{key}/gain") or Figure(right - system.value)
        return Standing(name, kind, right, gain, note, numbers.get(f"{key}/ece"))

    rules = [
        row(RULES.get(key, key.replace("_", " ")), "rule", f"base/{key}", note=spoken(best) * (key == "best_agent"))
        for key in measured.names("base")
        if key not in BOUNDS
    ]
    rules = [s._replace(ece=numbers.get(f"agents/{best}/ece")) if s.name == RULES["best_agent"] else s for s in rules]
    agents = []
    for name in measured.names("agents", "acc"):
        n, whole = (numbers.get(key) for key in (f"agents/{name}/n", "n"))
        note = "alone" if n is None or n == whole else f"alone, answered {n:,.0f}"
        agents.append(row(spoken(name), "agent", f"agents/{name}", "/acc", note))
    bounds = [
        row(key.replace("_", " "), "bound", f"base/{key}", note=note)
        for key, note in BOUNDS.items()
        if f"base/{key}" in numbers
    ]
    found = [*sorted(rules, key=lambda s: -s.right), *agents, *bounds]
    ours = Standing("secondlook", "system", system.value, Figure(0.0), "this system", numbers.get("cal/ece"))
    return [ours, *found] if found else []


def spoken(column: str) -> str:
    """Name an agent's answers in words.

    Examples
    --------
    >>> spoken("linear-head"), spoken("linear-head@2")
    ('linear-head', 'linear-head (second look)')
    """
    name, at, look = column.rpartition("@")
    if not at or not look.isdecimal():
        return column
    return f"{name} ({'second look' if look == '2' else f'look {look}'})"


def comparison(ranked: Sequence[Standing], best_agent: str | None) -> str:
    """Say plainly whether anything did better than the system.

    Examples
    --------
    >>> ours = Standing("secondlook", "system", 0.90, Figure(0.0))
    >>> vote = Standing("neighbour vote", "rule", 0.88, Figure(-0.02, -0.04, 0.0))
    >>> comparison([ours, vote], None)
    'No alternative was right more often on these images; neighbour vote came closest, 2.0 points behind.'
    """
    best = spoken(best_agent or "")
    rivals = [s for s in ranked if s.kind == "rule" or (s.kind == "agent" and s.name != best)]
    rivals.sort(key=lambda s: -s.gain.value)
    # Those that differ from the system alike, as a rule that only repeats an agent, are named once.
    ahead = list({s.gain: s for s in rivals[::-1] if s.gain.value > 0}.values())
    ahead.sort(key=rivals.index)
    if surely := [s for s in ahead if s.better]:
        how = " on these images" if any(s.gain.lo is None for s in surely) else ", beyond chance"
        return f"The system is not the best here. More often right{how}: {_named(surely)}."
    if ahead:
        return f"More often right on these images, by no more than chance allows: {_named(ahead)}; intervals reach 0."
    if not rivals:
        return ""
    first = rivals[0]
    place = (
        "was right as often" if first.gain.value == 0 else f"came closest, {-100 * first.gain.value:.1f} points behind"
    )
    return f"No alternative was right more often on these images; {first.name} {place}."


def _named(better: Sequence[Standing]) -> str:
    names = ", ".join(f"{s.name} by {100 * s.gain.value:.1f} points" for s in better[:NAMED])
    return names + (f" and {len(better) - NAMED} more" if len(better) > NAMED else "")


def strip(ranked: Sequence[Standing]) -> Callable[[float], float]:
    """Place gains on a strip 160 wide that holds 0 and the ends of all intervals."""
    ends = [e for s in ranked for e in s.gain if e is not None]
    low, high = min([-0.01, *ends]), max([0.01, *ends])
    return lambda gain: round(2 + 156 * (gain - low) / (high - low), 1)
