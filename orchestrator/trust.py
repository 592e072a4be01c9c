"""Track records that live: what agents turn out to be worth while they work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from secondlook.agents.case import Frozen, MaybeNan
from secondlook.agents.errors import ConfigError
from secondlook.agents.prediction import Failure, Outcome
from secondlook.orchestrator.ledger import Acknowledgement, Entry, LedgerWriter, Line, Scope
from secondlook.orchestrator.panel import column
from secondlook.orchestrator.track_record import Measure

SYSTEM = "secondlook"
"""Name of the system itself among the agents; its entries are its verdicts, at `FINAL`."""
FINAL = 0
"""The look of a verdict, whatever look it was reached at."""
PRIOR = 10.0
"""Cases' worth of the recorded accuracy in an agent's posterior."""
LABEL_PRIOR = 2.0
"""Cases' worth of the agent's accuracy in the posterior of each label's precision."""
Floats = NDArray[np.float64]


class Memory(Frozen):
    """How much of the past counts."""

    half_life: Annotated[float, Field(gt=0)] | None = 500.0
    """Cases with a known truth after which one counts half; None forgets nothing."""
    window: Annotated[int, Field(ge=1)] | None = None
    """Only the last so many count; None counts all."""

    def weights(self, n: int) -> Floats:
        """Weights of n cases, oldest first: 2^(-age / half_life), the newest of age 0; 0 outside the window."""
        age = np.arange(n - 1, -1, -1.0)
        weights = np.ones(n) if self.half_life is None else 2.0 ** (-age / self.half_life)
        if self.window is not None:
            weights[age >= self.window] = 0.0
        return weights


class Sample(NamedTuple):
    """How a case came to have a known truth."""

    scope: Scope = "all"
    weight: float = 1.0


class Standing(Frozen):
    """What one agent at one look turned out to be worth, under its present binding."""

    agent: str
    look: int
    scope: Scope
    n: int
    """Cases with an answer and a known truth within the memory."""
    n_failed: int
    """Cases with a known truth within the memory that it gave no answer to; not among the n."""
    n_effective: float
    """(sum w)^2 / sum w^2 with the weights of forgetting and sampling: as many equal cases would be as sure."""
    accuracy: Measure
    """Weighted share right, with Wilson's 95 % interval at the effective n."""
    precision: dict[str, Measure]
    """By said label: the mean and 95 % interval of a Beta posterior, shrunk towards the agent's own accuracy."""
    overconfidence: MaybeNan
    """Mean confidence minus accuracy: above 0 it is surer than right."""


