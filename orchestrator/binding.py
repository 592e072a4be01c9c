"""Bindings: what each column of a model was made of when it was measured, and what it is made of now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.calibration import Calibrator
from secondlook.agents.case import digest_of
from secondlook.orchestrator.panel import column
from secondlook.orchestrator.trust import SYSTEM

NOTHING = "-"
"""Stands for an index that is missing."""


def encoder_stem(digest: str) -> str:
    """Drop from an encoder's digest the arithmetic it runs in: a GPU rounds otherwise, but sees the same."""
    return digest.split("-")[0]


def digest_of_arrays(arrays: Mapping[str, NDArray]) -> str:  # type: ignore[type-arg]
    """SHA-256 over names, kinds, shapes and numbers, as 16 hexadecimal digits."""
    sha = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        whole = np.ascontiguousarray(array)
        sha.update(f"{name};{whole.dtype.str};{np.shape(array)};".encode())
        sha.update(whole.tobytes())
    return sha.hexdigest()[:16]


def bind(
    calibrators: Mapping[str, Mapping[int, Calibrator]],
    *,
    encoder: str,
    prompt: str,
    arrays: str,
    index: str | None,
    language: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, str]:
    """Name what every column is made of.

    Parameters
    ----------
    calibrators : mapping
        By agent and look.
    encoder, prompt, arrays, index : str
        Digests: of the encoder, of the prompts that the arrays were made with, of the fitted arrays (text vectors,
        heads, limits of strangers), and of the index by its manifest, None where there is none.

    language : mapping, optional
        Of the agents that are language models, by name: the digest of each part of theirs (model, prompt), which stand
        in place of encoder, prompt and arrays.

    Returns
    -------
    dict of str to str
        By column, `part:digest` for each part, the index for second looks only.

    Examples
    --------
    >>> made = bind({"eye": {1: Calibrator()}}, encoder="ab-bfloat16", prompt="cd", arrays="ef", index="01")["eye"]
    >>> made.split()[:3]
    ['encoder:ab', 'prompt:cd', 'arrays:ef']
    """
    found = {}
    for agent, looks in calibrators.items():
        for look, calibrator in looks.items():
            own = (language or {}).get(agent)
            parts = dict(own or {"encoder": encoder_stem(encoder), "prompt": prompt[:16], "arrays": arrays})
            if look > 1:
                parts["index"] = index or NOTHING
            parts["calibrator"] = digest_of(calibrator)
            found[column(agent, look)] = " ".join(f"{name}:{digest}" for name, digest in parts.items())
    return found


def changed_parts(before: str, now: str) -> tuple[str, ...]:
    """Names of the parts that two bindings differ in.

    Examples
    --------
    >>> changed_parts("encoder:ab index:01", "encoder:ab index:02")
    ('index',)
    """
    old, new = (dict(part.split(":", 1) for part in text.split() if ":" in part) for text in (before, now))
    return tuple(name for name in new | old if old.get(name) != new.get(name))


def short(bindings: Mapping[str, str], model: str) -> dict[str, str]:
    """Digests of the bindings, for the lines of a ledger; the system's own covers all of them and the model's numbers.

    Parameters
    ----------
    bindings : mapping of str to str
        By column.
    model : str
        The model's digest.
    """
    found = {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in bindings.items()}
    whole = json.dumps([model, found], sort_keys=True)
    return {**found, SYSTEM: hashlib.sha256(whole.encode()).hexdigest()[:16]}
