"""What strokes leave on a canvas, and what painters look at."""

import numpy as np
import pytest

from sightline.workers.kinds import painterly_fields as fields
from sightline.workers.kinds.painterly_strokes import Brush, Grid, Layer, Strokes, laid

SHAPE = (40, 60)
GRID = Grid.over(SHAPE, 10)
BRUSH = Brush(cell_px=10, length=1.5, width=0.5, hardness=4, bristles=5)


def chance() -> np.random.Generator:
    return np.random.default_rng(1)


def strokes(*cells: tuple[int, int], cos: float = 1.0, sin: float = 0.0) -> Strokes:
    """One stroke in the middle of each of these cells, each of a colour of its own."""
    cell_shape = (GRID.rows, GRID.columns)
    present = np.zeros(cell_shape, bool)
    color = np.zeros((*cell_shape, 3), np.float32)
    for number, cell in enumerate(cells, start=1):
        present[cell] = True
        color[cell] = 50 * number
    full = np.full(cell_shape, 5, np.float32)
    return Strokes(GRID, full, full, full * 0 + np.float32(cos), full * 0 + np.float32(sin), color, present)


def lay(*cells: tuple[int, int], cos: float = 1.0, sin: float = 0.0) -> Layer:
    return laid(SHAPE, strokes(*cells, cos=cos, sin=sin), BRUSH, chance())


def test_a_stroke_is_an_ellipse_of_its_colour_around_its_middle() -> None:
    done = lay((1, 2))
    rows, columns = np.nonzero(done.cover)
    assert (rows.min(), rows.max()) == (10, 19)
    assert (columns.min(), columns.max()) == (10, 39)
    assert done.cover[15, 25] == 1
    assert np.allclose(done.color[done.cover > 0], 50)
    assert done.height[done.cover > 0].std() > 0.1  # hairs of the brush


def test_a_stroke_follows_its_direction() -> None:
    upright = lay((1, 2), cos=0.0, sin=1.0).cover
    rows, columns = np.nonzero(upright)
    assert np.ptp(rows) > 2 * np.ptp(columns)
    slanted = lay((1, 2), cos=0.7071, sin=0.7071).cover
    assert slanted[22, 32] > 0
    assert slanted[22, 18] == 0


def test_no_stroke_leaves_nothing() -> None:
    assert not lay().cover.any()
    assert not lay().color.any()


def test_a_stroke_of_higher_rank_lies_over_the_other() -> None:
    both = lay((1, 2), (1, 3))
    shared = both.color[15, 28:32, 0]
    # Ranks are powers of two: whoever is above is nearly all that is seen.
    assert np.minimum(np.abs(shared - 50), np.abs(shared - 100)).max() < 25
    assert both.color[15, 12, 0] == pytest.approx(50, abs=0.01)
    assert both.color[15, 48, 0] == pytest.approx(100, abs=0.01)


def test_it_does_not_matter_how_many_cells_are_worked_on_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [(row, column) for row in range(4) for column in range(6)]
    whole = lay(*cells, cos=0.6, sin=0.8)
    monkeypatch.setattr("sightline.workers.kinds.painterly_strokes.CHUNK", 1)
    by_one = lay(*cells, cos=0.6, sin=0.8)
    assert (whole.color == by_one.color).all()
    assert (whole.cover == by_one.cover).all()
    assert (whole.height == by_one.height).all()


def test_means_of_cells_repeat_the_border() -> None:
    plane = np.arange(15, dtype=np.float32).reshape(3, 5)
    grid = Grid.over(plane.shape, 4)
    padded = np.pad(plane, ((0, 1), (0, 3)), mode="edge")
    assert np.allclose(grid.means(plane), [[padded[:, :4].mean(), padded[:, 4:].mean()]])


@pytest.mark.parametrize(("cos", "sin"), [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8), (-0.6, 0.8)])
def test_directions_run_along_stripes(cos: float, sin: float) -> None:
    rows, columns = np.indices((64, 64), np.float32)
    light = (127 + 100 * np.sin((columns * -sin + rows * cos) / 4)).astype(np.float32)
    found_cos, found_sin = fields.directions(light, 6)
    along = np.abs(found_cos * cos + found_sin * sin)[10:-10, 10:-10]
    assert along.min() > 0.97
    assert np.allclose(found_cos**2 + found_sin**2, 1, atol=1e-3)


def test_directions_of_what_is_flat_are_directions() -> None:
    cos, sin = fields.directions(np.full((8, 8), 90, np.float32), 3)
    assert np.allclose(cos**2 + sin**2, 1)


def test_flattening_takes_noise_away_and_keeps_edges() -> None:
    step = np.full((40, 40, 3), 60, np.float32)
    step[:, 20:] = 190
    noisy = step + chance().normal(0, 8, step.shape).astype(np.float32)
    flat = fields.flattened(noisy, 4)
    assert flat[:, 2:18].std() < noisy[:, 2:18].std() / 2
    assert np.abs(flat - step)[:, 18:22].mean() < 12
    assert np.abs(fields.softened(noisy, 3) - step)[:, 18:22].mean() > 30  # the control: a blur does not keep them


def test_outlines_are_where_it_is_darker_than_around() -> None:
    light = np.full((40, 40), 200, np.float32)
    light[:, 19:21] = 40
    ink = fields.outlines(light, 2, gain=0.2, level=0.5)
    assert ink[20, 20] == 1
    assert not ink[:, :8].any()


@pytest.mark.parametrize("radius", [1, 3, 9])
def test_a_blur_keeps_the_mean_of_what_is_even(radius: int) -> None:
    assert np.allclose(fields.blurred(np.full((5, 30), -77.25, np.float32), radius), -77.25)


def test_paper_is_even_on_the_whole_and_rough_in_detail() -> None:
    sheet = fields.paper((200, 200), chance(), grain_px=1.2)
    assert (sheet.min(), sheet.max()) == (0, 1)
    assert sheet.mean() == pytest.approx(0.5, abs=0.02)
    assert 0.1 < sheet.std() < 0.35
