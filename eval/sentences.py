"""The large numbers of a run as sentences."""

from __future__ import annotations

from secondlook.eval.measured import Figure, Measured
from secondlook.eval.tally import FLAGS, OVERCONFIDENT, Tally


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + "\u202f%"


def sentences(
    tally: Tally, measured: Measured, risk: Figure | None, target: float | None, *, of_cost: bool
) -> list[str]:
    """Say in words what the large numbers of a run mean.

    Parameters
    ----------
    tally : Tally
    measured : Measured
    risk : Figure or None
        What the gate promised to bound, as it was measured.
    target : float or None
        The bound.
    of_cost : bool
        Whether it bounds the mean cost and not the share of errors.
    """
    said = []
    if risk and target is not None:
        what = "cost, as a share of the largest," if of_cost else "error"
        within = f"The measured {what} is within the target of {_percent(target)}"
        if risk.value > target:
            of_what = (
                "of the largest cost is what a case it accepted cost" if of_cost else "of what it accepted is wrong"
            )
            said.append(
                f"The gate missed its target: {_percent(risk.value)} {of_what}, not at most {_percent(target)}."
            )
        elif risk.hi is not None and risk.hi > target:
            said.append(f"{within}, but its interval reaches above it: it takes more cases to be sure.")
        else:
            said.append(f"{within}.")
    second, sure = tally.having(FLAGS["second"]), tally.having(FLAGS["wrong"] | FLAGS["confident"])
    if second:
        became = f"; that put {tally.fixed:,} right and {tally.broken:,} wrong" if tally.labelled else ""
        said.append(f"{_counted(second, 'image')} ({_percent(second / tally.n)}) had a second look{became}.")
    elif tally.n:
        said.append("No image had a second look.")
    said += _thresholds(tally)
    if tally.labelled:
        said.append(
            f"{_counted(sure, 'label')} with a confidence of {_percent(OVERCONFIDENT)} or more turned out wrong."
        )
    if speed := measured.figure("time/images_per_s"):
        said.append(f"Judged at {speed.value:.3g} images a second.")
    return said


def _thresholds(tally: Tally) -> list[str]:
    """Say from which trust labels are accepted; nothing where none are, which the reasons for review say."""
    least = {look: t for look, t in sorted(tally.thresholds.items()) if t is not None}
    said = [f"{t:.{5 if t >= 0.9995 else 3}f}" for t in least.values()]
    if not said:
        return []
    accepts = "accepts" if tally.accepted else "would accept"
    if len(set(said)) == 1:
        return [f"The gate {accepts} from a trust of {said[0]}."]
    each = ", ".join(f"{t} at look {look}" for look, t in zip(least, said, strict=True))
    return [f"The gate {accepts} from a trust of {each}."]


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}" if n else f"No {noun}"
