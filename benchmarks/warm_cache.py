"""How much faster triage is when every embedding is cached: `secondlook triage` as a command, twice, ViT-B-32.

python benchmarks/warm_cache.py [--images 1000] [--encoder ViT-B-32]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pictures import labelled_images, write_copies


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--encoder", default="ViT-B-32")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = labelled_images(folder / "data")
        images = write_copies(data / "test", folder / "images", args.images)
        environment = os.environ | {"SECONDLOOK_CACHE": str(folder / "cache")}
        command = [str(Path(sys.executable).with_name("secondlook"))]
        encoder = ["--encoder", args.encoder]
        encoder += [] if args.encoder == "leaf-tiny" else ["--pretrained", "random"]
        fit = [*command, "fit", str(data), "--out", str(folder / "model"), *encoder]
        subprocess.run(fit, check=True, env=environment, capture_output=True)
        seconds, details = {}, {}
        for name in ("cold", "warm"):
            start = time.perf_counter()
            run = [*command, "triage", str(images), "--model", str(folder / "model"), "--out", str(folder / name)]
            done = subprocess.run([*run, "--json"], check=True, env=environment, capture_output=True, text=True)
            seconds[name] = time.perf_counter() - start
            details[name] = json.loads(done.stdout)
    print(
        json.dumps(
            {
                "encoder": args.encoder,
                "images": args.images,
                "cold_s": seconds["cold"],
                "warm_s": seconds["warm"],
                "times_faster": seconds["cold"] / seconds["warm"],
                "encoded_cold": details["cold"]["encoded_now"],
                "encoded_warm": details["warm"]["encoded_now"],
            }
        )
    )


if __name__ == "__main__":
    main()
