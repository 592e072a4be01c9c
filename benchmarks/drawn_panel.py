"""Panels drawn from known laws: agents of chosen accuracy whose errors go together and whose confidences mislead.

Every agent m has a latent score for each case n and label k,

    z[m, n, k] = (signal[m] - hardness * difficulty[n]) * (k is the truth) + bias[m, k]
                 + sqrt(shared) * common[n, k] + sqrt(1 - shared) * own[m, n, k]

with standard normal difficulty, common and own; its signal is found by bisection so that what it says is right as often
as was chosen. A copy takes the scores of another agent and says them in its own way. In grouped panels a share
`within` of the variance of each of the three belongs to the group, whose cases all have one truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.prediction import Failure, Outcome, Prediction, Scale

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Confidence = Literal["graded", "three values", "constant"]
"""How sure a stated answer is.

- ``graded``: the probability of its label, to two digits
- ``three values``: .85, .9 or .95, by thirds of the probability
- ``constant``: .95 whatever the case
"""
SIZES = (50, 100, 300, 1000)
"""Calibration cases of panels 0, 1, 2, 3, 4, ... in turn."""
ACCURACY = (0.3, 0.98)
LABELS = (2, 20)
AGENTS = (2, 6)
LEAST_PER_LABEL = 5
"""Calibration cases that `fit` demands of every label."""
UNITS_PER_LABEL = 10
"""Calibration groups a panel has for each label on average, so that few draws lack a label."""
NEIGHBOURS = 10
PILOT = 4000
"""Cases on which signals are found."""
STEPS = 14


@dataclass(frozen=True)
class AgentLaw:
    """One agent of a panel."""

    kind: Scale
    accuracy: float
    """Share of its answers that are right; a copy's is that of its original."""
    sharpness: float
    """What its scores are multiplied with before it says them; above 1 over-confident."""
    confidence: Confidence
    """Of stated answers."""
    bias: float
    """Standard deviation of its preference for labels."""
    copies: int | None
    """Position of the agent whose scores it takes."""
    failing: float
    """Share of cases it has no answer for, twice as many among the harder half and none among the easier."""


@dataclass(frozen=True)
class PanelLaw:
    """What a panel is drawn from."""

    n: int
    """Calibration cases."""
    prior: Floats
    """Label frequencies of shape (K,)."""
    agents: tuple[AgentLaw, ...]
    shared: float
    """Share of the variance of the errors that all agents have in common."""
    hardness: float
    """What one standard deviation of difficulty takes from every agent's signal."""
    group_size: int
    """Mean number of cases of one group; 1 where all are independent."""
    within: float
    """Share of the variance that belongs to the group."""
    strange: float
    """Correlation of difficulty with looking unlike other cases."""


@dataclass(frozen=True)
class Drawn:
    """N cases of a panel.

    Attributes
    ----------
    truth : ndarray of shape (N,)
    groups : tuple of N str
    typicality : ndarray of shape (N,)
        Uniform in (0, 1].
    scores : tuple of M ndarray of shape (N, K)
        What each agent says, of its own kind; rows of nan where it fails.
    """

    truth: Ints
    groups: tuple[str, ...]
    typicality: Floats
    scores: tuple[Floats, ...]


