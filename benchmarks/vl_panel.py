"""What a local vision-language model adds to the panel of CLIP agents: both panels fitted and judged on the same data.

    python benchmarks/vl_panel.py DATA [--model leaf-tiny-vl] [--looks 1 2] [--split test]

DATA is what `secondlook fit` takes. Both panels are fitted on train and calibration, and judge the same split; printed
are accuracy, calibration error, coverage and error of what is accepted, and the difference in accuracy with its
interval (groups resampled) and its p (whole groups' signs flipped).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.qwen_vl import QwenSpec
from secondlook.eval.bootstrap import mean_interval
from secondlook.eval.evaluate import evaluate
from secondlook.eval.fit import fit
from secondlook.eval.paired import mcnemar_exact, sign_flip
from secondlook.eval.tally import Row, read_rows
from secondlook.orchestrator.config import Config
from secondlook.orchestrator.language import Language

FIGURES = ("acc/top1", "cal/ece", "cal/nll", "sel/coverage", "sel/accepted_error")


def compare(data: Path, model: str, looks: tuple[int, ...], split: str, seed: int = 0) -> dict[str, object]:
    """Fit and judge both panels; return their figures and the difference."""
    member = QwenSpec(name="vl", model=model, looks=looks)
    configs = {"clip": Config(), "clip and vl": Config(language=Language(agents=(member,)))}
    found: dict[str, object] = {"data": str(data), "model": model, "looks": looks, "split": split}
    rows: dict[str, dict[str, Row]] = {}
    with TemporaryDirectory() as folder:
        for name, config in configs.items():
            place = Path(folder) / name.replace(" ", "-")
            with EmbeddingCache(Path(folder)) as cache:
                fitted = fit(data, place / "model", config=config, cache=cache)
            # Judging closes the cache that it was given.
            kept = EmbeddingCache(Path(folder))
            judged = evaluate(data, place / "model", place / "run", cache=kept, split=split, report=False)
            found[name] = {key: judged.metrics.get(key) for key in FIGURES} | {
                "fused by": fitted.fusions[max(fitted.fusions)].fused_by,
                "agents": {f"{r.agent}@{r.look}": round(r.accuracy.value, 4) for r in fitted.records},
            }
            rows[name] = {row.id: row for row in read_rows(place / "run" / "verdicts.jsonl")}
    first, second = rows["clip"], rows["clip and vl"]
    ids = sorted(first)
    right = np.array([[each[i].label == each[i].truth for i in ids] for each in (first, second)])
    groups = [first[i].group or i for i in ids]
    difference = right[1].astype(float) - right[0]
    rng = np.random.default_rng(seed)
    interval = mean_interval(difference, groups, rng=rng)
    found["difference"] = {
        "accuracy": interval.value,
        "low": interval.lo,
        "high": interval.hi,
        "n": len(ids),
        "groups": len(set(groups)),
        "only clip right": int((difference < 0).sum()),
        "only with vl right": int((difference > 0).sum()),
        "p of sign flips": sign_flip(difference, groups, rng=rng),
        "p of McNemar": mcnemar_exact(int((difference < 0).sum()), int((difference > 0).sum())),
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="leaf-tiny-vl", help="folder of a Qwen-VL")
    parser.add_argument("--looks", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    print(json.dumps(compare(options.data, options.model, tuple(options.looks), options.split), indent=2))


if __name__ == "__main__":
    main()
