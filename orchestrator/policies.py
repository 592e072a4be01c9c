"""The named ways to fuse, behind one signature."""

from __future__ import annotations

from secondlook.orchestrator.pool import Pool

AnyFusion = Pool
