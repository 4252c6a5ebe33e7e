"""Which peaks count when heatmaps are decoded, at the limits of height and distance."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keypoint_detection import heatmaps


@pytest.mark.parametrize(("min_distance", "scores"), [(3, [0.9, 0.8, 0.0]), (4, [0.9, 0.0, 0.0])])
def test_a_distance_that_is_no_multiple_of_the_stride_reaches_no_further_than_it_says(min_distance, scores):
    heatmap = torch.zeros(1, 3, 9)
    heatmap[0, 1, [2, 4]] = torch.tensor([0.9, 0.8])  # 4 pixels apart at stride 2
    found = heatmaps.decode(heatmap, 3, min_distance=min_distance, stride=2)[1]
    assert found[0].tolist() == pytest.approx(scores)


@pytest.mark.parametrize(("min_distance", "scores"), [(1.9, [0.5, 0.5]), (2, [0.5, 0])])
def test_of_peaks_of_one_height_that_are_as_close_as_the_distance_one_counts(min_distance, scores):
    heatmap = torch.zeros(5, 7)
    heatmap[2, [2, 4]] = 0.5
    assert heatmaps.decode(heatmap, 2, min_distance=min_distance)[1].tolist() == scores


def test_cells_that_are_no_numbers_take_no_place_of_peaks():
    heatmap = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) / 2 + 0.2  # dense, above the threshold
    heatmap[:3, :3] = math.nan
    heatmap[9, 9] = 0.9
    xy, scores = heatmaps.decode(heatmap, 1)
    assert scores.tolist() == pytest.approx([0.9])
    assert xy[0].tolist() == pytest.approx([9.5, 9.5], abs=0.5)


def test_a_peak_as_high_as_the_threshold_counts():
    heatmap = torch.zeros(1, 5, 5)
    heatmap[0, 2, 2] = 0.5
    xy, scores = heatmaps.decode(heatmap, 1, threshold=0.5)
    assert scores.tolist() == [[0.5]]
    assert xy.tolist() == [[[2.5, 2.5]]]


def test_a_plateau_as_high_as_the_threshold_is_one_peak():
    heatmap = torch.zeros(1, 5, 7)
    heatmap[0, 2, 2:5] = 0.5
    xy, scores = heatmaps.decode(heatmap, 3, threshold=0.5)
    assert scores.tolist() == [[0.5, 0, 0]]
    assert xy[0, 0].tolist() == [3.5, 2.5]


@pytest.mark.parametrize("along", ["x", "y"])
def test_along_an_axis_of_two_cells_a_peak_is_where_its_cell_is(along):
    heatmap = torch.tensor([[0.1, 0.1], [0.3, 0.2], [0.9, 0.4], [0.5, 0.2], [0.1, 0.1]])
    xy, _ = heatmaps.decode(heatmap if along == "x" else heatmap.T, 1)
    narrow, long = xy[0].tolist() if along == "x" else xy[0].flip(0).tolist()
    assert narrow == 0.5
    before, centre, after = (math.log(height) for height in (0.3, 0.9, 0.5))
    assert long == pytest.approx(2.5 + (before - after) / (2 * (before - 2 * centre + after)), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_middle_of_a_very_large_plateau_is_exact(dtype):
    heatmap = torch.zeros(700, 600, dtype=dtype)
    heatmap[100:653, 80:593] = 0.5  # 283,689 cells, whose columns add up to more than 2 ** 24
    xy, scores = heatmaps.decode(heatmap, 2)
    assert scores.tolist() == [0.5, 0]
    assert xy[0].tolist() == [336.5, 376.5]


def gaussian(size, centre, widths, angle):
    """A map of one Gaussian, by its formula: standard deviations along and across a direction in degrees."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    along = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    dx, dy = x - centre[0], y - centre[1]
    u, v = along[0] * dx + along[1] * dy, -along[1] * dx + along[0] * dy
    return torch.from_numpy(np.exp(-0.5 * ((u / widths[0]) ** 2 + (v / widths[1]) ** 2)))


