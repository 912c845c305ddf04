"""The arithmetic of layers: depth into bands, bands into soft masks, and what the front hides filled in.

**Why the layers compose back exactly.** A mask covers its band *and all in front of it*, is 255 there, and fades
outwards only, over pixels of bands behind. There, the layer carries the picture's own colours, and so does what is
under it; mixing a colour with itself in any share is that colour. What is filled in is only ever under a full mask.
"""

import numpy as np
from numpy.typing import NDArray

from .pictures import Pixels

Depth = NDArray[np.float32]  # height × width, 0 far to 1 near
Bands = NDArray[np.uint8]  # height × width, 0 the farthest
Mask = NDArray[np.bool_]
Colors = NDArray[np.float32]

BINS = 256
SHARE_OF_EVEN_MIN = 0.3  # a band holds at least this share of what an even split would give it
SMOOTHING_RADIUS_PX = 3
FULL = 255
ONE, TINY = np.float32(1), np.float32(1e-6)


def split(depth: Depth, count: int) -> tuple[Bands, list[float]]:
    """Each pixel's band, and the `count` + 1 depths between which the bands lie, from 0 to 1.

    Thresholds are Otsu's for many classes (the split whose bands differ most between each other), found exactly over
    a histogram. Where it cannot give every band its share (a flat picture, a few pixels), pixels are ranked by depth
    and cut into equal parts: then a band is empty only if there are fewer pixels than bands.
    """
    edges = otsu_edges(depth, count)
    if edges is not None:
        bands = np.digitize(depth, edges[1:-1]).astype(np.uint8)
        for candidate in (smoothed(bands, count), bands):
            if np.bincount(candidate.ravel(), minlength=count).all():
                return candidate, edges
    return ranked(depth, count)


def otsu_edges(depth: Depth, count: int) -> list[float] | None:
    """Thresholds that maximise the variance between `count` classes, none smaller than it may be; or none exist."""
    histogram = np.bincount(np.minimum((depth.ravel() * BINS).astype(np.int64), BINS - 1), minlength=BINS)
    pixels = np.concatenate([[0], np.cumsum(histogram)])
    moments = np.concatenate([[0], np.cumsum(histogram * (np.arange(BINS) + 0.5))])
    inside = pixels[None, :] - pixels[:, None]  # from bin i up to, not including, bin j
    moment = moments[None, :] - moments[:, None]
    allowed = inside >= max(1.0, SHARE_OF_EVEN_MIN * depth.size / count)
    gain = np.where(allowed, moment**2 / np.maximum(inside, 1), -np.inf)
    best, choices = gain[0], []
    for _ in range(count - 1):
        total = best[:, None] + gain
        choices.append(total.argmax(axis=0))
        best = total.max(axis=0)
    if not np.isfinite(best[BINS]):
        return None
    cuts = [BINS]
    for choice in reversed(choices):
        cuts.append(int(choice[cuts[-1]]))
    return [0.0, *(cut / BINS for cut in reversed(cuts[1:])), 1.0]


