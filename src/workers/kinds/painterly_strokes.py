"""Brush strokes laid over a canvas, many at once: where each lies, what it covers, and which lies over which.

A stroke is an ellipse with a direction, a colour and a rank. Each has its middle somewhere in its own cell of a square
grid, so that a pixel can only be reached by strokes of cells near its own: what thousands of strokes do to all pixels
is worked out by array arithmetic, cell beside cell. Painting in passes, from broad to fine, the fine ones only where
the broad ones came out wrong, follows Hertzmann, Painterly Rendering with Curved Brush Strokes of Multiple Sizes
(SIGGRAPH 1998).
"""

import math

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from .layers import Colors, Mask

Plane = NDArray[np.float32]  # height × width
Cells = NDArray[np.float32]  # one number for each cell of a grid

REACH_CELLS_MAX = 3  # a pixel is looked at by (2 × reach + 1)² strokes
RANKS = 24  # each doubles the weight, so that of two strokes one is nearly always over the other
TOUCHING = 12  # strokes that touch a cell, about
CHUNK = 1 << 16  # pixels under strokes worked on at a time: they stay in the processor's cache
HAIRS = 3.5  # light and dark lines across half a stroke


class Brush(Struct, frozen=True, kw_only=True):
    """How strokes of one pass look.

    Attributes:
        cell_px: side of the grid's cells: one stroke starts in each.
        length, width: of a stroke from its middle, in cells; the length at most REACH_CELLS_MAX.
        hardness: how abruptly a stroke ends; 1 fades from its middle on.
        opacity: how much of what lies below a stroke hides.
        bristles: how much lighter and darker the hairs of the brush leave their lines, in levels of 255.
        turn: how far a stroke may turn from its direction, either way, as a tangent.
    """

    cell_px: int
    length: float
    width: float
    hardness: float = 4.0
    opacity: float = 1.0
    bristles: float = 0.0
    turn: float = 0.15