def draw_law(number: int, rng: np.random.Generator) -> PanelLaw:
    """Draw the law of one panel: its size and whether it is grouped by its number, all else at random."""
    n = SIZES[number % len(SIZES)]
    group_size = int(rng.integers(2, 6)) if number // len(SIZES) % 2 else 1
    most = int(np.clip(n // group_size // UNITS_PER_LABEL, LABELS[0], LABELS[1]))
    n_labels = round(float(np.exp(rng.uniform(np.log(LABELS[0]), np.log(most)))))
    evenness = rng.choice([0.6, 1.0])
    prior = evenness / n_labels + (1 - evenness) * rng.dirichlet(np.full(n_labels, 2.0))
    n_agents = int(rng.integers(AGENTS[0], AGENTS[1] + 1))
    peers = rng.random() < 0.5
    middle = rng.uniform(*ACCURACY)
    agents: list[AgentLaw] = []
    for m in range(n_agents):
        accuracy = float(np.clip(rng.normal(middle, 0.04), *ACCURACY)) if peers else float(rng.uniform(*ACCURACY))
        copies = int(rng.integers(m)) if m and rng.random() < 0.2 else None
        if copies is not None:
            copies = copies if agents[copies].copies is None else agents[copies].copies
            accuracy = agents[copies].accuracy  # type: ignore[index]
        agents.append(
            AgentLaw(
                kind=("logit", "probability", "stated", "vote")[int(rng.integers(4))],
                accuracy=accuracy,
                sharpness=float(
                    np.exp(
                        rng.choice(
                            [rng.normal(0, 0.3), rng.uniform(0.5, 2.0), rng.uniform(-1.5, -0.5)], p=[0.4, 0.4, 0.2]
                        )
                    )
                ),
                confidence=("graded", "three values", "constant")[int(rng.integers(3))],
                bias=float(rng.choice([0.0, 0.5])),
                copies=copies,
                failing=float(rng.choice([0.0, 0.02, 0.1, 0.3], p=[0.6, 0.2, 0.1, 0.1])),
            )
        )
    return PanelLaw(
        n=n,
        prior=prior,
        agents=tuple(agents),
        shared=float(rng.choice([0.0, rng.uniform(0.2, 0.8)], p=[0.3, 0.7])),
        hardness=float(rng.uniform(0, 1.5)),
        group_size=group_size,
        within=float(rng.uniform(0.3, 0.9)) if group_size > 1 else 0.0,
        strange=float(rng.uniform(0, 0.6)),
    )


class DrawnPanel:
    """A panel whose cases can be drawn, any number of times."""

    def __init__(self, law: PanelLaw, rng: np.random.Generator) -> None:
        self.law = law
        k = len(law.prior)
        self._bias = [agent.bias * rng.normal(size=k) for agent in law.agents]
        self._signal = np.zeros(len(law.agents))
        self._thirds = np.zeros((len(law.agents), 2))
        pilot = _Cases.draw(law, PILOT, 0, rng)
        for m, agent in enumerate(law.agents):
            source = m if agent.copies is None else agent.copies
            own = pilot.noise(rng)
            if source != m:
                self._signal[m], self._bias[m] = self._signal[source], self._bias[source]
            else:
                self._signal[m] = self._solve(m, pilot, own, int(rng.integers(2**31)))
            top = self._probs(m, pilot, own).max(axis=1)
            self._thirds[m] = np.quantile(top, [1 / 3, 2 / 3])

    def _solve(self, m: int, pilot: _Cases, own: Floats, seed: int) -> float:
        """Bisect for the signal; the same votes are drawn at every step."""
        low, high = -8.0, 20.0
        for _ in range(STEPS):
            self._signal[m] = (low + high) / 2
            said = self._say(m, pilot, own, np.random.default_rng(seed))
            if (said.argmax(axis=1) == pilot.truth).mean() < self.law.agents[m].accuracy:
                low = self._signal[m]
            else:
                high = self._signal[m]
        return (low + high) / 2

    def draw(self, n: int, rng: np.random.Generator, least: int = 0) -> Drawn:
        """Draw n cases, at least so many of each label.

        Raises
        ------
        ValueError
            Where a thousand draws lack a label.
        """
        cases = _Cases.draw(self.law, n, least, rng)
        noises: list[Floats] = []
        scores = []
        for m, agent in enumerate(self.law.agents):
            noises.append(cases.noise(rng) if agent.copies is None else noises[agent.copies])
            said = self._say(m, cases, noises[m], rng)
            said[(cases.difficulty > 0) & (rng.random(n) < 2 * agent.failing)] = np.nan
            scores.append(said)
        r = self.law.strange
        unlike = r * cases.difficulty + np.sqrt(1 - r**2) * cases.mixed(rng, (n,))
        return Drawn(cases.truth, cases.names, np.clip(_upper_tail(unlike), 1e-9, 1.0), tuple(scores))

    def _latent(self, m: int, cases: _Cases, own: Floats) -> Floats:
        law = self.law
        z: Floats = self._bias[m] + np.sqrt(law.shared) * cases.common + np.sqrt(1 - law.shared) * own
        z[np.arange(len(z)), cases.truth] += self._signal[m] - law.hardness * cases.difficulty
        return z

    def _probs(self, m: int, cases: _Cases, own: Floats) -> Floats:
        # With unit noise the log posterior is signal * z: a slope of `sharpness` times that is over-confident above 1.
        slope = self.law.agents[m].sharpness * max(abs(self._signal[m]), 0.5)
        return _softmax(slope * self._latent(m, cases, own))

    def _say(self, m: int, cases: _Cases, own: Floats, rng: np.random.Generator) -> Floats:
        """Scores of shape (N, K), of the agent's kind."""
        agent = self.law.agents[m]
        if agent.kind == "logit":
            return agent.sharpness * max(abs(self._signal[m]), 0.5) * self._latent(m, cases, own)
        probs = self._probs(m, cases, own)
        if agent.kind == "vote":
            return rng.multinomial(NEIGHBOURS, probs / probs.sum(axis=1, keepdims=True)) / NEIGHBOURS
        if agent.kind == "probability":
            return probs
        top = probs.max(axis=1)
        match agent.confidence:
            case "graded":
                sure = np.round(top, 2)
            case "three values":
                sure = np.array([0.85, 0.9, 0.95])[np.searchsorted(self._thirds[m], top)]
            case "constant":
                sure = np.full(len(top), 0.95)
        said = np.zeros_like(probs)
        said[np.arange(len(said)), probs.argmax(axis=1)] = sure
        return said


def outcomes(panel: PanelLaw, drawn: Drawn) -> dict[str, list[Outcome]]:
    """Say what was drawn as agents do: one outcome per case, by agent."""
    found: dict[str, list[Outcome]] = {}
    for name, agent, scores in zip(names(panel), panel.agents, drawn.scores, strict=True):
        found[name] = [
            Failure(agent=name, error="drawn to fail")
            if np.isnan(row[0])
            else Prediction(agent=name, scale=agent.kind, scores=tuple(row.tolist()))
            for row in scores
        ]
    return found


def names(panel: PanelLaw) -> tuple[str, ...]:
    """Names of the M agents, which tell their kinds."""
    return tuple(f"{agent.kind}-{m}" for m, agent in enumerate(panel.agents))


@dataclass(frozen=True)
class _Cases:
    """What all agents of a panel look at."""

    truth: Ints
    group: Ints
    difficulty: Floats
    common: Floats
    within: float

    @classmethod
    def draw(cls, law: PanelLaw, n: int, least: int, rng: np.random.Generator) -> _Cases:
        k = len(law.prior)
        for _ in range(1000):
            sizes = rng.integers(1, 2 * law.group_size, size=n)  # more groups than are needed; mean group_size
            group = np.repeat(np.arange(n), sizes)[:n]
            truth = rng.choice(k, size=n, p=law.prior)[group]
            if np.bincount(truth, minlength=k).min() >= least:
                break
        else:
            raise ValueError(f"n: expected enough for {least} cases of each of {k} labels, got {n}")
        bare = cls(truth, group, np.zeros(0), np.zeros(0), law.within)
        return cls(truth, group, bare.mixed(rng, (n,)), bare.mixed(rng, (n, k)), law.within)

    def mixed(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        """Draw standard normal noise of which a share `within` of the variance belongs to the group."""
        alone = rng.normal(size=shape)
        if not self.within:
            return alone
        together = rng.normal(size=(int(self.group.max()) + 1, *shape[1:]))[self.group]
        mixture: Floats = np.sqrt(self.within) * together + np.sqrt(1 - self.within) * alone
        return mixture

    def noise(self, rng: np.random.Generator) -> Floats:
        """Draw one agent's own noise, of shape (N, K)."""
        return self.mixed(rng, self.common.shape)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"group-{g}" for g in self.group)


def _softmax(z: Floats) -> Floats:
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return np.asarray(p)


def _upper_tail(z: Floats) -> Floats:
    from scipy.special import ndtr

    return np.asarray(ndtr(-z))
