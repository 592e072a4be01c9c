"""A head on frozen features, as an agent."""

from __future__ import annotations

from collections.abc import Sequence

from secondlook.agents.case import Case
from secondlook.agents.embedder import Embedder
from secondlook.agents.head import Head
from secondlook.agents.prediction import Outcome
from secondlook.agents.views import look_at


class ClipHead:
    """The agent: a head's logits, averaged on a second look over the whole image and the evidence's crops."""

    def __init__(self, embedder: Embedder, head: Head, name: str) -> None:
        self.name = name
        self._embedder = embedder
        self._head = head

    async def predict(self, cases: Sequence[Case]) -> list[Outcome]:
        """Judge a batch; see `Agent.predict`."""
        return look_at(cases, self._embedder, self._head.logits, self.name)
