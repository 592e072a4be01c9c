"""Options that several commands share, and what their values stand for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from secondlook.agents.cost import Budget
    from secondlook.agents.embedding_cache import EmbeddingCache

Model = Annotated[Path, typer.Option("--model", "-m", help="Model folder that `fit` wrote.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Run folder to write; the same command again resumes.")]
DeviceName = Literal["auto", "cpu", "cuda"]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, max=4096, help="Images judged together.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Do not read or keep embeddings on disk.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Do not write report.html.")]
NoSecond = Annotated[bool, typer.Option("--no-second-look", help="Decide after the first look.")]
Ledger = Annotated[
    Path | None, typer.Option("--ledger", help="File of living track records; by default track.jsonl in MODEL.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]


@contextmanager
def opened_cache(no_cache: bool) -> Iterator[EmbeddingCache]:
    """Open the user's cache, or one that is deleted afterwards: a report needs its thumbnails either way."""
    from tempfile import TemporaryDirectory

    from secondlook.agents.embedding_cache import EmbeddingCache

    if not no_cache:
        with EmbeddingCache.default() as cache:
            yield cache
        return
    with TemporaryDirectory(prefix="secondlook-") as folder, EmbeddingCache(Path(folder)) as cache:
        yield cache


def absolute(name: str) -> str:
    """Keep a file or folder by its whole path, so that the model works from elsewhere too; else the name."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name


def device_of(name: str) -> DeviceName:
    """Refuse a device that is none of the three."""
    from secondlook.agents.errors import ConfigError

    match name:
        case "auto" | "cpu" | "cuda":
            return name
    raise ConfigError(f"There is no device {name!r}.", "Use --device auto, cpu or cuda.")


def budget_of(limits: list[str]) -> Budget:
    """Read a budget from words such as `run.looks=500` and `case.usd=0.01`."""
    from pydantic import ValidationError

    from secondlook.agents.cost import Budget, Limits
    from secondlook.agents.errors import ConfigError

    scopes: dict[str, dict[str, str]] = {"case": {}, "run": {}}
    for limit in limits:
        name, _, most = limit.partition("=")
        scope, _, kind = name.strip().partition(".")
        if scope not in scopes or kind not in Limits.model_fields or not most.strip():
            kinds = ", ".join(Limits.model_fields)
            raise ConfigError(
                f"--budget {limit}: expected SCOPE.KIND=MOST.", f"SCOPE is case or run, KIND one of {kinds}."
            )
        if kind in scopes[scope]:
            raise ConfigError(f"--budget {scope}.{kind} is given twice.", "Give it once.")
        scopes[scope][kind] = most.strip()
    try:
        return Budget.model_validate({"per_case": scopes["case"], "per_run": scopes["run"]})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])).removeprefix("per_")
        what = f"--budget {place}: {first['msg']}, got {first['input']}."
        raise ConfigError(what, "Give a number of 0 or more.") from error
