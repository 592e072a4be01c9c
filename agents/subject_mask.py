"""Where the subject of a picture is, by colour, and the picture with everything else blurred."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
SIDE = 128
"""Longest side, in pixels, of the small picture in which the subject is looked for."""
FEWEST = 16
"""Shortest side of it below which there is nothing to look for."""
BORDER = 0.04
"""Width of the border whose colours are taken for the surroundings', as a share of the shorter side."""
TYPICAL = 0.75
"""Share of the border that is of the surroundings; the rest may be a part of the subject that is cut off."""
LEAST, MOST = 0.03, 0.8
"""Share of the picture that a subject covers; with less or more there is none."""
BLUR = 0.1
"""Radius of the blur, as a share of the longest side."""
BINS = 128


def subject_mask(image: Image.Image) -> Mask | None:
    """Find what differs in colour from the border of a picture.

    The colours of the small, smoothed picture, without their lightness (so that a shadow on the ground is ground), are
    measured by their Mahalanobis distance from those of the border. Otsu's threshold on the logarithm of the distance
    [1]_ splits the picture; of the parts that stick out, the one with most of its area near the centre is the subject,
    its holes filled.

    Parameters
    ----------
    image : Image
        RGB, of any size.

    Returns
    -------
    ndarray of bool of shape (H, W) or None
        Of the small picture, whose longest side is `SIDE` at most. None where no subject was found: what sticks out is
        tiny, or nearly everything, or nothing has a colour of its own.

    References
    ----------
    .. [1] Otsu (1979), "A threshold selection method from gray-level histograms", IEEE Transactions on Systems, Man,
       and Cybernetics 9 (1).

    Examples
    --------
    >>> picture = Image.new("RGB", (64, 64), "gray")
    >>> picture.paste("green", (16, 16, 48, 48))
    >>> mask = subject_mask(picture)
    >>> bool(mask[32, 32]), bool(mask[4, 4]), subject_mask(Image.new("RGB", (64, 64), "gray")) is None
    (True, False, True)
    """
    from scipy import ndimage

    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    if min(small.size) < FEWEST:
        return None
    pixels = ndimage.gaussian_filter(np.asarray(small, dtype=np.float64) / 255, (1, 1, 0))
    distance = np.log1p(_distance(_colours(pixels)))
    threshold = otsu(distance)
    mask = None if threshold is None else _subject(distance > threshold)
    return mask if mask is not None and LEAST <= mask.mean() <= MOST else None


def subject_view(image: Image.Image) -> Image.Image:
    """Blur everything but the subject; without a subject, return the image itself.

    A Gaussian blur of the whole picture, into which the subject is put back: the "blur reverse mask" of [1]_, which
    keeps where the subject is and takes away what it lies on. There the radius was 100 of 336 pixels, around objects
    that Segment Anything had outlined; here it is `BLUR` of the longest side.

    Parameters
    ----------
    image : Image
        RGB, of any size.

    Returns
    -------
    Image
        Of the same size.

    References
    ----------
    .. [1] Yang et al. (2023), "Fine-Grained Visual Prompting", https://arxiv.org/abs/2306.04356
    """
    mask = subject_mask(image)
    if mask is None:
        return image
    alpha = Image.fromarray(mask.astype(np.uint8) * 255).resize(image.size, Image.Resampling.BILINEAR)
    return Image.composite(image, image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size))), alpha)


def otsu(values: Floats) -> float | None:
    """Return the threshold that splits values into two classes of the largest variance between them.

    Among the edges of `BINS` bins of equal width; None where all values are equal.

    Examples
    --------
    >>> 2 < otsu(np.array([1.0, 2.0, 1.0, 9.0, 8.0])) < 8, otsu(np.ones(4))
    (True, None)
    """
    low, high = values.min(), values.max()
    if not high > low:
        return None
    counts, edges = np.histogram(values, BINS, (low, high))
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = values.size - below
    total = np.cumsum(counts * middles)
    # Variance between the classes, times the square of the number of values.
    between = (total[:-1] * values.size - total[-1] * below) ** 2 / (below * above)
    return float(edges[1 + int(between.argmax())])


def _colours(pixels: Floats) -> Floats:
    """Green against magenta, and red against blue, each as a share of the lightness; of shape (H, W, 2)."""
    # The constant keeps the noise of nearly black pixels, whose shares mean little, small.
    red, green, blue = np.moveaxis(pixels / (pixels.sum(axis=2, keepdims=True) + 0.15), 2, 0)
    return np.stack([green - (red + blue) / 2, red - blue], axis=2)


def _distance(colours: Floats) -> Floats:
    """Mahalanobis distance of each pixel, of shape (H, W), to the colours that most of the border has."""
    height, width = colours.shape[:2]
    t = max(1, round(BORDER * min(height, width)))
    inner = np.zeros((height, width), dtype=np.bool_)
    inner[t:-t, t:-t] = True
    border = colours[~inner]
    centre = np.median(border, axis=0)
    for _ in range(3):
        away = ((border - centre) ** 2).sum(axis=1)
        near = border[away <= np.quantile(away, TYPICAL)]
        centre = near.mean(axis=0)
    precision = np.linalg.inv(np.cov(near.T) + 1e-5 * np.eye(2))
    off = colours - centre
    return cast("Floats", np.sqrt(np.einsum("hwi,ij,hwj->hw", off, precision, off)))


def _subject(mask: Mask) -> Mask | None:
    """Of the parts of a mask, take the one with most area near the centre, smoothed and without holes."""
    from scipy import ndimage

    parts, n = ndimage.label(ndimage.binary_opening(mask))
    if not n:
        return None
    height, width = mask.shape
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    area = ndimage.sum_labels(np.exp(-2 * (x**2 + y**2)), parts, np.arange(1, n + 1))
    whole = ndimage.binary_fill_holes(parts == 1 + int(np.argmax(area)))
    return np.asarray(ndimage.binary_closing(whole, iterations=2) | whole)
