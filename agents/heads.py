"""Every head there is: what a configuration may name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from secondlook.agents.linear_head import LinearSpec

AnyHead = Annotated[LinearSpec, Field()]
"""One entry of a panel: `kind` says which."""
