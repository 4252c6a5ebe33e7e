"""Which peaks count when heatmaps are decoded, at the limits of height and distance."""

import math

import pytest
import torch

from keypoint_detection import heatmaps


@pytest.mark.parametrize(("min_distance", "scores"), [(3, [0.9, 0.8, 0.0]), (4, [0.9, 0.0, 0.0])])
def test_a_distance_that_is_no_multiple_of_the_stride_reaches_no_further_than_it_says(min_distance, scores):
    heatmap = torch.zeros(1, 3, 9)
    heatmap[0, 1, [2, 4]] = torch.tensor([0.9, 0.8])  # 4 pixels apart at stride 2
    found = heatmaps.decode(heatmap, 3, min_distance=min_distance, stride=2)[1]
    assert found[0].tolist() == pytest.approx(scores)


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
