"""The judge decides: a policy that believes a language model's calibrated answer, and falls back where it failed."""

from __future__ import annotations

from secondlook.agents.errors import ConfigError
from secondlook.orchestrator.fusion import Fitted, Folds, Truth
from secondlook.orchestrator.opinions import Opinions
from secondlook.orchestrator.rules import Single, ranked

JUDGES = "judge"
"""How the names of columns begin that are answers of a judge; see `secondlook.orchestrator.llm_judge`."""


def fit_judge(opinions: Opinions, truth: Truth, folds: Folds) -> Fitted:
    """Let the judge of the newest look decide; where it failed, the best of the others, as for `best_agent`.

    Nothing is fitted but the order of those who stand in for it. Whether the judge may decide at all is for
    `secondlook.orchestrator.policies.do_no_harm`.

    Raises
    ------
    ConfigError
        When no column is a judge's.
    """
    del folds
    name = judge_in(opinions.columns)
    if name is None:
        raise ConfigError(
            f"There is no judge among {', '.join(opinions.columns)}.",
            f"Choose another policy, or a panel with a language model whose name begins with {JUDGES}.",
        )
    others = tuple(other for other in ranked(opinions, truth) if other != name)
    single = Single(kind="judge", agents=opinions.columns, order=(name, *others))
    return Fitted(single, single.fuse(opinions))


def judge_in(columns: tuple[str, ...]) -> str | None:
    """Name the judge's column of the newest look, None where no judge was asked; of several the first by name.

    Examples
    --------
    >>> judge_in(("linear-head", "judge", "linear-head@2", "judge@2"))
    'judge@2'
    """
    judges = [name for name in columns if name.startswith(JUDGES)]
    return min(judges, key=lambda name: (-look_in(name), name), default=None)


def look_in(column: str) -> int:
    """Look that a column is of, from its name: 2 for `judge@2`, 1 for `judge`."""
    _, _, look = column.rpartition("@")
    return int(look) if look != column and look.isdecimal() else 1