@settings(max_examples=100)
@given(
    x=st.floats(5.05, 5.95), y=st.floats(6.05, 6.95), widths=st.tuples(st.floats(0.8, 3), st.floats(0.8, 3)),
    angle=st.floats(0, 180), stride=st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_a_peak_that_is_stretched_and_turned_is_found_where_it_is(x, y, widths, angle, stride):
    heatmap = gaussian((13, 12), (x, y), widths, angle)
    row, column = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    xy, _ = heatmaps.decode(heatmap, 1, stride=stride)
    # Along a ridge the highest cell may not be the one that the centre is in; what is found stays within that cell.
    expected = np.clip([x, y], [column, row], [column + 1, row + 1]) * stride
    assert xy[0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_what_is_no_gaussian_is_fitted_by_weighted_least_squares():
    weights = np.sqrt(np.outer([0.2, 0.6, 0.2], [0.2, 0.6, 0.2])).ravel()
    y, x = np.mgrid[-1:2, -1:2].reshape(2, 9)
    columns = np.stack([np.ones(9), x, y, x * x, x * y, y * y], axis=1)
    random = np.random.default_rng(0)
    for _ in range(50):
        heatmap = 0.1 * gaussian((9, 9), random.uniform(4.2, 4.8, 2), (1.1, 1.1), 0).numpy() * random.uniform(0.9, 1)
        heatmap[3:6, 3:6] *= random.uniform(0.8, 1, (3, 3))
        heatmap[4, 4] = 0.2
        values = np.log(heatmap[3:6, 3:6]).ravel()
        _, a, b, c, d, e = np.linalg.lstsq(columns * weights[:, None], values * weights, rcond=None)[0]
        vertex = np.linalg.solve([[2 * c, d], [d, 2 * e]], [-a, -b])
        assert np.abs(vertex).max() < 0.5
        xy, _ = heatmaps.decode(torch.from_numpy(heatmap), 1)
        assert xy[0].tolist() == pytest.approx((vertex + 4.5).tolist(), abs=1e-9)


def test_two_equal_cells_that_touch_at_a_corner_are_one_peak_between_them():
    heatmap = torch.full((7, 7), 0.1)
    heatmap[2, 3] = heatmap[3, 4] = 0.5
    xy, scores = heatmaps.decode(heatmap, 3, threshold=0.3)
    assert scores.tolist() == pytest.approx([0.5, 0, 0])
    assert xy[0].tolist() == pytest.approx([4.0, 3.0])


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_a_ridge_without_an_end_is_decoded_near_its_highest_cell(turn):
    x, y = np.meshgrid(np.arange(9.0), np.arange(9.0))
    ridge = np.exp(-((x - y) ** 2) - 1e-3 * (x + y - 8) ** 2)
    xy, _ = heatmaps.decode(torch.from_numpy(np.rot90(ridge, turn).copy()), 1)
    assert xy[0].tolist() == pytest.approx([4.5, 4.5], abs=1e-6)


def test_the_twist_of_a_ridge_that_is_too_long_is_limited():
    y, x = np.mgrid[-4:5, -4:5]
    ridge = torch.from_numpy(np.exp(-0.5 * (x**2 + y**2) + 0.97 * x * y + 0.02 * x - 1))
    xy, _ = heatmaps.decode(ridge, 1)
    # The vertex of the surface with a mixed derivative of 0.95; that of the surface itself is 0.34 away.
    assert xy[0].tolist() == pytest.approx([4.5 + 0.02 / (1 - 0.95**2), 4.5 + 0.95 * 0.02 / (1 - 0.95**2)], abs=1e-9)


def test_a_corner_that_is_next_to_zero_tells_nothing():
    heatmap = gaussian((9, 9), (4.3, 4.6), (1.1, 1.1), 0)
    heatmap[3, 5] = 1e-7
    heatmap[5, 3] = 0.9
    xy, _ = heatmaps.decode(heatmap, 1)
    assert xy[0].tolist() == pytest.approx([4.3, 4.6], abs=1e-9)
