"""Static figures of an evaluation, for papers and slides: as SVG and PNG, told apart without colour too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from secondlook.agents.errors import ConfigError
from secondlook.eval.arrays import Floats, Ints
from secondlook.eval.bootstrap import wilson
from secondlook.eval.measured import Figure as Measure
from secondlook.eval.measured import Measured, read_measured
from secondlook.eval.reliability import ece, reliability_bins
from secondlook.eval.run_folder import METRICS, VERDICTS
from secondlook.eval.selective import risk_coverage
from secondlook.eval.tally import Tally, read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#595959"
"""Okabe and Ito's colours, which colour-blind readers tell apart; in grey they differ in lightness."""
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    # Labels are data: a dollar sign in one starts no formula.
    "text.parse_math": False,
    # Text stays text in an SVG, and the same run gives the same bytes.
    "svg.fonttype": "none",
    "svg.hashsalt": "secondlook",
}
DPI = 300
WIDTH, HEIGHT, PAGE = 3.5, 3.3, 7.2
"""Inches: one column of a paper, and both."""
NUMBERED, NAMED = 20, 60
"""Up to this many labels a confusion matrix shows its counts, and its names."""
LONGEST = 24
"""Characters shown of a label."""


def write_figures(run: Path, folder: Path) -> list[Path]:
    """Draw the reliability diagram, the risk-coverage curve and the confusion matrix of an evaluation.

    Parameters
    ----------
    run : Path
        A run folder with verdicts that carry the truth; metrics.json gives the target and the intervals.
    folder : Path
        Where to write; made where it is missing.

    Returns
    -------
    list of Path
        NAME.svg and NAME.png for reliability, risk-coverage and confusion, in this order.

    Raises
    ------
    ConfigError
        If the run holds no labelled case, or the folder cannot be written.
    """
    tally = Tally()
    for _ in read_rows(run / VERDICTS, tally):
        pass
    if not tally.labelled:
        raise ConfigError(f"{run} holds no case with its truth.", "Draw the figures of a run of secondlook evaluate.")
    measured = read_measured(run / METRICS)
    side = min(PAGE, max(WIDTH, 1.4 + 0.5 * len(tally.names)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [
            *_drawn(folder / "reliability", (WIDTH, HEIGHT), lambda axes: _reliability(axes, tally)),
            *_drawn(folder / "risk-coverage", (WIDTH, HEIGHT), lambda axes: _risk(axes, tally, measured)),
            *_drawn(folder / "confusion", (side, side), lambda axes: _confusion(axes, tally)),
        ]
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}.", "Choose a writable folder.") from error


def _drawn(stem: Path, size: tuple[float, float], draw: Callable[[Axes], None]) -> list[Path]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        paths = [stem.with_name(f"{stem.name}.{form}") for form in ("svg", "png")]
        figure.savefig(paths[0], metadata={"Date": None, "Title": stem.name})
        figure.savefig(paths[1], dpi=DPI)
    return paths


def _reliability(axes: Axes, tally: Tally) -> None:
    """Draw the share right against confidence, in 15 bins of equal width, over a histogram of the cases."""
    confidence = np.frombuffer(tally.confidence, dtype=np.float32).astype(np.float64)
    known = np.isfinite(confidence)
    said, right = confidence[known], np.frombuffer(tally.correct, dtype=np.uint8)[known]
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="share right")
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=(0, (4, 3)), zorder=1)
    if not len(said):
        _say(axes, "no case has a confidence")
        return
    table = reliability_bins(said, right)
    held = table.n > 0
    axes.bar(table.lo, 0.25 * table.n / table.n.max(), 1 / len(table.n), align="edge", color="#D9D9D9", zorder=0)
    share = table.accuracy[held]
    ends = [wilson(round(a * n), n) for a, n in zip(share.tolist(), table.n[held].tolist(), strict=True)]
    bars = np.maximum(0, [share - [end.lo for end in ends], [end.hi for end in ends] - share])
    axes.errorbar(table.confidence[held], share, bars, fmt="o", ms=4, lw=1, color=BLUE, clip_on=False, zorder=3)
    unanswered = f", {np.count_nonzero(~known)} without an answer" if not known.all() else ""
    axes.set_title(f"ECE {ece(said, right):.3f}, n = {len(said)}{unanswered}", loc="left")