class LivingRecords:
    """The entries of a ledger, and the standing that follows from them.

    A second update of the same case, agent, look and binding supersedes the first and keeps its place, so that a
    mistyped truth can be put right; one that says nothing new is ignored, and one without a truth never removes one.

    Parameters
    ----------
    labels : sequence of str
        The task's K labels, the order of every outcome's scores.
    bindings : mapping of str to str
        Present binding of each column, and of `SYSTEM`.
    recorded : mapping of str to float
        Accuracy of each column as `fit` measured it, the prior of its standing.
    lines : iterable of Entry or Acknowledgement
        What a ledger holds already.
    writer : LedgerWriter, optional
        Gets every line that changes anything.

    Examples
    --------
    >>> from secondlook.agents.prediction import Prediction
    >>> records = LivingRecords(("cat", "dog"), {"eye": "b1"})
    >>> said = Prediction(agent="eye", scale="probability", scores=(0.9, 0.1))
    >>> records.update("case-1", "eye", 1, said, "cat")
    True
    >>> records.standing("eye", 1).accuracy.value
    1.0
    """

    def __init__(
        self,
        labels: Sequence[str],
        bindings: Mapping[str, str],
        recorded: Mapping[str, float] | None = None,
        lines: Iterable[Line] = (),
        writer: LedgerWriter | None = None,
    ) -> None:
        self.labels = tuple(labels)
        self.bindings = dict(bindings)
        self._recorded = dict(recorded or {})
        self._writer: LedgerWriter | None = None
        self._entries: dict[tuple[str, str, int, str], Entry] = {}
        self.seen_to = 0
        """Entries that the last acknowledgement came after."""
        self.acknowledged: tuple[Acknowledgement, ...] = ()
        for line in lines:
            self.record(line)
        self._writer = writer

    def update(
        self,
        case_id: str,
        agent: str,
        look: int,
        outcome: Outcome,
        label: str | None,
        *,
        group: str | None = None,
        sample: Sample = Sample(),  # noqa: B008  a NamedTuple is immutable
    ) -> bool:
        """Record what an agent said of a case.

        Parameters
        ----------
        case_id, agent, look
            Which case, who, when.
        outcome : Prediction or Failure
            Calibrated.
        label : str or None
            The truth; None while it is not known.
        group, sample
            See `Entry`.

        Returns
        -------
        bool
            Whether anything is new.

        Raises
        ------
        ConfigError
            When the truth is no label of the task.
        KeyError
            When the column has no binding.
        """
        if label is not None and label not in self.labels:
            raise ConfigError(f"{case_id} has the unknown label {label!r}.", f"The labels are {list(self.labels)}.")
        answer = None if isinstance(outcome, Failure) else outcome
        return self.record(
            Entry(
                case=case_id,
                agent=agent,
                look=look,
                binding=self.bindings[SYSTEM if agent == SYSTEM else column(agent, look)],
                group=group,
                label=None if answer is None else self.labels[answer.top],
                confidence=None if answer is None else min(1.0, answer.scores[answer.top]),
                truth=label,
                scope=sample.scope,
                weight=sample.weight,
            )
        )

    def acknowledge(self, by: str) -> None:
        """Let the detectors begin anew."""
        self.record(Acknowledgement(by=by))

    def record(self, line: Line) -> bool:
        """Take a line as it is, the system's own verdicts for instance; return whether it says anything new."""
        if isinstance(line, Entry):
            before = self._entries.get(line.key)
            if before is not None and line.group is None:
                line = line.model_copy(update={"group": before.group})  # what is known of a case is not forgotten
            if line == before or (before is not None and line.truth is None and before.truth is not None):
                return False
        if self._writer is not None:
            self._writer.append(line)
        if isinstance(line, Entry):
            self._entries[line.key] = line
        else:
            self.seen_to, self.acknowledged = len(self._entries), (*self.acknowledged, line)
        return True

    def entries(self, name: str, *, scope: Scope | None = None, since_seen: bool = False) -> list[Entry]:
        """Entries of a column, or of `SYSTEM`, under its present binding.

        Parameters
        ----------
        name : str
            A column, or `SYSTEM`.
        scope : {"all", "accepted", "review"}, optional
            Only those with a known truth, of this scope.
        since_seen : bool
            Only those after the last acknowledgement.
        """
        rows = list(self._entries.values())[self.seen_to if since_seen else 0 :]
        binding = self.bindings.get(name)
        return [
            e
            for e in rows
            if e.binding == binding
            and (e.agent if e.agent == SYSTEM else column(e.agent, e.look)) == name
            and (scope is None or (e.truth is not None and e.scope == scope))
        ]

    def truth_of(self, case_id: str) -> str | None:
        """Return the truth that the system's present entry of a case holds."""
        found = self._entries.get((case_id, SYSTEM, FINAL, self.bindings.get(SYSTEM, "")))
        return None if found is None else found.truth

    def __len__(self) -> int:
        """Entries, of any binding."""
        return len(self._entries)

    def standing(self, agent: str, look: int, memory: Memory = Memory(), scope: Scope = "all") -> Standing:  # noqa: B008
        """Say what an agent is worth by the truths of one scope; nan, with its n, where nothing is known."""
        name = SYSTEM if agent == SYSTEM else column(agent, look)
        known = self.entries(name, scope=scope)
        forgetting = memory.weights(len(known))
        kept = [(e, w * e.weight) for e, w in zip(known, forgetting.tolist(), strict=True) if w > 0]
        rows = [(e, w) for e, w in kept if e.label is not None]
        weights = np.array([w for _, w in rows])
        right = np.array([not e.wrong for e, _ in rows], dtype=np.float64)
        total = weights.sum()
        size = float(total**2 / (weights**2).sum()) if len(rows) else 0.0
        accuracy = float((weights * right).sum() / total) if len(rows) else float("nan")
        confidence = np.array([e.confidence or 0.0 for e, _ in rows])
        # Weights that add up to the effective number of cases: posteriors count in cases.
        cases = weights * (size / total) if len(rows) else weights
        own = _posterior_mean(self._recorded.get(name, float("nan")), float((cases * right).sum()), size)
        said = np.array([e.label for e, _ in rows], dtype=object)
        labels = sorted({str(e.label) for e, _ in rows} | {str(e.truth) for e, _ in rows})
        return Standing(
            agent=agent,
            look=look,
            scope=scope,
            n=len(rows),
            n_failed=len(kept) - len(rows),
            n_effective=size,
            accuracy=_wilson(accuracy, size, len(rows)),
            precision={x: _precision(cases[said == x], right[said == x], own) for x in labels},
            overconfidence=float((weights * confidence).sum() / total) - accuracy if len(rows) else float("nan"),
        )


def _posterior_mean(recorded: float, right: float, n: float) -> float:
    """Mean of Beta(S r + right, S (1 - r) + wrong); r is the recorded accuracy, or one half of 2 cases."""
    prior, strength = (0.5, 2.0) if np.isnan(recorded) else (recorded, PRIOR)
    return (strength * prior + right) / (strength + n)


def _precision(cases: Floats, right: Floats, own: float) -> Measure:
    from scipy.special import betaincinv

    if not len(cases):
        return Measure(value=float("nan"))
    # A prior of exactly 0 or 1 is no Beta distribution.
    mean = min(max(own, 1e-6), 1 - 1e-6)
    a = LABEL_PRIOR * mean + float((cases * right).sum())
    b = LABEL_PRIOR * (1 - mean) + float((cases * (1 - right)).sum())
    low, high = (float(betaincinv(a, b, q)) for q in (0.025, 0.975))
    return Measure(value=a / (a + b), low=low, high=high, n=len(cases))


def _wilson(share: float, size: float, n: int) -> Measure:
    """Wilson's interval of a share at an effective number of cases."""
    if n == 0:
        return Measure(value=float("nan"))
    z = 1.959963984540054
    centre = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    reach = z / (1 + z**2 / size) * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2))
    return Measure(value=share, low=max(0.0, centre - reach), high=min(1.0, centre + reach), n=n)
