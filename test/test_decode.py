"""Which peaks count when heatmaps are decoded, at the limits of height and distance."""

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
