"""The benchmark of speed runs, on few cases, and says in JSON what it measured and what the limits are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speed.py"


def test_the_benchmark_prints_each_timing_beside_its_limit_and_exits_by_them() -> None:
    few = ["--cases", "300", "--logits", "5000", "--rounds", "2"]
    # A timing may miss its limit on a busy machine; that it then exits 1 is part of what is asked.
    done = subprocess.run([sys.executable, SCRIPT, "--json", *few], capture_output=True, text=True, check=False)
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert {name: row["limit_s"] for name, row in rows.items()} == {
        "intervals": 10.0, "temperature": 5.0, "judgement": 0.02,
    }  # fmt: skip
    assert all(row["within"] == (0 < row["cpu_s"] <= row["limit_s"]) for row in rows.values())
    assert done.returncode == int(not all(row["within"] for row in rows.values()))
    assert rows["intervals"]["ratio"] > 1
    assert "19 metrics, 5 agents, 1,000 draws, N = 300, K = 4" in rows["intervals"]["what"]
