"""What every test has: no network, a cache of its own, laws whose examples may take their time."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

HOME = {"127.0.0.1", "::1", "localhost"}

# A law is about values; how long one example takes on a busy machine is not.
settings.register_profile("laws", deadline=None, max_examples=60)
settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "laws")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not _live(config):
        for item in items:
            if "live" in item.keywords:
                item.add_marker(
                    pytest.mark.skip(reason="talks to something outside this machine; asked for by -m live")
                )


@pytest.fixture(scope="session", autouse=True)
def _no_network(pytestconfig: pytest.Config) -> Iterator[None]:
    """Refuse every address outside this machine; processes that a test starts are not guarded."""
    if _live(pytestconfig):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        look_up = socket.getaddrinfo

        def local_only(host: bytes | str | None, *args: Any, **more: Any) -> Any:
            _check(host)
            return look_up(host, *args, **more)

        patch.setattr(socket, "getaddrinfo", local_only)
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep embeddings in a folder of this run, never in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECONDLOOK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a real OpenCLIP model of random weights; shared, so never written to."""
    from tiny_clip import write_tiny_clip

    return write_tiny_clip(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Photographs beside the project; skips where they are absent."""
    folder = Path(os.environ.get("SECONDLOOK_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}; SECONDLOOK_DATA names another place")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _live(config: pytest.Config) -> bool:
    return "live" in str(config.getoption("-m")).split() and "not" not in str(config.getoption("-m")).split()


def _check(host: object) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name is not None and name not in HOME:
        raise AssertionError(f"a test reaches for {name!r}; only this machine is allowed")


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    def local_only(self: socket.socket, *args: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _check(args[-1][0])  # the address is the last argument of each of them
        return method(self, *args)

    return local_only
