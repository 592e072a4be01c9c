"""Pictures of anything but a leaf, drawn from simple means: the far strangers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from secondlook.backdrops import Floats, draw_backdrop, smooth_noise

Colour = tuple[int, int, int]


def _colour(rng: np.random.Generator) -> Colour:
    """Draw a colour; half of them are nearly gray, as most of the world is."""
    gray = rng.uniform(10, 245)
    value = gray + rng.choice((0.25, 1.0)) * (rng.uniform(0, 255, 3) - gray)
    return (int(value[0]), int(value[1]), int(value[2]))


def _image(field: Floats) -> Image.Image:
    """Turn a canvas of values in [0, 1] into an image."""
    return Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8))


def _canvas(rng: np.random.Generator, size: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Start a drawing on a backdrop or on one colour."""
    image = _image(draw_backdrop(rng, size)) if rng.uniform() < 0.6 else Image.new("RGB", (size, size), _colour(rng))
    return image, ImageDraw.Draw(image)


def _ramp(field: Floats, colours: Floats) -> Floats:
    """Colour a field in [0, 1] by interpolation between the colours, an array [C, 3] in [0, 1]."""
    place = np.clip(field, 0, 1) * (len(colours) - 1)
    low = np.minimum(place.astype(np.intp), len(colours) - 2)
    return np.asarray(colours[low] + (place - low)[..., None] * (colours[low + 1] - colours[low]), dtype=np.float32)


def _colours(rng: np.random.Generator, count: int) -> Floats:
    """Draw colours as an array [count, 3] in [0, 1]."""
    return np.asarray(np.array([_colour(rng) for _ in range(count)], dtype=np.float32) / 255, dtype=np.float32)


def surface(rng: np.random.Generator, size: int) -> Image.Image:
    """Draw an empty bench."""
    return _image(draw_backdrop(rng, size))


def clouds(rng: np.random.Generator, size: int) -> Image.Image:
    """Noise over many scales in a few colours: clouds, marble, rust, soil, fur."""
    steep = rng.uniform(0.3, 1.0)
    field = sum(steep**k * smooth_noise(rng, size, rng.uniform(1.5, 3) * 2**k) for k in range(7))
    return _image(_ramp(0.5 + np.asarray(field) * rng.uniform(0.15, 0.4), _colours(rng, int(rng.integers(2, 5)))))


def static(rng: np.random.Generator, size: int) -> Image.Image:
    """Grain: white noise, coarse blocks, or noise in colour."""
    cells = int(rng.choice((8, 16, 32, 64, size)))
    channels = 1 if rng.uniform() < 0.4 else 3
    blocks = rng.uniform(0, 255, (cells, cells, channels)).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(blocks, (cells, cells, 3)).copy())
    return image.resize((size, size), Image.Resampling(int(rng.choice((0, 2)))))


