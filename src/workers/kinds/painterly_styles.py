"""The styles: how a picture is painted in oil, drawn in charcoal, and so on; each a few passes of brush, wash or line.

None is a trained model: they are rules on a picture's own light, directions and edges, and a seeded source of chance.
"""

from collections.abc import Callable

import numpy as np
from msgspec import Struct

from . import painterly_fields as fields
from .layers import FULL, Colors, Mask, box_sum
from .painterly_strokes import Brush, Grid, Layer, Plane, Strokes, corners, laid, scattered, turned
from .pictures import Pixels

UNTOUCHED_BELOW = 0.4  # strengths below it leave some of the photograph; from there on paint covers all
REACH_PX = 24
REFERENCE_PX = 1024  # the longer side of a picture that brush sizes are given for
SHEET = np.array([252, 249, 242], np.float32)  # watercolour paper
IVORY = np.array([247, 242, 230], np.float32)  # drawing paper
GRAPHITE = np.array([58, 58, 62], np.float32)
CARBON = np.array([32, 30, 30], np.float32)
INK = np.array([24, 26, 38], np.float32)


class Easel(Struct, frozen=True):
    """What a style works with.

    Attributes:
        random: chance for this layer alone.
        paper: the tooth of the one sheet that all layers lie on, 0 to 1.
        visible: where this layer can be seen, and as far around as strokes reach; elsewhere nothing need be painted.
        scale: brush sizes are multiplied with it.
        boldness: 0 to 1: the larger, the less a fine brush corrects.
    """

    random: np.random.Generator
    paper: Plane
    visible: Mask
    scale: float
    boldness: float

    def px(self, size_px: float, least: int = 1) -> int:
        return max(least, round(size_px * self.scale))


Style = Callable[[Colors, Easel], Colors]


def painted(picture: Pixels, visible: Mask, *, style: str, strength: float, seed: int, band: int) -> Pixels:
    """`picture` in that style, where it is `visible`.

    Strength 0 gives the picture itself; up to UNTOUCHED_BELOW paint grows over it; to 1 strokes grow broader. Seed and
    band decide every chance; the sheet is the seed's alone, so that all layers lie on one.
    """
    if strength <= 0 or not visible.any():
        return picture
    scale = max(picture.shape[:2]) / REFERENCE_PX
    sheet = np.random.Generator(np.random.PCG64([seed, 0]))
    paper = fields.paper(picture.shape, sheet, grain_px=max(0.6, 1.1 * scale))
    near = box_sum(visible.astype(np.int32), max(1, round(REACH_PX * scale))) > 0
    part = _around(near)
    easel = Easel(
        random=np.random.Generator(np.random.PCG64([seed, 1 + band])),
        paper=paper[part],
        visible=near[part],
        scale=scale * (0.5 + strength),
        boldness=strength,
    )
    photo = picture[part].astype(np.float32)
    paint = np.clip(STYLES[style](photo, easel), 0, FULL)
    share = np.float32(min(1.0, strength / UNTOUCHED_BELOW))
    result = picture.copy()
    result[part] = fields.as_pixels(photo + (paint - photo) * share)
    return result


