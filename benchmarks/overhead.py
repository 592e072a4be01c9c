"""What triage costs beside a bare loop of decode, preprocess, encode and softmax with open_clip.

Both work on the same images, in one process, with the same batch size and loaded weights, in alternating runs; a run
of triage starts with an empty cache and writes verdicts, table and report. Ratios are of the medians.

    python benchmarks/overhead.py [--device cuda] [--images 600] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from pictures import labelled_images, write_copies

from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.encoder import EncoderSpec, OpenClipEncoder
from secondlook.eval.evaluate import triage
from secondlook.eval.fit import fit
from secondlook.orchestrator.config import Config
from secondlook.orchestrator.fitted import load_model


def bare_loop(encoder: OpenClipEncoder, model_folder: Path, images: Path, batch_size: int) -> float:
    """Time the loop that a person would write first, in seconds."""
    import torch
    from PIL import Image
    from torchvision.transforms import Compose, ToTensor

    loaded = encoder._loaded
    preprocess = Compose([*loaded.crop, ToTensor(), *loaded.normalise])
    weights = torch.from_numpy(load_model(model_folder)[1].classifier.vectors).to(loaded.device, loaded.dtype)
    paths = sorted(images.glob("*.jpg"))
    start = time.perf_counter()
    for first in range(0, len(paths), batch_size):
        batch = []
        for path in paths[first : first + batch_size]:
            with Image.open(path) as image:
                batch.append(preprocess(image.convert("RGB")))
        with torch.inference_mode():
            vectors = loaded.model.encode_image(torch.stack(batch).to(loaded.device, loaded.dtype), normalize=True)
            (encoder.logit_scale * vectors @ weights.T).softmax(-1).cpu()
    return time.perf_counter() - start


def encoder_alone(encoder: OpenClipEncoder, images: int, batch_size: int) -> float:
    """Time the encoder on tensors that lie ready, in seconds: the most that any pipeline could reach."""
    from PIL import Image

    ready = [encoder.preprocess(Image.new("RGB", (256, 256)))] * batch_size
    encoder.encode(ready)
    start = time.perf_counter()
    for _ in range(max(1, images // batch_size)):
        encoder.encode(ready)
    return time.perf_counter() - start


def measure(name: str, spec: EncoderSpec, args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Fit once, then alternate."""
    encoder = OpenClipEncoder(spec, args.device)
    images, data = folder / "images", labelled_images(folder / "data")
    model = folder / f"model-{name}"
    with EmbeddingCache(folder / f"fit-{name}") as cache:
        fit(data, model, config=Config(encoder=spec), device=args.device, cache=cache)
    seconds: dict[str, list[float]] = {"bare": [], "first look": [], "default": []}
    encoded = {}
    for number in range(args.rounds + 1):
        took = {"bare": bare_loop(encoder, model, images, args.batch_size)}
        for kind, again in (("first look", False), ("default", True)):
            with tempfile.TemporaryDirectory() as place, EmbeddingCache(Path(place) / "cache") as cache:
                start = time.perf_counter()
                found = triage(
                    images,
                    model,
                    Path(place) / "run",
                    cache=cache,
                    device=args.device,
                    batch_size=args.batch_size,
                    second_look=again,
                    encoder=encoder,
                )
                took[kind] = time.perf_counter() - start
                encoded[kind] = found.pace.encoded
        if number:  # the first round warms up
            for kind, value in took.items():
                seconds[kind].append(value)
    median = {kind: statistics.median(values) for kind, values in seconds.items()}
    result: dict[str, object] = {
        "encoder": name,
        "device": args.device,
        "images": args.images,
        "rounds": args.rounds,
        "bare_images_per_s": args.images / median["bare"],
        "triage_images_per_s": args.images / median["default"],
        "ratio_first_look": median["first look"] / median["bare"],
        "ratio_default": median["default"] / median["bare"],
        "encoder_inputs_default": encoded["default"],
    }
    if args.device == "cuda":
        alone = encoder_alone(encoder, args.images, args.batch_size)
        result["share_of_encoder_alone"] = (args.images // args.batch_size * args.batch_size / alone) ** -1 * (
            args.images / median["first look"]
        )
    return result


def main() -> None:
    """Measure both encoders and print one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--encoder", action="append", choices=("leaf-tiny", "ViT-B-32"))
    args = parser.parse_args()
    specs = {"leaf-tiny": EncoderSpec(), "ViT-B-32": EncoderSpec(model="ViT-B-32", pretrained="random")}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_copies(labelled_images(folder / "data") / "test", folder / "images", args.images)
        for name in args.encoder or specs:
            print(json.dumps(measure(name, specs[name], args, folder)), flush=True)


if __name__ == "__main__":
    main()
