"""Track records: what an agent was measured to be worth, on held-out cases."""

from __future__ import annotations

from secondlook.agents.case import Frozen, MaybeNan


class Measure(Frozen):
    """A number with its interval and the n behind it; nan where undefined."""

    value: MaybeNan
    low: MaybeNan = float("nan")
    high: MaybeNan = float("nan")
    n: int = 0


class TrackRecord(Frozen):
    """One agent at one look, on held-out cases, by its calibrated and cross-fitted answers."""

    agent: str
    look: int
    n: int
    """Cases it was asked."""
    n_failed: int
    accuracy: Measure
    ece: Measure
    """Expected calibration error, 15 equal-width bins."""
    ece_raw: MaybeNan
    """The same before calibration."""
    overconfidence: Measure
    """OCR: share of cases that are wrong with confidence of at least .8."""
    correlation: Measure
    """CCC: Pearson correlation of confidence with correctness."""
    brier: MaybeNan
    nll: MaybeNan
    auroc: MaybeNan
    """Of confidence against correctness."""
    precision: dict[str, Measure]
    """Per predicted label, shrunk towards the accuracy by two cases' worth."""
    calibrator: str
    """`none`, `temperature`, `vector` or `answer table`, with its numbers in words."""
    confidences: int = 0
    """Distinct confidences that the agent itself gave, before calibration, counted to six decimals."""
    degenerate: str = ""
    """What is wrong with them, such as `says .95 to everything`; empty where nothing is."""


class FlipLedger(Frozen):
    """What second looks did to labels on held-out cases."""

    asked: int = 0
    """Cases whose first look did not reach the threshold."""
    fixed: int = 0
    """Wrong before, right after."""
    broken: int = 0
    """Right before, wrong after."""
    changed_between_wrongs: int = 0
    saved: float = 0.0
    """Loss before minus loss after, over all of them; in largest costs, or in errors where the task has no costs."""

    @property
    def net(self) -> int:
        """Fixed minus broken."""
        return self.fixed - self.broken