def _around(mask: Mask) -> tuple[slice, slice]:
    """The smallest rectangle around it."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _stroked(picture: Colors, easel: Easel, brush: Brush, wanted: Mask | None = None, *, jitter: float) -> Layer:
    """Strokes along what they paint, in its colours, each colour off by up to `jitter` levels.

    `wanted` are the pixels that ask for one; without it, all that can be seen.
    """
    reference = fields.softened(picture, max(1.0, brush.cell_px / 3))
    grid = Grid.over(reference.shape, brush.cell_px)
    y, x = scattered(grid, easel.random)
    top, left = corners(grid)
    cos, sin = fields.directions(fields.luminance(reference), max(2, brush.cell_px // 2))
    cell_cos, cell_sin = turned(
        grid.at(cos, top + y, left + x), grid.at(sin, top + y, left + x), brush.turn, easel.random
    )
    color = np.stack([grid.at(reference[..., channel], top + y, left + x) for channel in range(3)], axis=-1)
    chance = easel.random.random((2, *color.shape), np.float32)
    # Half of what is off is light, half is hue: the first is the same for all three.
    off = chance[0][..., :1] + chance[1] - np.float32(1)
    color += off * np.float32(jitter)
    asked = easel.visible if wanted is None else wanted & easel.visible
    present = grid.means(asked.astype(np.float32)) > 0
    strokes = Strokes(grid, y, x, cell_cos, cell_sin, color, present)
    return laid(reference.shape, strokes, brush, easel.random)


def _over(canvas: Colors, layer: Layer, opacity: float = 1.0) -> Colors:
    cover = (layer.cover * np.float32(opacity))[..., None]
    result: Colors = canvas + (layer.color - canvas) * cover
    return result


def _drawn(pigment: Colors, amount: Plane) -> Colors:
    """A dry or wet pigment on ivory paper."""
    drawing: Colors = IVORY + (pigment - IVORY) * fields.share(amount)[..., None]
    return drawing


def _brushed(
    photo: Colors,
    easel: Easel,
    brushes: list[Brush],
    *,
    jitter: float,
    wrong: float,
    impasto: float,
) -> Colors:
    """Passes from broad to fine; after the first, only where the canvas is off by more than `wrong` levels.

    The first lies on the picture out of focus. `impasto` is how strongly light shows the height of the paint.
    """
    canvas = fields.softened(photo, brushes[0].cell_px)
    height = np.zeros(photo.shape[:2], np.float32)
    for number, brush in enumerate(brushes):
        wanted = None
        if number:
            error = np.abs(canvas - fields.softened(photo, max(1.0, brush.cell_px / 3))).max(axis=2)
            wanted = fields.blurred(error, max(1, brush.cell_px // 2)) > wrong * (0.5 + easel.boldness)
        layer = _stroked(photo, easel, brush, wanted, jitter=jitter)
        canvas = _over(canvas, layer, brush.opacity)
        height += (layer.height * np.float32(brush.bristles) - height * np.float32(0.7)) * layer.cover
        height += layer.cover * np.float32(2.0)
    canvas = canvas + (height - fields.blurred(height, 3))[..., None]
    shown: Colors = canvas + (fields.relief(height) * np.float32(impasto))[..., None]
    return shown


def oil(photo: Colors, easel: Easel) -> Colors:
    """Thick paint in long strokes along the forms, hairs of the brush to be seen."""
    brushes = [
        Brush(cell_px=easel.px(20, 4), length=2.0, width=0.6, bristles=18, turn=0.2),
        Brush(cell_px=easel.px(10, 3), length=2.2, width=0.55, bristles=15, turn=0.15),
        Brush(cell_px=easel.px(5, 2), length=2.6, width=0.6, bristles=10, turn=0.1),
    ]
    return _brushed(fields.saturated(photo, 1.12), easel, brushes, jitter=18, wrong=16, impasto=2.0)


def impressionist(photo: Colors, easel: Easel) -> Colors:
    """Short separate dabs of brighter, broken colour."""
    brushes = [
        Brush(cell_px=easel.px(12, 4), length=1.5, width=0.75, bristles=6, turn=0.5),
        Brush(cell_px=easel.px(8, 3), length=1.6, width=0.55, bristles=8, turn=0.4, hardness=6),
    ]
    return _brushed(fields.saturated(photo, 1.4) + 6, easel, brushes, jitter=44, wrong=14, impasto=0.8)


def palette_knife(photo: Colors, easel: Easel) -> Colors:
    """Broad flat slabs with sharp ridges, next to no detail."""
    brushes = [
        Brush(cell_px=easel.px(26, 6), length=1.5, width=0.85, hardness=14, bristles=5, turn=0.7),
        Brush(cell_px=easel.px(14, 5), length=1.7, width=0.7, hardness=14, bristles=6, turn=0.4),
        Brush(cell_px=easel.px(8, 4), length=1.7, width=0.6, hardness=12, bristles=6, turn=0.25),
    ]
    flat = fields.flattened(fields.saturated(photo, 1.2), easel.px(4, 2))
    return _brushed(flat, easel, brushes, jitter=20, wrong=22, impasto=3.2)


def pointillism(photo: Colors, easel: Easel) -> Colors:
    """Round dots of pure colour on a light ground; the eye mixes them."""
    vivid = fields.saturated(photo, 1.7)
    ground = fields.softened(photo, easel.px(14)) * np.float32(0.35) + SHEET * np.float32(0.65)
    dots = [
        Brush(cell_px=easel.px(12, 3), length=0.6, width=0.6, hardness=5, turn=0),
        Brush(cell_px=easel.px(8, 2), length=0.6, width=0.6, hardness=5, turn=0),
        Brush(cell_px=easel.px(6, 2), length=0.58, width=0.58, hardness=5, turn=0),
    ]
    canvas = ground
    for dot in dots:
        canvas = _over(canvas, _stroked(vivid, easel, dot, jitter=60))
    return canvas


def watercolor(photo: Colors, easel: Easel) -> Colors:
    """Transparent washes with darker rims, granulating on the paper."""
    flat = fields.flattened(fields.saturated(photo, 1.25), easel.px(5, 2))
    flat = fields.flattened(flat, easel.px(3, 1))
    light = fields.luminance(flat)
    rims = fields.outlines(light, easel.px(2), gain=0.10, level=0.25)
    wash = fields.softened(flat, max(0.6, 0.7 * easel.scale))
    # Pigment takes light away from the sheet: the denser it lies, the more.
    density = 1 - wash / np.float32(FULL)
    pools = (easel.paper - np.float32(0.5)) * np.float32(0.5)
    drift = (fields.paper(light.shape, easel.random, grain_px=easel.px(10)) - np.float32(0.5)) * np.float32(0.16)
    density = density * (np.float32(0.88) + pools + drift)[..., None]
    density += (rims * np.float32(0.16))[..., None]
    sheet: Colors = SHEET * (1 - fields.share(density))
    return sheet


def pastel(photo: Colors, easel: Easel) -> Colors:
    """Soft chalk that the paper's tooth takes up here and not there."""
    ground = np.broadcast_to(np.array([205, 196, 184], np.float32), photo.shape) * np.float32(0.6)
    ground = ground + fields.softened(photo, easel.px(10)) * np.float32(0.4)
    chalks = [
        Brush(cell_px=easel.px(10, 3), length=2.4, width=0.7, hardness=1.6, opacity=0.9, turn=0.35),
        Brush(cell_px=easel.px(5, 2), length=2.4, width=0.6, hardness=1.6, opacity=0.85, turn=0.25),
    ]
    soft = fields.saturated(photo, 1.15) * np.float32(0.9) + 26
    canvas = ground
    for chalk in chalks:
        layer = _stroked(soft, easel, chalk, jitter=22)
        taken = fields.share((easel.paper - np.float32(0.22)) * 4) * layer.cover * np.float32(chalk.opacity)
        canvas = canvas + (layer.color - canvas) * taken[..., None]
    return canvas