def _risk(axes: Axes, tally: Tally, measured: Measured) -> None:
    """Draw the error among the accepted against the share accepted, with the target and where the gate stood."""
    curve = risk_coverage(np.frombuffer(tally.trust, dtype=np.float32), np.frombuffer(tally.correct, dtype=np.uint8))
    target, gate = measured.numbers.get("sel/target_risk"), _gate(tally, measured)
    if "sel/accepted_cost" in measured.numbers:
        target = None  # of the mean cost, and the axis shows errors
    axes.plot(curve.coverage, curve.risk, color=BLUE, lw=1.5, drawstyle="steps-post", label="by trust alone")
    if target is not None:
        axes.axhline(target, color=GREY, lw=1, ls=(0, (4, 3)), label=f"target {100 * target:.3g} %")
    if gate is not None:
        coverage, error = gate
        ends = None if error.lo is None or error.hi is None else [[error.value - error.lo], [error.hi - error.value]]
        name = f"gate: {100 * error.value:.2g} % wrong of {100 * coverage:.3g} %"
        bars = None if ends is None else np.maximum(0, ends)
        axes.errorbar(coverage, error.value, bars, fmt="D", ms=6, lw=1, color=VERMILION, label=name, clip_on=False)
    else:
        axes.plot([], [], ls="none", label="the gate accepts nothing")
    # Below a fifth of coverage one error is a spike; the axis ignores it, and leaves room for the legend.
    settled = float(curve.risk[curve.coverage >= 0.2].max())
    top = 1.4 * max(settled, target or 0.0, gate[1].hi or gate[1].value if gate else 0.0, 0.01)
    axes.set(xlim=(0, 1), ylim=(0, min(1.0, top)), xlabel="coverage", ylabel="error among the accepted")
    axes.set_title(f"n = {tally.labelled}", loc="left")
    axes.legend(loc="upper left", fontsize=8)


def _gate(tally: Tally, measured: Measured) -> tuple[float, Measure] | None:
    """Return coverage and error of what was accepted; None where nothing was."""
    if not tally.accepted_labelled:
        return None
    counted = Measure(tally.accepted_wrong / tally.accepted_labelled)
    return tally.accepted_labelled / tally.labelled, measured.figure("sel/accepted_error") or counted


def _confusion(axes: Axes, tally: Tally) -> None:
    """Draw the counts by true label (rows) and label given (columns), shaded by the share of the row."""
    names, counts = _counts(tally)
    n = counts.sum(axis=1, keepdims=True)
    shares: Floats = counts / np.where(n > 0, n, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15, aspect="equal")
    if len(names) <= NUMBERED:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                axes.text(j, i, str(count), ha="center", va="center", color="white" if shares[i, j] > 0.55 else "black")
    columns = [*names, "no answer"] if counts.shape[1] > len(names) else names
    rows = [name if total else f"{name} (none)" for name, total in zip(names, n[:, 0], strict=True)]
    named, size = len(names) <= NAMED, 9 if len(names) <= NUMBERED else 5
    axes.set_xticks(range(len(columns)) if named else [], columns if named else [], rotation=90, fontsize=size)
    axes.set_yticks(range(len(rows)) if named else [], rows if named else [], fontsize=size)
    axes.set(xlabel="label given", ylabel="true label")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"accuracy {100 * tally.right / tally.labelled:.1f} %, n = {tally.labelled}", loc="left")


def _counts(tally: Tally) -> tuple[list[str], Ints]:
    """Return the K names shown and the counts, shape (K, K), or (K, K + 1) where some cases have no answer."""
    place = {name: i for i, name in enumerate(tally.names)}
    counts = np.zeros((len(place), len(place) + 1), dtype=np.int64)
    for (truth, label), n in tally.cells.items():
        if truth is not None:
            counts[place[truth], len(place) if label is None else place[label]] += n
    answered = counts if counts[:, -1].any() else counts[:, :-1]
    return _shown(tally.names), answered


def _shown(names: Sequence[str]) -> list[str]:
    """Shorten names, and drop what no XML may hold."""
    plain = ("".join(c if c.isprintable() else " " for c in name) for name in names)
    return [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in plain]


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY)
