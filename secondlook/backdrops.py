"""Smooth noise and the surfaces on which leaves are photographed."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Floats = NDArray[np.floating[Any]]

BackdropKind = Literal["paper", "plain", "textured", "scene"]
"""paper: gray, grained, as on a laboratory bench; plain: one colour; textured: grain and stains of any colour;
scene: large soft patches of several colours."""

_KINDS: tuple[BackdropKind, ...] = ("paper", "plain", "textured", "scene")
_KIND_SHARES = (0.7, 0.08, 0.12, 0.1)


class Light(NamedTuple):
    """The lamp and the camera of one photograph."""

    angle: float
    """Direction the light comes from, in radians, in the image plane."""
    relief: float
    """How strongly slopes are shaded; 0 is a flatbed scanner."""
    exposure: float
    """Factor on all channels."""
    tint: tuple[float, float, float]
    """Factor on red, green and blue: warm or cool light."""


def draw_light(rng: np.random.Generator) -> Light:
    """Draw a lamp: direction, strength of relief, exposure and colour."""
    warmth = rng.normal(0, 0.05)
    tint = (1 + warmth + rng.normal(0, 0.02), 1 + rng.normal(0, 0.02), 1 - warmth + rng.normal(0, 0.04))
    return Light(float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.4, 1.4)), float(rng.uniform(0.75, 1.25)), tint)


def smooth_noise(rng: np.random.Generator, size: int, cells: float) -> Floats:
    """Draw smooth noise of about unit variance with so many bumps across the image.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all randomness.
    size : int
        Height and width in pixels.
    cells : float
        Bumps across the image; at `size` or above the noise is white.

    Returns
    -------
    ndarray of shape (size, size)
        Values with mean about 0 and variance about 1.

    Examples
    --------
    >>> smooth_noise(np.random.default_rng(0), 32, 4).shape
    (32, 32)
    """
    grid = max(2, round(cells) + 2)
    if grid >= size:
        return rng.standard_normal((size, size), dtype=np.float32)
    coarse = Image.fromarray(rng.standard_normal((grid, grid), dtype=np.float32))
    # A random window of the grid, so that the bumps are not tied to the frame.
    left, top = rng.uniform(0, 1, 2)
    box = (left, top, left + grid - 1, top + grid - 1)
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC, box=box)) * np.float32(1.25)


def blur(field: Floats, radius: float) -> Floats:
    """Blur a field of values in [0, 1] with a Gaussian of the given radius in pixels."""
    if radius <= 0:
        return field
    image = Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8))
    return np.asarray(
        np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255, dtype=np.float32
    )


def draw_backdrop(rng: np.random.Generator, size: int, kind: BackdropKind | None = None) -> Floats:
    """Draw an empty surface.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all randomness.
    size : int
        Height and width in pixels.
    kind : BackdropKind, optional
        Drawn with laboratory paper as the most frequent where it is not given.

    Returns
    -------
    ndarray of shape (size, size, 3)
        Red, green and blue in [0, 1].

    Examples
    --------
    >>> draw_backdrop(np.random.default_rng(0), 64).shape
    (64, 64, 3)
    """
    if kind is None:
        kind = _KINDS[rng.choice(len(_KINDS), p=_KIND_SHARES)]
    if kind == "scene":
        return _scene(rng, size)
    gray = rng.uniform(0.35, 0.78)
    spread = {"paper": 0.018, "plain": 0.08, "textured": 0.07}[kind]
    colour = gray + rng.normal(0, spread, 3)
    if kind == "paper":
        # Gray cardboard photographs a little purple, brown or blue.
        colour += rng.uniform(0, 0.08) * np.array([(0.3, -0.3, 0.6), (0.5, 0.1, -0.4), (-0.5, 0.0, 1.0)][rng.choice(3)])
    grain = {"paper": 0.03, "plain": 0.008, "textured": 0.05}[kind] * rng.uniform(0.4, 1.3)
    coarse = {"paper": 0.01, "plain": 0.004, "textured": 0.05}[kind] * rng.uniform(0.4, 1.3)
    level = grain * smooth_noise(rng, size, size * rng.uniform(0.4, 1.1)) + coarse * smooth_noise(
        rng, size, rng.uniform(4, 30)
    )
    return np.asarray(
        np.clip((colour.astype(np.float32) + level[..., None]) * _vignette(rng, size)[..., None], 0, 1),
        dtype=np.float32,
    )


def _vignette(rng: np.random.Generator, size: int) -> Floats:
    """Draw a slow change of brightness over the frame, centred on 1."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    right, down, edge = (float(value) for value in rng.uniform((-0.4, -0.4, 0), 0.4))
    return np.asarray(1 + right * x + down * y - edge * (x**2 + y**2), dtype=np.float32)


def _scene(rng: np.random.Generator, size: int) -> Floats:
    """Draw soft patches of several colours: an out-of-focus garden, table or hand."""
    gray = rng.uniform(0.1, 0.9, (3, 1))
    colours = gray + rng.uniform(0, 0.8) * (rng.uniform(0.1, 0.9, (3, 3)) - gray)
    first = _step(smooth_noise(rng, size, rng.uniform(1, 5)), rng.uniform(0.1, 0.8))[..., None]
    second = _step(smooth_noise(rng, size, rng.uniform(2, 9)), rng.uniform(0.1, 0.8))[..., None]
    scene = (colours[0] * first + colours[1] * (1 - first)) * second + colours[2] * (1 - second)
    scene = scene + rng.uniform(0, 0.05) * smooth_noise(rng, size, size / 2)[..., None]
    return np.asarray(np.clip(scene, 0, 1), dtype=np.float32)


def _step(field: Floats, softness: float) -> Floats:
    """Turn a field into shares: 0 below, 1 above, a ramp of the given half width around 0."""
    return np.asarray(np.clip(0.5 + field / (2 * softness), 0, 1), dtype=np.float32)


def develop(canvas: Floats, light: Light, rng: np.random.Generator) -> Image.Image:
    """Turn a canvas into a photograph: exposure, tint, focus and sensor noise.

    Parameters
    ----------
    canvas : ndarray of shape (H, W, 3)
        Red, green and blue in [0, 1].
    light : Light
        Its exposure and tint are applied here; its angle was applied while painting.
    rng : numpy.random.Generator
        Draws focus and noise.

    Returns
    -------
    PIL.Image.Image
        RGB.
    """
    exposed = canvas * (light.exposure * np.array(light.tint, dtype=np.float32))
    noise = rng.standard_normal(canvas.shape[:2], dtype=np.float32) * rng.uniform(0.004, 0.02)
    image = Image.fromarray((np.clip(exposed + noise[..., None], 0, 1) * 255).astype(np.uint8))
    focus = rng.uniform(-0.6, 0.8)
    return image.filter(ImageFilter.GaussianBlur(focus)) if focus > 0.15 else image