def _marks(darkness: Plane, easel: Easel, brush: Brush, directed: tuple[float, float] | None) -> Plane:
    """How much of a dry pencil lies where, 0 to 1: a mark in a cell is as likely as the cell is dark.

    `directed` is the one way that all go (its x and y, of length 1); without it they follow the forms.
    """
    grid = Grid.over(darkness.shape, brush.cell_px)
    y, x = scattered(grid, easel.random)
    top, left = corners(grid)
    if directed is None:
        cos, sin = fields.directions(255 - darkness * 255, 3 * brush.cell_px)
        cos, sin = grid.at(cos, top + y, left + x), grid.at(sin, top + y, left + x)
    else:
        cos, sin = (np.full(y.shape, one, np.float32) for one in directed)
    cos, sin = turned(cos, sin, brush.turn, easel.random)
    present = easel.random.random(y.shape, np.float32) < grid.at(darkness, top + y, left + x)
    present &= grid.means(easel.visible.astype(np.float32)) > 0
    strokes = Strokes(grid, y, x, cos, sin, np.zeros((*y.shape, 0), np.float32), present)
    drawn: Plane = laid(darkness.shape, strokes, brush, easel.random).cover * np.float32(brush.opacity)
    return drawn


def pencil(photo: Colors, easel: Easel) -> Colors:
    """Outlines and crossed hatching in graphite, no colour."""
    light = fields.luminance(photo)
    darkness = fields.share(np.float32(1.02) - light / 235)
    hatch = Brush(cell_px=easel.px(5, 3), length=2.9, width=0.22, hardness=1.5, opacity=0.62, turn=0.08)
    ways = [((0.6, -0.8), 0.12, 0.8), ((0.8, 0.6), 0.45, 1.3), ((0.28, -0.96), 0.6, 2.0), ((0.96, 0.28), 0.72, 3.0)]
    graphite = darkness * darkness * np.float32(0.3)
    for way, threshold, steepness in ways:
        wanted = fields.share((darkness - np.float32(threshold)) * np.float32(steepness))
        graphite = graphite + (1 - graphite) * _marks(wanted, easel, hatch, way)
    lines = fields.outlines(light, easel.px(1.2), gain=0.16, level=0.2)
    graphite = graphite + (1 - graphite) * lines * np.float32(0.85)
    graphite = graphite * fields.share(np.float32(0.55) + easel.paper * np.float32(0.9))
    return _drawn(GRAPHITE, graphite)


