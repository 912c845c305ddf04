"""What painters look at, as planes of numbers: light and dark, directions, flat areas, outlines; and the paper.

Whole numbers where sums run over many pixels, and square roots rather than angles: the same picture gives the same
numbers in every process.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .layers import FULL, Colors, box_sum
from .painterly_strokes import Plane
from .pictures import Pixels

FRACTIONS = 64  # steps of one level, where levels are summed as whole numbers
LIGHT = (77, 151, 28)  # of 256: how light red, green and blue are (ITU-R BT.601)


def luminance(colors: Colors) -> Plane:
    """0 dark to 255 light."""
    shares = np.array(LIGHT, np.float32) / np.float32(256)
    light: Plane = colors[..., 0] * shares[0] + colors[..., 1] * shares[1] + colors[..., 2] * shares[2]
    return light


def blurred(plane: Plane, radius: int) -> Plane:
    """Nearly a Gaussian of that deviation: two means over squares. `plane` is within ± 255."""
    if radius < 1:
        return plane
    side = 2 * radius + 1
    for _ in range(2):
        sums = box_sum(np.rint(plane * FRACTIONS).astype(np.int32), radius)
        plane = sums.astype(np.float32) / np.float32(side * side * FRACTIONS)
    return plane


def softened(picture: Colors, radius: float) -> Colors:
    """A picture out of focus."""
    image = Image.fromarray(as_pixels(picture)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image).astype(np.float32)


def as_pixels(colors: Colors) -> Pixels:
    """Rounded, and cut off at 0 and 255."""
    return np.clip(np.rint(colors), 0, FULL).astype(np.uint8)


def share(values: NDArray[np.floating[Any]]) -> Plane:
    """Cut off at 0 and 1."""
    cut_off: Plane = np.clip(values, 0, 1).astype(np.float32, copy=False)
    return cut_off


def directions(light: Plane, radius: int) -> tuple[Plane, Plane]:
    """Cosine and sine of the direction along which the picture changes least, agreed on within `radius`.

    The lesser eigenvector of the smoothed structure tensor, by half-angle formulas. Where nothing changes at all it is
    horizontal.
    """
    levels = np.rint(light).astype(np.int32)
    padded = np.pad(levels, 1, mode="edge")
    across, down = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    xx, yy, xy = (box_sum(one, radius).astype(np.float32) for one in (across * across, down * down, across * down))
    # Twice the angle of the steepest change; half of it, turned by a right angle, runs along.
    double_cos, double_sin = xx - yy, 2 * xy
    length = np.sqrt(double_cos * double_cos + double_sin * double_sin)
    double_cos = np.where(length > 0, double_cos / np.maximum(length, 1), np.float32(-1))
    steep_cos = np.sqrt(np.clip((1 + double_cos) / 2, 0, 1))
    steep_sin = np.sqrt(np.clip((1 - double_cos) / 2, 0, 1)) * np.where(double_sin < 0, np.float32(-1), np.float32(1))
    return -steep_sin, steep_cos


def flattened(picture: Colors, radius: int) -> Colors:
    """Areas without their detail, edges kept: of the four squares that meet in a pixel, the mean of the calmest.

    Kuwahara et al., Processing of RI-angiocardiographic images (1976).
    """
    light = np.rint(luminance(picture)).astype(np.int32)
    planes = [np.rint(picture[..., channel]).astype(np.int32) for channel in range(3)]
    height, width = light.shape
    side = radius + 1
    best = np.full(light.shape, np.iinfo(np.int64).max, np.int64)
    result = np.empty((height, width, 3), np.float32)
    sums = [_corner_sums(plane, radius) for plane in (light, light * light, *planes)]
    for down in (0, radius):
        for right in (0, radius):
            total, squares, *colors = (plane[down : down + height, right : right + width] for plane in sums)
            spread = squares.astype(np.int64) * side * side - total.astype(np.int64) ** 2
            calmer = spread < best
            best[calmer] = spread[calmer]
            for channel, color in enumerate(colors):
                result[calmer, channel] = color[calmer] / np.float32(side * side)
    return result


def _corner_sums(plane: NDArray[np.int32], radius: int) -> NDArray[np.int32]:
    """Sums over squares of side `radius` + 1; the one at [y, x] ends at pixel (y, x), or later, by offset."""
    padded = np.pad(plane, radius, mode="edge")
    for axis in (0, 1):
        sums = np.cumsum(padded, axis=axis, dtype=np.int32)
        length = padded.shape[axis] - radius
        before = np.concatenate([np.zeros_like(np.take(sums, [0], axis)), np.take(sums, range(length - 1), axis)], axis)
        padded = np.take(sums, range(radius, radius + length), axis) - before
    return padded


def outlines(light: Plane, radius: int, *, gain: float, level: float) -> Plane:
    """How much ink lies where, 0 to 1: where it is darker than what surrounds it.

    A difference of Gaussians with a soft threshold; Winnemöller et al., XDoG (2012).
    """
    near, far = blurred(light, radius), blurred(light, 2 * radius)
    return share((far - near) * np.float32(gain) - np.float32(level))


def paper(shape: tuple[int, ...], random: np.random.Generator, *, grain_px: float) -> Plane:
    """The tooth of a sheet, 0 to 1 with a mean of about a half: noise at one scale and at twice that."""
    total = np.zeros(shape[:2], np.float32)
    for scale, part in ((grain_px, 0.65), (2.5 * grain_px, 0.35)):
        noise = random.integers(0, 256, shape[:2], np.uint8)
        soft = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(scale))).astype(np.float32) - 128
        # What a Gaussian leaves of noise of deviation 74, brought back to a deviation of about 1.
        total += soft * np.float32(part * 3.5 * max(scale, 0.3) / 74)
    return share(total * np.float32(0.22) + np.float32(0.5))


def relief(height: Plane) -> Plane:
    """Light and shade on `height`, lit from the upper left; 0 on what is level."""
    padded = np.pad(height, 1, mode="edge")
    return (padded[2:, 2:] - padded[:-2, :-2]) * np.float32(0.5)


def saturated(colors: Colors, by: float) -> Colors:
    """Colours farther from (above 1) or nearer to (below 1) their own grey."""
    grey = luminance(colors)[..., None]
    return grey + (colors - grey) * np.float32(by)