class Grid(Struct, frozen=True):
    """Cells over a picture; the last row and column may stick out of it."""

    cell_px: int
    rows: int
    columns: int

    @classmethod
    def over(cls, shape: tuple[int, ...], cell_px: int) -> "Grid":
        return cls(cell_px, -(-shape[0] // cell_px), -(-shape[1] // cell_px))

    def means(self, plane: Plane) -> Cells:
        """The mean of each cell; the picture's last pixels are repeated outwards."""
        height, width = self.rows * self.cell_px, self.columns * self.cell_px
        full = np.pad(plane, ((0, height - plane.shape[0]), (0, width - plane.shape[1])), mode="edge")
        parts = full.reshape(self.rows, self.cell_px, self.columns, self.cell_px)
        found: Cells = parts.sum(axis=1, dtype=np.float32).sum(axis=2, dtype=np.float32) / np.float32(self.cell_px**2)
        return found

    def at(self, plane: Plane, y: Cells, x: Cells) -> Cells:
        """The plane's own numbers at these pixels, those outside moved to its border."""
        height, width = plane.shape[:2]
        rows = np.clip(y.astype(np.int32), 0, height - 1)
        columns = np.clip(x.astype(np.int32), 0, width - 1)
        found: Cells = plane[rows, columns]
        return found


class Strokes(Struct, frozen=True):
    """One stroke for each cell.

    Attributes:
        y, x: its middle, from the upper left corner of its own cell, in pixels.
        cos, sin: its direction, x to the right and y downwards.
        color: some numbers each, or none.
        present: whether it is there at all.
    """

    grid: Grid
    y: Cells
    x: Cells
    cos: Cells
    sin: Cells
    color: Colors
    present: Mask


class Layer(Struct, frozen=True):
    """What strokes leave: mixed colours, how much of what is below they cover (0 to 1), and how high the paint stands
    (around 0).
    """

    color: Colors
    cover: Plane
    height: Plane


def scattered(grid: Grid, random: np.random.Generator) -> tuple[Cells, Cells]:
    """A place in each cell, in pixels from its corner."""
    places = random.random((2, grid.rows, grid.columns), np.float32) * np.float32(grid.cell_px)
    return places[0], places[1]


def corners(grid: Grid) -> tuple[Cells, Cells]:
    """The upper left corner of each cell, in pixels."""
    places: NDArray[np.float32] = np.indices((grid.rows, grid.columns), np.float32) * np.float32(grid.cell_px)
    return places[0], places[1]


def turned(cos: Cells, sin: Cells, by: float, random: np.random.Generator) -> tuple[Cells, Cells]:
    """Directions turned a little, each its own way."""
    tangent = (random.random(cos.shape, np.float32) * 2 - 1) * np.float32(by)
    x: Cells = cos - sin * tangent
    y: Cells = sin + cos * tangent
    norm: Cells = np.sqrt(x * x + y * y)
    return x / norm, y / norm


def laid(shape: tuple[int, ...], strokes: Strokes, brush: Brush, random: np.random.Generator) -> Layer:
    """What all strokes together leave on a canvas of `shape`."""
    grid, side, channels = strokes.grid, strokes.grid.cell_px, strokes.color.shape[2]
    reach = min(REACH_CELLS_MAX, math.ceil(max(brush.length, brush.width)))
    numbers = _numbers(strokes, brush, random, reach)
    # By cell: its pixels × (cover, height, colours).
    blocks = np.zeros((grid.rows * grid.columns, side * side, 2 + channels), np.float32)
    step = max(1, CHUNK // (side * side * TOUCHING))
    for begin in range(0, len(blocks), step):
        cells = np.arange(begin, min(begin + step, len(blocks)))
        _lay(blocks, cells, _Near(numbers, cells, grid, reach), brush)
    whole = blocks.reshape(grid.rows, grid.columns, side, side, 2 + channels).transpose(0, 2, 1, 3, 4)
    canvas = whole.reshape(grid.rows * side, grid.columns * side, 2 + channels)[: shape[0], : shape[1]]
    return Layer(np.ascontiguousarray(canvas[..., 2:]), canvas[..., 0].copy(), canvas[..., 1].copy())


def _numbers(strokes: Strokes, brush: Brush, random: np.random.Generator, reach: int) -> NDArray[np.float32]:
    """All that is asked of a stroke, one row a number, with `reach` empty cells around."""
    side, shape = strokes.grid.cell_px, strokes.present.shape
    along, across = np.float32(1 / (brush.length * side)), np.float32(1 / (brush.width * side))
    rank = np.ldexp(np.float32(1), random.integers(0, RANKS, shape))
    parts = [
        strokes.y,
        strokes.x,
        strokes.cos * along,
        strokes.sin * along,
        strokes.cos * across,
        strokes.sin * across,
        rank * strokes.present,
        random.random(shape, np.float32),  # where the hairs of its brush are
        *np.moveaxis(strokes.color, -1, 0),
    ]
    return np.pad(np.stack(parts, dtype=np.float32), ((0, 0), (reach, reach), (reach, reach)))


class _Near:
    """Which strokes touch which of some cells, and those strokes as each cell sees them.

    Attributes:
        cell: of each such pair, in order; an index into the cells.
        numbers: of each such pair, as _numbers() has them, places from the cell's corner.
    """

    def __init__(self, numbers: NDArray[np.float32], cells: NDArray[np.int64], grid: Grid, reach: int) -> None:
        flat, stride = numbers.reshape(len(numbers), -1), grid.columns + 2 * reach
        home = (cells // grid.columns + reach) * stride + cells % grid.columns + reach
        down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
        there = home[:, None] + down * stride + right
        y, x, cos_l, sin_l, cos_w, sin_w, weight = (flat[number][there] for number in range(7))
        y, x = y + (down - 0.5) * grid.cell_px, x + (right - 0.5) * grid.cell_px  # from the cell's middle
        half = grid.cell_px / 2
        along = np.abs(y * sin_l + x * cos_l) - half * (np.abs(sin_l) + np.abs(cos_l))
        across = np.abs(y * cos_w - x * sin_w) - half * (np.abs(sin_w) + np.abs(cos_w))
        self.cell, way = np.nonzero((weight > 0) & (along < 1) & (across < 1))
        self.numbers = flat[:, there[self.cell, way]]
        self.numbers[0] += down[way] * grid.cell_px
        self.numbers[1] += right[way] * grid.cell_px


def _lay(blocks: NDArray[np.float32], cells: NDArray[np.int64], near: _Near, brush: Brush) -> None:
    """Write into `blocks` what the strokes near to some cells leave there.

    They are mixed by weights that grow with cover and rank: their order does not matter, and edges stay soft.
    """
    if not len(near.cell):
        return
    starts = np.flatnonzero(np.diff(near.cell, prepend=-1))
    touched = cells[near.cell[starts]]
    side = math.isqrt(blocks.shape[1])
    rows, columns = np.indices((side, side), np.float32).reshape(2, -1, 1) + np.float32(0.5)
    y, x, cos_l, sin_l, cos_w, sin_w, weight, phase, *color = near.numbers
    along = columns * cos_l + rows * sin_l - (x * cos_l + y * sin_l)
    across = rows * cos_w - columns * sin_w - (y * cos_w - x * sin_w)
    inside = np.float32(1) - along * along
    inside -= across * across
    inside *= np.float32(brush.hardness)
    np.clip(inside, 0, 1, out=inside)
    blocks[touched, :, 0] = np.maximum.reduceat(inside, starts, axis=1).T
    inside *= weight
    total = np.maximum(np.add.reduceat(inside, starts, axis=1), np.float32(1e-6))
    if brush.bristles:
        across *= np.float32(HAIRS)
        across += phase * 8
        across -= np.floor(across)
        hair = np.abs(across - np.float32(0.5)) * 4 - np.float32(1)
        blocks[touched, :, 1] = (np.add.reduceat(hair * inside, starts, axis=1) / total).T
    for channel, level in enumerate(color):
        blocks[touched, :, 2 + channel] = (np.add.reduceat(inside * level, starts, axis=1) / total).T