def charcoal(photo: Colors, easel: Easel) -> Colors:
    """Black chalk, smudged and rubbed, on rough paper."""
    light = fields.luminance(fields.flattened(photo, easel.px(3, 2)))
    darkness = fields.share(np.float32(1) - light / 235)
    chalk = Brush(cell_px=easel.px(9, 3), length=2.6, width=0.5, hardness=1.4, opacity=0.8, turn=0.25)
    fine = Brush(cell_px=easel.px(5, 2), length=2.6, width=0.4, hardness=1.8, opacity=0.7, turn=0.15)
    carbon = fields.blurred(darkness * 255, easel.px(3)) * np.float32(0.7 / 255)
    carbon = carbon + (1 - carbon) * _marks(darkness * darkness, easel, chalk, None) * np.float32(0.6)
    carbon = carbon + (1 - carbon) * _marks(
        fields.share(darkness * np.float32(1.8) - np.float32(0.8)), easel, fine, (0.7, -0.714)
    )
    lines = fields.outlines(light, easel.px(2), gain=0.12, level=0.25)
    carbon = carbon + (1 - carbon) * lines * np.float32(0.8)
    tooth = fields.share((easel.paper - np.float32(0.55) + carbon) * np.float32(2.4))
    carbon = carbon * (np.float32(0.3) + np.float32(0.7) * tooth)
    return _drawn(CARBON, carbon)


def ink(photo: Colors, easel: Easel) -> Colors:
    """Three washes of diluted ink with soft rims, and brush lines."""
    light = fields.luminance(fields.flattened(photo, easel.px(5, 2)))
    light = fields.blurred(light, easel.px(1))
    edge = (easel.paper - np.float32(0.5)) * 26  # no wash ends in a clean line
    washes = np.zeros(light.shape, np.float32)
    for level, tone in ((190, 0.15), (132, 0.25), (72, 0.42)):
        washes += np.clip((level - light - edge) / 9, 0, 1) * np.float32(tone)
    washes *= np.float32(0.88) + (easel.paper - np.float32(0.5)) * np.float32(0.5)
    lines = fields.outlines(fields.luminance(photo), easel.px(2), gain=0.22, level=0.45)
    covered = washes + (1 - washes) * lines * np.float32(0.95)
    return _drawn(INK, covered)


STYLES: dict[str, Style] = {
    "oil": oil,
    "watercolor": watercolor,
    "impressionist": impressionist,
    "pointillism": pointillism,
    "palette-knife": palette_knife,
    "pastel": pastel,
    "charcoal": charcoal,
    "pencil": pencil,
    "ink": ink,
}