def ranked(depth: Depth, count: int) -> tuple[Bands, list[float]]:
    """Equal parts by rank of depth, ties by place in the picture."""
    order = np.argsort(depth, axis=None, kind="stable")
    bands = np.empty(depth.size, np.uint8)
    bands[order] = np.arange(depth.size) * count // depth.size
    firsts = [depth.ravel()[order[-(-depth.size * band // count)]] for band in range(1, count) if depth.size > band]
    inner = [float(value) for value in firsts]
    inner += [1.0] * (count - 1 - len(inner))
    return bands.reshape(depth.shape), [0.0, *inner, 1.0]


def smoothed(bands: Bands, count: int) -> Bands:
    """Specks swallowed by the majority around them, threshold by threshold, so that no sliver appears between."""
    side = 2 * SMOOTHING_RADIUS_PX + 1
    result = np.zeros(bands.shape, np.uint8)
    for band in range(1, count):
        result += 2 * box_sum((bands >= band).astype(np.int32), SMOOTHING_RADIUS_PX) > side * side
    return result


def box_sum(values: NDArray[np.int32], radius: int) -> NDArray[np.int32]:
    """Sum over the square of side 2 × radius + 1 around each pixel; the border pixels are repeated outwards."""
    for axis in (0, 1):
        edge = np.pad(values, [(radius + 1, radius) if side == axis else (0, 0) for side in (0, 1)], mode="edge")
        sums = np.cumsum(edge, axis=axis, dtype=np.int32)
        length, side = values.shape[axis], 2 * radius + 1
        values = np.take(sums, range(side, side + length), axis) - np.take(sums, range(length), axis)
    return values


def feathered(mask: Mask, radius: int) -> Pixels:
    """255 on `mask`, falling to 0 within 2 × radius pixels outside of it."""
    side = 2 * radius + 1
    grown = (box_sum(mask.astype(np.int32), radius) > 0).astype(np.int32)
    return (box_sum(grown, radius) * FULL // (side * side)).astype(np.uint8)


def filled(colors: Colors, known: Mask) -> Colors:
    """`colors` where `known`; elsewhere what surrounds it, ever more smoothly the farther away.

    Push-pull (Gortler et al., The Lumigraph, 1996): average what is known into ever smaller pictures until nothing
    is missing, then bring each back up to fill the one below it.
    """
    weight = known.astype(np.float32)[..., None]
    return _push_pull(colors * weight, weight)


def _push_pull(weighted: Colors, weight: Colors) -> Colors:
    """Colours of a level from its weighted sums; weights in 0..1 say how much of each pixel is known."""
    height, width = weight.shape[:2]
    own: Colors = (weighted / np.maximum(weight, TINY)).astype(np.float32, copy=False)
    if height * width == 1 or weight.min() >= 1:
        return own
    # Twice the mean, at most one: a cell that is half known is known.
    coarse_weight, coarse_sum = 2 * _halved(weight), 2 * _halved(weighted)
    excess = np.maximum(coarse_weight, ONE)
    coarse = _push_pull(np.divide(coarse_sum, excess, dtype=np.float32), np.minimum(coarse_weight, ONE))
    return own * weight + _doubled(coarse, height, width) * (ONE - weight)


def _halved(level: Colors) -> Colors:
    """Means over 2 × 2; an odd border counts as empty, which weights and sums share."""
    height, width = level.shape[:2]
    even = np.pad(level, ((0, height % 2), (0, width % 2), (0, 0)))
    rows = even[0::2] + even[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)


def _doubled(level: Colors, height: int, width: int) -> Colors:
    """Linear interpolation to twice the size, cropped to `height` × `width`."""
    for axis, length in ((0, height), (1, width)):
        size = level.shape[axis]
        before = np.take(level, np.maximum(np.arange(size) - 1, 0), axis)
        after = np.take(level, np.minimum(np.arange(size) + 1, size - 1), axis)
        pair = np.stack([0.75 * level + 0.25 * before, 0.75 * level + 0.25 * after], axis + 1, dtype=np.float32)
        shape = (2 * size, *level.shape[1:]) if axis == 0 else (level.shape[0], 2 * size, *level.shape[2:])
        level = np.take(pair.reshape(shape), range(length), axis)
    return level


def continued(picture: Pixels, bands: Bands, band: int) -> Pixels:
    """The picture up to one band, which goes on under the bands in front of it."""
    return _filled_where(picture, hidden=bands > band, known=bands == band)


def cut(colors: Pixels, alpha: Pixels) -> Pixels:
    """RGBA; nothing is left where nothing is to be seen, and it compresses to nothing."""
    return np.dstack([np.where(alpha[..., None] > 0, colors, np.uint8(0)), alpha])


def over(below: Pixels, layer_above: Pixels) -> Pixels:
    """RGBA over opaque RGB, rounded to 8 bits as any viewer does."""
    alpha = layer_above[..., 3:].astype(np.uint32)
    mixed = layer_above[..., :3] * alpha + below * (FULL - alpha)
    return ((mixed + FULL // 2) // FULL).astype(np.uint8)


def _filled_where(picture: Pixels, *, hidden: Mask, known: Mask) -> Pixels:
    result = picture.copy()
    if hidden.any() and known.any():
        colors = filled(picture.astype(np.float32), known)
        result[hidden] = np.clip(np.rint(colors[hidden]), 0, FULL).astype(np.uint8)
    return result
