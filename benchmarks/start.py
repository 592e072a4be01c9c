"""How long `secondlook --help` takes, as a command: the median of several runs.

python benchmarks/start.py [--rounds 10]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Print the median in seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    command = [str(Path(sys.executable).with_name("secondlook")), "--help"]
    seconds = []
    for _ in range(args.rounds + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    print(
        json.dumps({"command": "secondlook --help", "rounds": args.rounds, "median_s": statistics.median(seconds[1:])})
    )


if __name__ == "__main__":
    main()
