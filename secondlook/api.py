"""The Python interface: load a fitted model, judge one image or many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self, get_args

import numpy as np
from numpy.typing import NDArray

from secondlook.agents.case import Case
from secondlook.agents.embedding_cache import EmbeddingCache
from secondlook.agents.encoder import Device
from secondlook.agents.errors import ConfigError
from secondlook.agents.photo import Photo
from secondlook.eval.cases import list_images, readable
from secondlook.orchestrator.build import load_pipeline
from secondlook.orchestrator.fitted import Model
from secondlook.orchestrator.pipeline import Pipeline
from secondlook.orchestrator.verdict import Verdict

if TYPE_CHECKING:
    from PIL import Image

    ImageLike = str | Path | bytes | Image.Image | NDArray[np.uint8] | Photo


class SecondLook:
    """A fitted model. Make one with `SecondLook.load` or `SecondLook.demo`; close it, or use it in a `with`.

    Examples
    --------
    >>> from secondlook import SecondLook
    >>> from secondlook.demo import demo_image
    >>> with SecondLook.demo() as look:
    ...     verdict = look(demo_image("rust"))
    >>> verdict.label in look.model.task.labels, verdict.action in ("accept", "review")
    (True, True)
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: Device = "auto",
        cache: bool | Path = True,
        batch_size: int = 64,
        ledger: str | Path | None = None,
    ) -> Self:
        """Load a model folder that `secondlook fit` wrote.

        Parameters
        ----------
        model : str or Path
            The folder.
        device : {"auto", "cpu", "cuda"}
        cache : bool or Path
            Whether to keep embeddings on disk, and where; True is the user's cache folder.
        batch_size : int
            Cases judged together.
        ledger : str or Path, optional
            Living track records; by default those in the folder, where there are any.

        Raises
        ------
        ConfigError
            When the folder is missing, damaged, of another version, or its encoder has changed; for an unknown device
            or a batch of nothing.
        """
        if device not in get_args(Device):
            raise ConfigError(f"There is no device {device!r}.", f"The devices are {', '.join(get_args(Device))}.")
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected 1 or more, got {batch_size}.", "64 is a good size.")
        store = None
        if cache is not False:
            store = EmbeddingCache.default() if cache is True else EmbeddingCache(Path(cache))
        try:
            track = None if ledger is None else Path(ledger)
            return cls(load_pipeline(Path(model), device=device, cache=store, batch_size=batch_size, ledger=track))
        except BaseException:
            if store is not None:
                store.close()
            raise

    @classmethod
    def demo(cls) -> Self:
        """Load the demonstration model: leaf-tiny on rendered apple leaves; fitted on first use, in about a minute."""
        from secondlook.demo import demo_model

        return cls.load(demo_model())

    @property
    def model(self) -> Model:
        """What was fitted: labels, track records, threshold, notes."""
        return self._pipeline.model

    def __call__(self, image: ImageLike, *, group: str | None = None) -> Verdict:
        """Judge one image.

        Parameters
        ----------
        image : path, bytes, PIL.Image.Image, or uint8 ndarray of shape (H, W, 3)
        group : str, optional
            The leaf, patient or part it shows; the evidence never comes from the same group.

        Returns
        -------
        Verdict
            Also for an image that cannot be read: its action is then `review`, and `why` says what is wrong.

        Raises
        ------
        ConfigError
            When a path does not exist or an array has the wrong shape.
        """
        photo = Photo.of(image)
        [verdict] = self._pipeline.stream([Case(id=readable(photo.name), photo=photo, group=group)])
        return verdict

    def triage(self, images: str | Path | Iterable[ImageLike]) -> Iterator[Verdict]:
        """Judge many images, lazily and in batches, in constant memory.

        Parameters
        ----------
        images : str, Path or iterable
            A folder, or any iterable of what `__call__` takes; it is read no further than two batches ahead.

        Yields
        ------
        Verdict
            In the order of the images; a folder's in the order of their paths.

        Raises
        ------
        ConfigError
            When a folder or a path does not exist, or an array has the wrong shape.
        """
        return self._pipeline.stream(_cases(images))

    def close(self) -> None:
        """End the threads and close the cache."""
        self._pipeline.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cases(images: str | Path | Iterable[ImageLike]) -> Iterable[Case]:
    if isinstance(images, (str, Path)):
        return list_images(images)
    # These can be iterated over, but not as images.
    if isinstance(images, (bytes, Photo)) or (isinstance(images, np.ndarray) and images.ndim < 4):
        return _numbered([images])
    return _numbered(images)


def _numbered(images: Iterable[ImageLike]) -> Iterator[Case]:
    for number, image in enumerate(images):
        photo = Photo.of(image)
        yield Case(id=readable(str(photo.path)) if photo.path else f"{number}", photo=photo)
