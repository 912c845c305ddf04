"""The arithmetic of layers: bands, masks and filling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.workers.kinds import layers

DEPTHS = st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 300]))


@settings(max_examples=200, deadline=None)
@given(DEPTHS, st.integers(2, 5))
def test_bands_are_never_empty_while_there_are_pixels(shape: tuple[int, int, int, int], count: int) -> None:
    height, width, seed, levels = shape
    depth = (np.random.default_rng(seed).integers(0, levels, (height, width)) / max(1, levels - 1)).astype(np.float32)
    bands, edges = layers.split(depth, count)
    assert bands.shape == depth.shape
    assert bands.max() < count
    assert len(np.unique(bands)) == min(count, depth.size)
    assert (bands == 0).any()
    assert len(edges) == count + 1
    assert (edges[0], edges[-1]) == (0, 1)
    assert edges == sorted(edges)


def test_thresholds_fall_between_the_heaps() -> None:
    random = np.random.default_rng(1)
    heaps = [0.1, 0.5, 0.9]
    depth = np.concatenate([random.normal(heap, 0.02, 5000) for heap in heaps]).clip(0, 1).reshape(100, 150)
    edges = layers.otsu_edges(depth.astype(np.float32), 3)
    assert edges is not None
    assert 0.15 < edges[1] < 0.45
    assert 0.55 < edges[2] < 0.85


def test_no_threshold_splits_what_is_flat() -> None:
    assert layers.otsu_edges(np.full((10, 10), 0.5, np.float32), 2) is None
    bands, _ = layers.split(np.full((10, 10), 0.5, np.float32), 4)
    assert np.bincount(bands.ravel()).tolist() == [25, 25, 25, 25]


def test_specks_are_swallowed_and_edges_stay() -> None:
    bands = np.zeros((40, 40), np.uint8)
    bands[:, 20:] = 2
    speckled = bands.copy()
    speckled[10, 10], speckled[30, 30] = 2, 0
    assert (layers.smoothed(speckled, 3) == bands).all()


def test_box_sum_repeats_the_border() -> None:
    values = np.arange(12, dtype=np.int32).reshape(3, 4)
    padded = np.pad(values, 1, mode="edge")
    plain = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).sum(axis=(2, 3))
    assert (layers.box_sum(values, 1) == plain).all()


@pytest.mark.parametrize("radius", [1, 2, 5])
def test_a_feather_is_full_on_the_mask_and_fades_outwards(radius: int) -> None:
    mask = np.zeros((40, 40), bool)
    mask[:, :10] = True
    alpha = layers.feathered(mask, radius)
    assert (alpha[mask] == 255).all()
    ramp = alpha[20, 10:].astype(int)
    assert (np.diff(ramp) <= 0).all()
    assert 0 < ramp[0] < 255
    assert (ramp[2 * radius :] == 0).all()


def test_filling_keeps_what_is_known_and_continues_it() -> None:
    ramp = np.linspace(0, 255, 64, dtype=np.float32)
    colors = np.repeat(np.broadcast_to(ramp, (64, 64))[..., None], 3, axis=2).copy()
    known = np.ones((64, 64), bool)
    known[20:44, 20:44] = False
    broken = np.where(known[..., None], colors, np.float32(777))
    found = layers.filled(broken, known)
    assert np.abs(found[known] - colors[known]).max() < 1e-2
    assert np.abs(found - colors).max() < 70  # smooth, not exact
    assert found[~known].max() < 256  # nothing of what was hidden shows through


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (3, 8), (17, 33)])
def test_filling_from_one_known_pixel_covers_all(shape: tuple[int, int]) -> None:
    known = np.zeros(shape, bool)
    known[-1, -1] = True
    found = layers.filled(np.full((*shape, 3), 9, np.float32), known)
    assert np.allclose(found, 9, atol=1e-3)


def test_over_is_what_viewers_do() -> None:
    random = np.random.default_rng(2)
    below = random.integers(0, 256, (32, 32, 3), np.uint8)
    above = random.integers(0, 256, (32, 32, 4), np.uint8)
    share = above[..., 3:] / 255
    assert np.abs(layers.over(below, above) - (above[..., :3] * share + below * (1 - share))).max() <= 0.501
