"""Images to measure with: the apple photographs where they are present, else rendered leaves."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> Path | None:
    """`$SECONDLOOK_DATA`, or `shared/data` beside the project; None where neither is there."""
    for folder in (os.environ.get("SECONDLOOK_DATA"), ROOT.parent / "shared" / "data"):
        if folder and (Path(folder) / "plantvillage-apple").is_dir():
            return Path(folder)
    return None


def labelled_images(folder: Path) -> Path:
    """Return a data set with train, calibration and test splits; drawn into `folder` where there are no photographs."""
    data = data_folder()
    if data is not None:
        return data / "plantvillage-apple"
    from secondlook.demo import write_demo_images

    return write_demo_images(folder, lambda what, done, total: None)


def write_copies(source: Path, folder: Path, n: int) -> Path:
    """Write n files that decode to the images of `source` and have digests of their own.

    JPEG decoders stop at the end marker, so a number behind it changes the file and not the picture.
    """
    originals = [path.read_bytes() for path in sorted(source.rglob("*.jpg"))]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n):
        (folder / f"{number:06d}.jpg").write_bytes(originals[number % len(originals)] + number.to_bytes(4, "big"))
    return folder
