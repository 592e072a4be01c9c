"""Lesions: where each disease settles on a blade and what it looks like there."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from secondlook.backdrops import Floats, smooth_noise
from secondlook.blades import Blade, Painted, Pose, half_width

LesionKind = Literal["blotch", "frogeye", "rust", "scab", "scorch"]
"""blotch: brown dead tissue at the edge; frogeye: round, tan centre, brown ring, purple margin (black rot); rust:
small, orange, red border, yellow halo; scab: olive-brown velvet without a sharp edge; scorch: purple-red, no centre."""


class Lesion(NamedTuple):
    """One lesion in blade coordinates."""

    kind: LesionKind
    """What it looks like."""
    u: float
    """Position along the midrib."""
    v: float
    """Position across the midrib."""
    radius: float
    """Radius in half lengths of the blade."""
    stretch: float
    """Length over width."""
    angle: float
    """Direction of the longer axis, in radians, in blade coordinates."""
    strength: float
    """How far the lesion hides the leaf, 0 to 1."""
    seed: int
    """Seeds the irregular edge."""


_COLOURS: dict[LesionKind, tuple[tuple[float, float, float], ...]] = {
    # From the centre outwards; the last one blends into the leaf.
    "blotch": ((0.66, 0.45, 0.3), (0.58, 0.35, 0.2), (0.3, 0.16, 0.12)),
    "frogeye": ((0.74, 0.56, 0.42), (0.6, 0.38, 0.25), (0.34, 0.13, 0.15)),
    "rust": ((0.82, 0.56, 0.27), (0.76, 0.43, 0.19), (0.56, 0.29, 0.18)),
    "scab": ((0.13, 0.12, 0.06), (0.2, 0.19, 0.08), (0.24, 0.25, 0.1)),
    "scorch": ((0.36, 0.14, 0.17), (0.4, 0.12, 0.18), (0.46, 0.2, 0.2)),
}
_SOFTNESS: dict[LesionKind, float] = {"blotch": 0.18, "frogeye": 0.12, "rust": 0.22, "scab": 0.85, "scorch": 0.35}
_ROUGHNESS: dict[LesionKind, float] = {"blotch": 0.35, "frogeye": 0.1, "rust": 0.14, "scab": 0.5, "scorch": 0.3}


def settle(label: str, blade: Blade, rng: np.random.Generator) -> tuple[Lesion, ...]:
    """Place the lesions of a disease on a blade.

    Parameters
    ----------
    label : str
        A label of `secondlook.leaves.LABELS`, or "scorch" for the leaf scorch of other plants.
    blade : Blade
        The blade they settle on.
    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    tuple of Lesion
        Empty for a healthy leaf.

    Raises
    ------
    ValueError
        If the label is none of these.

    Examples
    --------
    >>> settle("healthy", Blade(), np.random.default_rng(0))
    ()
    >>> {lesion.kind for lesion in settle("scab", Blade(), np.random.default_rng(0))}
    {'scab'}
    """
    many = rng.uniform(0, 1)
    match label:
        case "healthy":
            return ()
        case "rust":
            radii = rng.uniform(0.018, 0.05, round(6 + 30 * many**2))
            return tuple(_place("rust", r, blade, rng) for r in radii)
        case "scab":
            radii = rng.uniform(0.04, 0.13, round(6 + 16 * many))
            return tuple(_place("scab", r, blade, rng, on_vein=rng.uniform() < 0.6) for r in radii)
        case "black-rot":
            spots = [_place("frogeye", r, blade, rng) for r in rng.uniform(0.025, 0.085, round(2 + 9 * many))]
            if rng.uniform() < 0.35:
                spots.append(_place("blotch", rng.uniform(0.12, 0.25), blade, rng, at_edge=True))
            return tuple(spots)
        case "scorch":
            return tuple(_place("scorch", r, blade, rng) for r in rng.uniform(0.02, 0.09, round(8 + 50 * many)))
        case _:
            raise ValueError(f"label: expected a leaf label or 'scorch', got {label!r}")


def _place(
    kind: LesionKind,
    radius: float,
    blade: Blade,
    rng: np.random.Generator,
    *,
    on_vein: bool = False,
    at_edge: bool = False,
) -> Lesion:
    """Draw the position, shape and strength of one lesion."""
    u = rng.uniform(-0.85, 0.85)
    side = int(rng.integers(2))
    width = float(half_width(blade, np.array([u], dtype=np.float32), np.array([side], dtype=np.float32))[0])
    across = 0.92 if at_edge else np.sqrt(rng.uniform(0.0, 0.8))
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.3)
    if on_vein and blade.veins:
        # Solve the vein's phase for u, so that the blotch lies on a lateral vein and follows it.
        phase = round((u - blade.vein_slope * across * width) * blade.veins / 2) + 0.5 * side
        u = float(np.clip(phase * 2 / blade.veins + blade.vein_slope * across * width, -0.9, 0.9))
        stretch, angle = rng.uniform(1.2, 2.2), np.arctan2(1, blade.vein_slope) * (1 if side else -1)
    v = across * width * (1 if side else -1)
    strength = {"scab": rng.uniform(0.4, 0.8), "rust": rng.uniform(0.75, 1)}.get(kind, rng.uniform(0.8, 1))
    return Lesion(kind, u, v, float(radius), float(stretch), float(angle), strength, int(rng.integers(2**31)))


class Diseased(NamedTuple):
    """A canvas after its lesions, and where they are."""

    canvas: Floats
    """Red, green and blue in [0, 1], (H, W, 3)."""
    mask: NDArray[np.bool_]
    """True where a lesion is seen, (H, W)."""


def paint_lesions(painted: Painted, lesions: tuple[Lesion, ...], pose: Pose) -> Diseased:
    """Paint lesions onto a painted blade.

    Parameters
    ----------
    painted : Painted
        The blade; not changed.
    lesions : tuple of Lesion
        In blade coordinates.
    pose : Pose
        Of the blade; its length gives the size of a lesion in pixels.

    Returns
    -------
    Diseased
        The new canvas and the mask of what is seen of the lesions; the mask lies inside the blade.
    """
    canvas = painted.canvas.copy()
    size = canvas.shape[0]
    mask = np.zeros((size, size), dtype=bool)
    for lesion in lesions:
        reach = lesion.radius * lesion.stretch * 1.9
        near = (np.abs(painted.u - lesion.u) < reach) & (np.abs(painted.v - lesion.v) < reach)
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if not rows.size:
            continue
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        far = _distance(lesion, painted.u[window], painted.v[window])
        hide = np.clip((1 - far) / _SOFTNESS[lesion.kind] + 0.5, 0, 1) * lesion.strength * painted.cover[window]
        colour = _colour(lesion, far, canvas[window])
        if lesion.kind == "rust":
            halo = 0.35 * np.clip(1.8 - far, 0, 1) * painted.cover[window]
            canvas[window] += halo[..., None] * (np.array((0.62, 0.6, 0.14), np.float32) - canvas[window])
        canvas[window] += hide[..., None] * (colour - canvas[window])
        mask[window] |= (hide > 0.3) & (painted.cover[window] >= 0.5)
    return Diseased(canvas, mask)


def _distance(lesion: Lesion, u: Floats, v: Floats) -> Floats:
    """Return the distance from the lesion's centre, 1 at its irregular edge."""
    du, dv = u - lesion.u, v - lesion.v
    along = du * np.cos(lesion.angle) + dv * np.sin(lesion.angle)
    across = -du * np.sin(lesion.angle) + dv * np.cos(lesion.angle)
    far = np.hypot(along / lesion.stretch, across) / lesion.radius
    rng = np.random.default_rng(lesion.seed)
    rough = smooth_noise(rng, 24, 5)
    turn = np.clip(((along / lesion.radius + 3) / 6 * 23), 0, 23).astype(np.intp)
    step = np.clip(((across / lesion.radius + 3) / 6 * 23), 0, 23).astype(np.intp)
    return np.asarray(far + _ROUGHNESS[lesion.kind] * rough[turn, step], dtype=np.float32)


def _colour(lesion: Lesion, far: Floats, below: Floats) -> Floats:
    """Return the colour of the lesion at every pixel: centre, ring, margin, a little of the leaf's shading."""
    centre, ring, margin = (np.array(colour, dtype=np.float32) for colour in _COLOURS[lesion.kind])
    rng = np.random.default_rng(lesion.seed + 1)
    tone = rng.normal(1, 0.12) * (1 + rng.normal(0, 0.04, 3))
    inner = np.clip((far - 0.4) / 0.3, 0, 1)[..., None]
    outer = np.clip((far - 0.78) / 0.2, 0, 1)[..., None]
    colour = (centre * (1 - inner) + ring * inner) * (1 - outer) + margin * outer
    light = below.mean(axis=-1, keepdims=True) / max(float(below.mean()), 1e-3)
    return np.asarray((colour * tone * np.clip(0.4 + 0.6 * light, 0.5, 1.6)), dtype=np.float32)
