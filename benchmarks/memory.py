"""Peak memory of `secondlook triage` on many images against few: it must not grow with their number.

python benchmarks/memory.py [--few 2000] [--many 20000]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pictures import labelled_images, write_copies

MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def main() -> None:
    """Print both peaks and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=2000)
    parser.add_argument("--many", type=int, default=20_000)
    args = parser.parse_args()
    command = str(Path(sys.executable).with_name("secondlook"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = labelled_images(folder / "data")
        environment = os.environ | {"SECONDLOOK_CACHE": str(folder / "cache")}
        model = folder / "model"
        subprocess.run(
            [command, "fit", str(data), "--out", str(model)], check=True, env=environment, capture_output=True
        )
        peak = {}
        for n in (args.few, args.many):
            images = write_copies(data / "test", folder / f"images-{n}", n)
            run = [command, "triage", str(images), "--model", str(model), "--out", str(folder / f"run-{n}")]
            # A process of its own asks for the peak of its one child, so that runs do not mix.
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, *run], check=True, env=environment, capture_output=True, text=True
            )
            peak[n] = int(done.stdout) / 1024
    few, many = peak[args.few], peak[args.many]
    print(json.dumps({"few": args.few, "many": args.many, "few_mib": few, "many_mib": many, "ratio": many / few}))


if __name__ == "__main__":
    main()
