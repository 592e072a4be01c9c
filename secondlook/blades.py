"""The blade of a leaf: outline, teeth, veins, colour, and how it is painted onto a canvas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from secondlook.backdrops import Floats, Light, blur, smooth_noise


@dataclass(frozen=True, kw_only=True)
class Blade:
    """The geometry and colour of one blade, in its own coordinates: u from -1 (base) to 1 (tip), v across."""

    widths: tuple[float, float] = (0.6, 0.6)
    """Half widths, left and right, in half lengths."""
    base: float = 0.6
    """Exponent of the outline at the base; smaller is rounder."""
    tip: float = 0.8
    """Exponent of the outline at the tip; 1 and above is pointed."""
    teeth: int = 36
    """Teeth along one side."""
    tooth_depth: float = 0.03
    """Depth of the teeth, as a share of the half width."""
    lobes: int = 0
    """Lobes along one side."""
    lobe_depth: float = 0.0
    """Depth of the bays between lobes, as a share of the half width."""
    bend: float = 0.0
    """Sideways bend of the midrib."""
    warp: float = 0.03
    """Irregularity of the whole blade."""
    bites: tuple[tuple[float, float, float], ...] = ()
    """Pieces missing from the edge: side and position (sign and 0..1 as one number), width, depth."""
    veins: float = 7.0
    """Lateral veins along the midrib; 0 means none."""
    vein_slope: float = 0.7
    """How steeply the lateral veins run towards the tip."""
    vein_contrast: float = 0.25
    """How much paler than the blade the veins are."""
    quilt: float = 0.5
    """How much the blade bulges between the veins."""
    fold: float = 0.3
    """How much the two halves are folded up along the midrib."""
    colour: tuple[float, float, float] = (0.2, 0.36, 0.16)
    """Red, green and blue of the blade in neutral light."""
    petiole: float = 0.4
    """Length of the stalk, in half lengths."""
    seed: int = 0
    """Seeds the irregularities that belong to the blade, not to the view."""


class Pose(NamedTuple):
    """Where and how a blade lies in the frame."""

    x: float
    """Centre, as a share of the width."""
    y: float
    """Centre, as a share of the height."""
    angle: float
    """Direction of the tip, in radians."""
    length: float
    """Half length, as a share of the frame."""
    squeeze: float = 1.0
    """Foreshortening across the blade; 1 is seen from above."""


class Painted(NamedTuple):
    """A canvas with a blade on it, and where the blade is."""

    canvas: Floats
    """Red, green and blue in [0, 1], (H, W, 3)."""
    cover: Floats
    """Share of each pixel covered by the blade, (H, W)."""
    u: Floats
    """Blade coordinate along the midrib, (H, W)."""
    v: Floats
    """Blade coordinate across the midrib, (H, W)."""


def half_width(blade: Blade, u: Floats, side: Floats) -> Floats:
    """Return the half width of the blade at u, on the left (side 0) or right (side 1).

    Parameters
    ----------
    blade : Blade
        The geometry.
    u : ndarray of any shape
        Positions along the midrib, -1 to 1; outside, the width is 0.
    side : ndarray of the same shape
        0 or 1, as a share.

    Returns
    -------
    ndarray of the same shape

    Examples
    --------
    >>> width = half_width(Blade(teeth=0), np.array([-2.0, 0.0, 2.0], np.float32), np.zeros(3, np.float32))
    >>> [round(float(w), 2) for w in width]
    [0.0, 0.59, 0.0]
    """
    t = np.clip((u + 1) / 2, 0, 1)
    peak = blade.base / (blade.base + blade.tip)
    # w(t) = t^base (1-t)^tip, scaled to 1 at its peak
    profile = t**blade.base * (1 - t) ** blade.tip / (peak**blade.base * (1 - peak) ** blade.tip)
    width = profile * (blade.widths[0] + (blade.widths[1] - blade.widths[0]) * side)
    if blade.lobes:
        width = width * (1 - blade.lobe_depth * (0.5 + 0.5 * np.cos(2 * np.pi * blade.lobes * (t + 0.04 * side))))
    # Saw teeth that point to the tip, a little uneven
    phase = blade.teeth * (t + 0.004 * np.sin(37 * t + 5 * side)) + 0.37 * side
    width = width * (1 - blade.tooth_depth * (phase - np.floor(phase)))
    for place, spread, depth in blade.bites:
        mine = side == (0 if place < 0 else 1)
        width = width * np.where(mine, 1 - depth * np.exp(-(((t - abs(place)) / spread) ** 4)), 1)
    return np.asarray(width, dtype=np.float32)


def paint_blade(canvas: Floats, blade: Blade, pose: Pose, light: Light, shadow: float = 0.5) -> Painted:
    """Paint a blade, its stalk and its shadow onto a canvas.

    Parameters
    ----------
    canvas : ndarray of shape (H, H, 3)
        What lies below; not changed.
    blade : Blade
        The geometry and colour.
    pose : Pose
        Where it lies.
    light : Light
        Where the light comes from; exposure and tint are applied when the photograph is developed.
    shadow : float
        Darkness of the cast shadow, 0 to 1.

    Returns
    -------
    Painted
        The new canvas, the cover and the blade coordinates of every pixel.

    Examples
    --------
    >>> lamp = Light(0.0, 1.0, 1.0, (1.0, 1.0, 1.0))
    >>> painted = paint_blade(np.zeros((64, 64, 3), np.float32), Blade(), Pose(0.5, 0.5, 0.0, 0.4), lamp)
    >>> bool(0.1 < painted.cover.mean() < 0.6)
    True
    """
    size = canvas.shape[0]
    rng = np.random.default_rng(blade.seed)
    scale = pose.length * size
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    x, y = (x - pose.x * size) / scale, (y - pose.y * size) / scale
    cosine, sine = float(np.cos(pose.angle)), float(np.sin(pose.angle))
    u = x * cosine + y * sine
    v = (y * cosine - x * sine) / pose.squeeze
    v = v - blade.bend * u**2
    stalk = _stalk(blade, u, v, scale)
    ripple_u, ripple_v, mottle = (_in_blade(smooth_noise(rng, 192, cells), u, v) for cells in (4, 5, 9))
    u, v = u + blade.warp * ripple_u, v + blade.warp * ripple_v
    side = (v > 0).astype(np.float32)
    cover = np.clip((half_width(blade, u, side) - np.abs(v)) * scale + 0.5, 0, 1)
    everything = np.maximum(cover, stalk)
    shaded = _shade(blade, u, v, side, mottle, light, scale, rng)
    canvas = canvas * (1 - _shadow(everything, light, shadow, scale))[..., None]
    stem = (np.array(blade.colour) * 0.6 + np.array((0.22, 0.2, 0.08))).astype(np.float32)
    canvas = canvas * (1 - stalk[..., None]) + stem * stalk[..., None]
    canvas = canvas * (1 - cover[..., None]) + shaded * cover[..., None]
    return Painted(canvas.astype(np.float32), cover, u, v)


def _stalk(blade: Blade, u: Floats, v: Floats, scale: float) -> Floats:
    """Return the cover of the stalk, which runs from the base away from the tip."""
    along = np.clip(-1 - u + 0.05, 0, None)
    reach = np.clip((blade.petiole + 0.05 - along) * scale, 0, 1) * (u < -0.95)
    return np.asarray(
        reach * np.clip((0.022 - np.abs(v - 0.25 * blade.bend * along)) * scale + 0.8, 0, 1), dtype=np.float32
    )


def _in_blade(noise: Floats, u: Floats, v: Floats) -> Floats:
    """Look noise up in blade coordinates, so that it turns with the blade from view to view."""
    n = noise.shape[0]
    # The noise is smooth at this resolution: the nearest cell is as good as interpolation, and twice as fast.
    row = np.clip((u + 1.5) * (n / 3), 0, n - 1).astype(np.intp)
    column = np.clip((v + 1.5) * (n / 3), 0, n - 1).astype(np.intp)
    return np.asarray(noise[row, column], dtype=np.float32)


def _shade(
    blade: Blade,
    u: Floats,
    v: Floats,
    side: Floats,
    mottle: Floats,
    light: Light,
    scale: float,
    rng: np.random.Generator,
) -> Floats:
    """Return the colour of the blade's surface at every pixel, (H, W, 3)."""
    across = np.abs(v)
    height = blade.fold * across + 0.03 * mottle
    pale = np.clip(1.3 - across * scale / (1.1 + 0.012 * scale * (1 - u)), 0, 1)
    if blade.veins:
        phase = (u - blade.vein_slope * across + 0.25 * across**2) * blade.veins / 2 + 0.5 * side
        away = np.abs(phase - np.round(phase))
        height = height + blade.quilt * 0.009 * np.cos(2 * np.pi * phase) * np.clip(across * 8, 0, 1) * -1
        thin = away * 2 / blade.veins * scale
        lines = np.clip(1.3 - thin / (0.5 + 0.006 * scale), 0, 1)
        pale = np.maximum(pale, 0.85 * lines * np.clip(1.2 - across, 0.2, 1))
    down, right = np.gradient(height * scale)
    slope = -(right * float(np.cos(light.angle)) + down * float(np.sin(light.angle)))
    shade = np.clip(1 + light.relief * slope, 0.35, 1.7)
    grain = smooth_noise(rng, u.shape[0], u.shape[0] * 0.6)
    colour = np.array(blade.colour, dtype=np.float32) * (1 + 0.09 * mottle + 0.05 * grain)[..., None]
    veined = (np.array(blade.colour) * 1.25 + np.array((0.16, 0.17, 0.1))).astype(np.float32)
    colour = colour + (blade.vein_contrast * pale)[..., None] * (veined - colour)
    gloss = 0.3 * np.clip(slope - 0.1, 0, 0.4) * np.clip(0.8 + 0.3 * grain, 0, 2)
    return np.asarray(np.clip(colour * shade[..., None] + gloss[..., None], 0, 1), dtype=np.float32)


def _shadow(cover: Floats, light: Light, darkness: float, scale: float) -> Floats:
    """Return the share of light taken by the cast shadow."""
    reach = 0.12 * scale * min(1.0, light.relief)
    shift = (-round(reach * np.sin(light.angle)), -round(reach * np.cos(light.angle)))
    moved = np.roll(cover, shift, axis=(0, 1))
    return darkness * blur(np.maximum(moved, 0.6 * cover), 1 + 0.03 * scale)