def weave(rng: np.random.Generator, size: int) -> Image.Image:
    """Stripes, checks and waves: cloth, tiles, water, wood."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    bend = rng.uniform(0, 0.12) * smooth_noise(rng, size, rng.uniform(2, 8))
    waves = []
    for _ in range(int(rng.integers(1, 4))):
        a, count = rng.uniform(0, np.pi), float(rng.uniform(2, 40))
        waves.append(np.sin(2 * np.pi * count * (x * float(np.cos(a)) + y * float(np.sin(a)) + bend)))
    field = np.mean(waves, axis=0) * rng.uniform(0.3, 3)
    return _image(_ramp(0.5 + field, _colours(rng, int(rng.integers(2, 4)))))


def shapes(rng: np.random.Generator, size: int) -> Image.Image:
    """Polygons, ellipses, boxes and lines in any colour."""
    image, pen = _canvas(rng, size)
    for _ in range(int(rng.integers(1, 14))):
        centre, reach = rng.uniform(0, size, 2), rng.uniform(0.04, 0.4) * size
        corners = [tuple(centre + rng.uniform(-reach, reach, 2)) for _ in range(int(rng.integers(3, 8)))]
        box = (*(centre - reach * rng.uniform(0.3, 1, 2)), *(centre + reach * rng.uniform(0.3, 1, 2)))
        match int(rng.integers(4)):
            case 0:
                pen.polygon(corners, fill=_colour(rng))
            case 1:
                pen.ellipse(box, fill=_colour(rng), outline=_colour(rng), width=int(rng.integers(0, 5)))
            case 2:
                pen.rectangle(box, fill=_colour(rng), outline=_colour(rng), width=int(rng.integers(0, 5)))
            case _:
                pen.line(corners, fill=_colour(rng), width=int(rng.integers(1, 10)))
    return image


def landscape(rng: np.random.Generator, size: int) -> Image.Image:
    """Sky, hills and field, with or without trees."""
    y = np.mgrid[0:size, 0:size][0].astype(np.float32) / size
    sky = np.array((rng.uniform(0.3, 0.9), rng.uniform(0.5, 0.9), rng.uniform(0.6, 1)), dtype=np.float32)
    canvas = sky * (0.7 + 0.4 * y[..., None]) + 0.08 * smooth_noise(rng, size, rng.uniform(2, 6))[..., None]
    horizon = float(rng.uniform(0.2, 0.6))
    for _ in range(int(rng.integers(1, 5))):
        ridge = horizon + rng.uniform(0.01, 0.12) * smooth_noise(rng, size, rng.uniform(1, 6))[0]
        ground = np.array((rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.6), rng.uniform(0.05, 0.4)), dtype=np.float32)
        grain = 1 + rng.uniform(0.05, 0.3) * smooth_noise(rng, size, rng.uniform(10, 120))
        canvas = np.where((y > ridge)[..., None], ground * grain[..., None], canvas)
        horizon += float(rng.uniform(0.05, 0.25))
    return _image(canvas)


def street(rng: np.random.Generator, size: int) -> Image.Image:
    """Houses with windows, a sky and a road."""
    image = landscape(rng, size) if rng.uniform() < 0.5 else Image.new("RGB", (size, size), _colour(rng))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 8))):
        left, width, top = rng.uniform(-0.1, 0.9), rng.uniform(0.1, 0.4), rng.uniform(0.05, 0.6)
        wall, glass = _colour(rng), _colour(rng)
        pen.rectangle((left * size, top * size, (left + width) * size, size), fill=wall)
        columns, rows = int(rng.integers(2, 6)), int(rng.integers(2, 9))
        for i in range(columns):
            for j in range(rows):
                px = (left + width * (i + 0.25) / columns) * size
                py = (top + (0.9 - top) * (j + 0.25) / rows) * size
                pen.rectangle((px, py, px + width / columns * size / 2, py + (0.9 - top) / rows * size / 2), fill=glass)
    return image


def writing(rng: np.random.Generator, size: int) -> Image.Image:
    """Rows of small strokes, as of a page, a label or a screen."""
    image, pen = _canvas(rng, size)
    ink, height = _colour(rng), rng.uniform(0.02, 0.09) * size
    y = rng.uniform(0, 0.2) * size
    while y < size:
        x = rng.uniform(0.02, 0.15) * size
        while x < size * rng.uniform(0.8, 0.98):
            if rng.uniform() < 0.85:
                ends = [(x + rng.uniform(0, 0.6) * height, y + rng.uniform(0, 1) * height) for _ in range(3)]
                pen.line(ends, fill=ink, width=max(1, int(height / 6)))
            x += height * 0.7
        y += height * rng.uniform(1.3, 2.0)
    return image.rotate(float(rng.normal(0, 8)), resample=Image.Resampling.BILINEAR, fillcolor=_colour(rng))


def fruit(rng: np.random.Generator, size: int) -> Image.Image:
    """Shaded balls: apples, oranges, eggs, stones, with a spot of light."""
    canvas = draw_backdrop(rng, size)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    count = int(rng.integers(1, 7))
    for _ in range(count):
        most = 0.42 if count == 1 else 0.25
        cx, cy, r = (float(value) for value in rng.uniform((0.15, 0.15, 0.08), (0.85, 0.85, most)))
        far = np.hypot(x - cx, (y - cy) * rng.uniform(0.7, 1.3)) / r
        skin = np.array(_colour(rng), dtype=np.float32) / 255 * (1 + 0.08 * smooth_noise(rng, size, 20)[..., None])
        shade = np.sqrt(np.clip(1 - far**2, 0.05, 1)) + 0.4 * (cx - x) / r
        spot = 0.6 * np.exp(-(((x - cx + 0.3 * r) ** 2 + (y - cy + 0.3 * r) ** 2) / (0.02 * r)))
        cover = np.clip((1 - far) * r * size, 0, 1)[..., None]
        canvas = canvas * (1 - cover) + (skin * shade[..., None] + spot[..., None]) * cover
    return _image(canvas)


def cells(rng: np.random.Generator, size: int) -> Image.Image:
    """Patches around random points: stones, crowds, dry earth, stained glass, tissue."""
    y, x = np.mgrid[0:size:2, 0:size:2].astype(np.float32) / size
    points = rng.uniform(0, 1, (int(rng.integers(5, 45)), 2)).astype(np.float32)
    far = np.stack([(x - px) ** 2 + (y - py) ** 2 for px, py in points])
    owner, near = far.argmin(axis=0), np.partition(far, 1, axis=0)
    seam = np.clip((np.sqrt(near[1]) - np.sqrt(near[0])) * rng.uniform(10, 60), 0, 1)
    canvas = _colours(rng, len(points))[owner] if rng.uniform() < 0.5 else _colours(rng, 1)[0]
    return _image(canvas * (seam * (1 - 0.5 * near[0] * 10))[..., None]).resize((size, size))


def creature(rng: np.random.Generator, size: int) -> Image.Image:
    """Draw a body, a head, legs and eyes in front of something."""
    image = landscape(rng, size) if rng.uniform() < 0.5 else _canvas(rng, size)[0]
    pen = ImageDraw.Draw(image)
    skin, (x, y), r = _colour(rng), rng.uniform(0.35, 0.65, 2) * size, rng.uniform(0.12, 0.25) * size
    for _ in range(int(rng.integers(0, 7))):
        px = x + rng.uniform(-1.2, 1.2) * r
        pen.line((px, y, px + rng.normal(0, 0.3) * r, y + rng.uniform(0.8, 2) * r), fill=skin, width=int(r / 4) + 1)
    pen.ellipse((x - 1.6 * r, y - r, x + 1.6 * r, y + r), fill=skin)
    hx, hy, h = x + rng.uniform(-1.8, 1.8) * r, y - rng.uniform(0.4, 1.5) * r, r * rng.uniform(0.4, 1)
    pen.ellipse((hx - h, hy - h, hx + h, hy + h), fill=_colour(rng) if rng.uniform() < 0.4 else skin)
    for ex in (hx - 0.4 * h, hx + 0.4 * h):
        pen.ellipse((ex - h / 6, hy - h / 4, ex + h / 6, hy + h / 10), fill=_colour(rng))
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 2))))


def flower(rng: np.random.Generator, size: int) -> Image.Image:
    """Petals around a disc, one or many."""
    image = clouds(rng, size) if rng.uniform() < 0.5 else _canvas(rng, size)[0]
    pen = ImageDraw.Draw(image)
    count = int(rng.integers(1, 8))
    for _ in range(count):
        centre, reach = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(0.1, 0.45 if count == 1 else 0.2) * size
        petals, petal, wide = int(rng.integers(4, 16)), _colour(rng), rng.uniform(0.2, 0.5)
        for k in range(petals):
            a = 2 * np.pi * k / petals
            ring = np.linspace(0, 2 * np.pi, 12)
            along, across = reach * (0.5 + 0.5 * np.cos(ring)), reach * wide * np.sin(ring) * 0.6
            px = centre[0] + along * np.cos(a) - across * np.sin(a)
            py = centre[1] + along * np.sin(a) + across * np.cos(a)
            pen.polygon(list(zip(px.tolist(), py.tolist(), strict=True)), fill=petal, outline=_colour(rng))
        r = reach * rng.uniform(0.1, 0.3)
        pen.ellipse((*(centre - r), *(centre + r)), fill=_colour(rng))
    return image


def branches(rng: np.random.Generator, size: int) -> Image.Image:
    """Forking lines: bare trees, roots, vessels, cracks."""
    image, pen = _canvas(rng, size)
    bark = _colour(rng)
    tips: list[tuple[float, float, float, float]] = [
        (float(rng.uniform(0.3, 0.7)) * size, float(size), -np.pi / 2, 0.25 * size)
    ]
    for depth in range(7):
        grown = []
        for x, y, a, length in tips:
            to = (x + length * np.cos(a), y + length * np.sin(a))
            pen.line((x, y, *to), fill=bark, width=max(1, 9 - 2 * depth))
            grown += [(*to, a + rng.normal(s, 0.25), length * rng.uniform(0.6, 0.9)) for s in (-0.45, 0.45)]
        tips = grown
    return image


def rooms(rng: np.random.Generator, size: int) -> Image.Image:
    """Nested boxes in perspective with soft light: rooms, screens, packages, furniture."""
    image, pen = _canvas(rng, size)
    for _ in range(int(rng.integers(1, 5))):
        (x, y), (w, h) = rng.uniform(0.0, 0.6, 2) * size, rng.uniform(0.15, 0.6, 2) * size
        dx, dy = rng.uniform(-0.2, 0.2, 2) * size
        front, top, side = (_colour(rng) for _ in range(3))
        pen.polygon(((x, y), (x + dx, y + dy), (x + dx + w, y + dy), (x + w, y)), fill=top)
        pen.polygon(((x + w, y), (x + w + dx, y + dy), (x + w + dx, y + dy + h), (x + w, y + h)), fill=side)
        pen.rectangle((x, y, x + w, y + h), fill=front)
    light = 1 + 0.3 * smooth_noise(rng, size, 2)[..., None]
    return _image(np.asarray(image, dtype=np.float32) / 255 * light)


SCENES: tuple[Callable[[np.random.Generator, int], Image.Image], ...] = (
    surface, clouds, static, weave, shapes, landscape, street, writing, fruit, cells, creature, flower, branches, rooms
)  # fmt: skip


def draw_scene(rng: np.random.Generator, size: int = 256) -> Image.Image:
    """Draw a picture of anything but a leaf: one scene, or two cut, laid over each other or put side by side.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all randomness.
    size : int
        Height and width in pixels.

    Returns
    -------
    PIL.Image.Image
        RGB, size x size.

    Examples
    --------
    >>> draw_scene(np.random.default_rng(0), 48).size
    (48, 48)
    """
    image = SCENES[rng.integers(len(SCENES))](rng, size)
    if rng.uniform() < 0.35:
        other = SCENES[rng.integers(len(SCENES))](rng, size)
        image = _join(image, other, rng)
    if rng.uniform() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 4)) * size / 256))
    array: Any = np.asarray(image, dtype=np.float32) / 255
    array = array * rng.uniform(0.6, 1.2) + rng.uniform(0, 0.03) * rng.standard_normal(array.shape[:2])[..., None]
    return _image(array)


def _join(image: Image.Image, other: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Join two images: blended, one as a patch on the other, or through a soft mask."""
    size = image.width
    match int(rng.integers(3)):
        case 0:
            return Image.blend(image, other, float(rng.uniform(0.25, 0.75)))
        case 1:
            side, turn = int(rng.uniform(0.25, 0.7) * size), float(rng.uniform(0, 360))
            mask = Image.new("L", (side, side), 255).rotate(turn, expand=True)
            patch = other.resize((side, side)).rotate(turn, expand=True)
            corner = rng.uniform(0, size - side, 2).astype(int).tolist()
            result = image.copy()
            result.paste(patch, (corner[0], corner[1]), mask)
            return result
        case _:
            field = smooth_noise(rng, size, rng.uniform(1, 5)) * rng.uniform(1, 8)
            mask = Image.fromarray((np.clip(0.5 + field, 0, 1) * 255).astype(np.uint8))
            return Image.composite(image, other, mask)
