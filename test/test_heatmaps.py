import math
import re
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.feature import peak_local_max

from keypoint_detection import heatmaps, peaks

NAN = float("nan")


def full_gaussians(keypoints, size, sigma, stride):
    """`(K, 2)` -> `(h, w)` in double precision, straight from the definition."""
    height, width = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
    result = np.zeros((height, width))
    for x, y in keypoints:
        for row in range(height):
            for column in range(width):
                centre_x, centre_y = stride * (column + 0.5), stride * (row + 0.5)
                squared = (centre_x - x) ** 2 + (centre_y - y) ** 2
                result[row, column] = max(result[row, column], math.exp(-squared / (2 * sigma**2)))
    return result


coordinates = st.floats(-20, 60, width=32)


@settings(max_examples=60)
@given(
    keypoints=st.lists(st.tuples(coordinates, coordinates), max_size=4),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    sigma=st.floats(0.5, 8),
    stride=st.sampled_from([1, 2, 3, 4]),
)
def test_rendering_equals_the_full_gaussian_wherever_it_is_above_a_millionth(keypoints, size, sigma, stride):
    rows = torch.tensor([*keypoints, (NAN, NAN)], dtype=torch.float32)
    rendered = heatmaps.render(rows[None, None], size, sigma, stride)
    expected = full_gaussians(keypoints, size, sigma, stride)
    assert rendered.shape == (1, 1, *expected.shape)
    assert rendered.dtype == torch.float32
    # What is cut off is below 1e-6, so that the whole map is within 1e-6 (and the rounding of float32) of the truth.
    np.testing.assert_allclose(rendered[0, 0].numpy(), expected, atol=1.5e-6, rtol=0)
    np.testing.assert_allclose(rendered[0, 0].numpy()[expected > 1e-6], expected[expected > 1e-6], atol=1e-6, rtol=0)


def test_rendering_by_hand():
    rendered = heatmaps.render(torch.tensor([[[2.5, 0.5]]]), (2, 4), sigma=1.0)
    by_distance = {squared: math.exp(-squared / 2) for squared in (0, 1, 2, 4, 5)}
    expected = [[by_distance[d] for d in (4, 1, 0, 1)], [by_distance[d] for d in (5, 2, 1, 2)]]
    torch.testing.assert_close(rendered, torch.tensor([expected]), atol=1e-6, rtol=0)


def test_keypoints_in_double_precision_are_rendered_in_it():
    keypoint = (20.3, 11.8)
    rendered = heatmaps.render(torch.tensor([[keypoint]], dtype=torch.float64), (32, 32), 3.0, 2)
    expected = full_gaussians([keypoint], (32, 32), 3.0, 2)
    assert rendered.dtype == torch.float64
    np.testing.assert_allclose(rendered[0].numpy()[expected > 1e-6], expected[expected > 1e-6], rtol=1e-12)


def test_flipping_the_keypoints_flips_the_heatmap():
    keypoints = torch.rand(3, 5, 2) * 32
    flipped = torch.stack([32 - keypoints[..., 0], keypoints[..., 1]], dim=-1)
    for stride in (1, 2, 4):
        original = heatmaps.render(keypoints, (32, 32), 2.0, stride)
        torch.testing.assert_close(
            heatmaps.render(flipped, (32, 32), 2.0, stride), original.flip(-1), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("shape", [(0, 2), (2, 0, 2), (3, 2, 1, 2), (0, 4, 3, 2)])
def test_rendering_nothing_gives_zeros(shape):
    rendered = heatmaps.render(torch.full(shape, NAN), (5, 7), 2.0, 2)
    assert rendered.shape == (*shape[:-2], 3, 4)
    assert not rendered.any()


def test_missing_keypoints_have_no_gradient_and_leave_that_of_the_others():
    rows = [(2.2, 1.6), (NAN, NAN), (NAN, 1.0), (math.inf, 1.0), (1e30, -1e30)]
    keypoints = torch.tensor(rows, dtype=torch.float64, requires_grad=True)
    heatmaps.render(keypoints, (4, 5), sigma=1.0).sum().backward()
    y, x = np.mgrid[:4, :5] + 0.5
    heights = np.exp(-0.5 * ((x - 2.2) ** 2 + (y - 1.6) ** 2))
    expected = [((x - 2.2) * heights).sum(), ((y - 1.6) * heights).sum()]
    assert keypoints.grad[0].tolist() == pytest.approx(expected)
    assert keypoints.grad[1:].tolist() == [[0, 0]] * 4


@pytest.mark.parametrize(("sigma", "stride"), [(0.0, 1), (-1.0, 1), (NAN, 1), (2.0, 0)])
def test_rendering_refuses_what_is_not_positive(sigma, stride):
    with pytest.raises(ValueError, match="positive"):
        heatmaps.render(torch.zeros(1, 2), (4, 4), sigma, stride)


@pytest.mark.parametrize("shape", [(), (2,), (3,), (4, 3), (1, 4, 1), (2, 2, 4)])
def test_rendering_refuses_what_are_no_keypoints(shape):
    with pytest.raises(ValueError, match=rf"^keypoints of shape {re.escape(str(shape))}, expected \(\.\.\., K, 2\)$"):
        heatmaps.render(torch.zeros(shape), (4, 4), 2.0)


@settings(max_examples=150)
@given(data=st.data(), stride=st.sampled_from([1, 2, 4]), sigma=st.floats(1.0, 8.0))
def test_decoding_what_was_rendered_returns_the_keypoint(data, stride, sigma):
    height, width = data.draw(st.integers(3 * stride, 50)), data.draw(st.integers(3 * stride, 50))
    # The last cell may reach over the border; everywhere within the image has to come back.
    x = data.draw(st.floats(0, width, width=32, exclude_max=True))
    y = data.draw(st.floats(0, height, width=32, exclude_max=True))
    rendered = heatmaps.render(torch.tensor([[[x, y]], [[NAN, NAN]]]), (height, width), sigma, stride)
    xy, scores = heatmaps.decode(rendered, 3, threshold=0.001, stride=stride)
    torch.testing.assert_close(xy[0, 0], torch.tensor([x, y]), atol=0.01, rtol=0)
    assert scores[0, 0] == rendered[0].max()
    assert xy[0, 1:].isnan().all()
    assert not scores[0, 1:].any()
    assert xy[1].isnan().all()
    assert not scores[1].any()


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_decoding_at_every_border_and_corner(stride):
    size = (32, 48)
    steps_x = [0.0, 0.1, 0.5, 24.3, 47.4, 47.9, 47.999]
    steps_y = [0.0, 0.1, 0.5, 15.7, 31.4, 31.9, 31.999]
    keypoints = torch.tensor([[[x, y]] for x in steps_x for y in steps_y])
    xy, _ = heatmaps.decode(heatmaps.render(keypoints, size, 2.0, stride), 2, stride=stride)
    torch.testing.assert_close(xy[:, :1], keypoints, atol=0.01, rtol=0)
    assert xy[:, 1].isnan().all()


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_decoding_several_keypoints_of_a_map(stride):
    grid = torch.cartesian_prod(torch.arange(6.0), torch.arange(5.0)) * 40 + 20
    keypoints = grid + torch.rand(30, 2, generator=torch.Generator().manual_seed(0)) * 8 - 4
    xy, _ = heatmaps.decode(heatmaps.render(keypoints, (200, 240), 2.0, stride), 40, stride=stride)
    found = xy[~xy.isnan().any(-1)]
    assert len(found) == 30
    distances = (keypoints[:, None] - found).norm(dim=-1)
    assert distances.min(1).values.max() < 0.01
    assert sorted(distances.argmin(1).tolist()) == list(range(30))


def decode_both_ways(maps, *args, **arguments):
    """Decode by looking at every cell, and at the high ones alone, and compare."""
    results = []
    for share in (0, 1):
        with mock.patch.object(peaks, "_SPARSE", share):
            results.append(heatmaps.decode(maps, *args, **arguments))
    for dense, sparse in zip(*results, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=0, atol=0, equal_nan=True)
    return results[0]


distinct_maps = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda size: st.permutations(range(size[0] * size[1])).map(lambda order: np.array(order).reshape(size))
)


@settings(max_examples=100)
@given(ranks=distinct_maps, min_distance=st.integers(1, 4), count=st.integers(1, 9))
def test_peaks_are_those_of_a_window_search(ranks, min_distance, count):
    heights = (ranks + 1) / ranks.size
    expected = []
    for row, column in np.ndindex(heights.shape):
        rows = slice(max(0, row - min_distance), row + min_distance + 1)
        columns = slice(max(0, column - min_distance), column + min_distance + 1)
        if heights[row, column] == heights[rows, columns].max() and heights[row, column] >= 0.3:
            expected.append((heights[row, column], column, row))
    expected = sorted(expected, reverse=True)[:count]
    maps = torch.tensor(heights)[None]
    xy, scores = decode_both_ways(maps, count, min_distance=min_distance, threshold=0.3)
    np.testing.assert_array_equal(scores[0, : len(expected)].numpy(), [height for height, _, _ in expected])
    cells = xy[0, : len(expected)]
    # The sub-pixel position stays within the cell of the peak.
    assert ((cells - torch.tensor([[x + 0.5, y + 0.5] for _, x, y in expected]).view(-1, 2)).abs() <= 0.5).all()
    assert xy[0, len(expected) :].isnan().all()
    assert not scores[0, len(expected) :].any()


@pytest.mark.parametrize("missing", [0.0, 0.6, 1.0])
def test_a_map_with_very_many_keypoints_is_drawn_without_what_pads_the_others(missing, monkeypatch):
    drawn, patch_side = [], heatmaps._patch_side
    keypoints = torch.rand(3, 2, 300, 2) * 100 - 10
    keypoints[1:, :, 4:] = math.nan  # 616 of 1800 are left
    keypoints[0][torch.rand(2, 300) < missing] = math.nan
    expected = torch.stack(
        [heatmaps.render(points[:, None], (70, 90), 3.0, 2).amax(0) for points in keypoints.flatten(0, 1)]
    )
    monkeypatch.setattr(heatmaps, "_patch_side", lambda xy, *more: drawn.append(xy.numel()) or patch_side(xy, *more))
    found = heatmaps.render(keypoints, (70, 90), 3.0, 2)
    assert torch.equal(found, expected.view(3, 2, 35, 45))
    assert drawn == 2 * [int((~keypoints.isnan()).all(-1).sum())]


@pytest.mark.parametrize("min_distance", [78, 1e5, 1e12, math.inf])
def test_a_distance_beyond_the_map_leaves_its_highest_peak(min_distance, monkeypatch):
    radii, window_maximum = [], peaks.window_maximum
    monkeypatch.setattr(
        peaks, "window_maximum", lambda maps, radius: radii.append(radius) or window_maximum(maps, radius)
    )
    maps = torch.zeros(30, 40)
    maps[0, 0], maps[29, 39] = 0.5, 0.75
    xy, scores = heatmaps.decode(maps, 3, min_distance=min_distance, stride=2)
    assert scores.tolist() == [0.75, 0, 0]
    torch.testing.assert_close(xy[0], torch.tensor([79.0, 59.0]), atol=1, rtol=0)
    assert max(radii) <= 40  # which sees the whole map from every cell
    maps[0, 0] = 0.75
    assert heatmaps.decode(maps, 3, min_distance=min_distance, stride=2)[1].tolist() == [0.75, 0, 0]


@pytest.mark.parametrize("min_distance", [1, 3, 7])
def test_peaks_are_those_of_scikit_image(min_distance):
    maps = torch.rand(4, 60, 70, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, scores = heatmaps.decode(maps, 50, min_distance=min_distance, threshold=0.5)
    for heatmap, found in zip(maps.numpy(), scores.numpy(), strict=True):
        rows, columns = peak_local_max(
            heatmap, min_distance=min_distance, threshold_abs=0.5, num_peaks=50, exclude_border=False
        ).T
        np.testing.assert_array_equal(found[: len(rows)], heatmap[rows, columns])
        assert not found[len(rows) :].any()


def test_the_distance_of_suppression_is_in_pixels_of_the_image():
    keypoints = torch.tensor([[18.0, 18.0], [34.0, 18.0]])
    rendered = heatmaps.render(keypoints, (64, 64), 2.0, stride=4)
    rendered[:, 7:] *= 0.9
    assert (heatmaps.decode(rendered, 5, min_distance=12, stride=4)[1] > 0).sum() == 2
    assert (heatmaps.decode(rendered, 5, min_distance=17, stride=4)[1] > 0).sum() == 1


def disc(size, centre, radius):
    y, x = np.mgrid[:size, :size]
    return torch.tensor((x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2).float()


PLATEAUS = {
    "two cells": ([(3, 3), (3, 4)], (4.0, 3.5)),
    "square of four": ([(3, 3), (3, 4), (4, 3), (4, 4)], (4.0, 4.0)),
    "row": ([(5, column) for column in range(2, 9)], (5.5, 5.5)),
    "in the corner": ([(row, column) for row in range(3) for column in range(3)], (1.5, 1.5)),
    "diagonal": ([(2, 2), (3, 3), (4, 4)], (3.5, 3.5)),
    "fork": ([(6, 6), (5, 5), (5, 7), (4, 4), (4, 8), (3, 3), (3, 9)], (6.5, 5 + 0.5 - 4 / 7)),
    "whole map": ([(row, column) for row in range(16) for column in range(16)], (8.0, 8.0)),
}


@pytest.mark.parametrize("name", PLATEAUS)
@pytest.mark.parametrize("background", [0.0, 0.2])
def test_a_plateau_is_one_peak_at_its_centre(name, background):
    cells, centre = PLATEAUS[name]
    heatmap = torch.full((1, 16, 16), background)
    for row, column in cells:
        heatmap[0, row, column] = 0.7
    xy, scores = heatmaps.decode(heatmap, 4, threshold=0.3)
    assert scores[0].tolist() == pytest.approx([0.7, 0, 0, 0])
    assert xy[0, 0].tolist() == pytest.approx(centre, abs=0.51 if name == "fork" else 1e-4)
    assert xy[0, 1:].isnan().all()


@pytest.mark.parametrize("radius", [1.5, 4.2, 9.7, 14.0])
def test_a_saturated_blob_is_one_peak_at_its_centre(radius):
    xy, scores = heatmaps.decode(disc(40, (19, 17), radius)[None], 5)
    assert scores[0].tolist() == [1, 0, 0, 0, 0]
    assert xy[0, 0].tolist() == pytest.approx([19.5, 17.5], abs=1e-4)


def test_a_flat_shoulder_is_no_peak():
    heatmap = torch.tensor([[0.0, 0.2, 0.5, 0.9, 0.5, 0.5, 0.5, 0.5, 0.1, 0.0]]).expand(3, -1)[None]
    _, scores = heatmaps.decode(heatmap * torch.tensor([0.5, 1.0, 0.5])[:, None], 5)
    assert scores[0].tolist() == pytest.approx([0.9, 0, 0, 0, 0])


def test_of_equal_peaks_in_a_window_one_stays():
    heatmap = torch.zeros(1, 5, 30)
    heatmap[0, 2, [3, 8, 20]] = 0.8
    for min_distance, expected in ((4, 3), (5, 2), (12, 2), (16, 2), (17, 1)):
        _, scores = heatmaps.decode(heatmap, 6, min_distance=min_distance)
        assert (scores > 0).sum() == expected, min_distance


def test_peaks_of_equal_height_are_found_where_they_are_between_cells():
    keypoints = torch.tensor([[10.25, 11.75], [26.25, 11.75], [10.25, 29.75]])  # whole cells apart
    xy, scores = heatmaps.decode(heatmaps.render(keypoints, (40, 40), 2.0), 4)
    assert scores[0] == scores[1] == scores[2] > scores[3] == 0
    torch.testing.assert_close(
        torch.stack(sorted(xy[:3], key=lambda p: (p[1] > 20, p[0].item()))), keypoints, atol=0.01, rtol=0
    )


def test_plateaus_in_one_map_leave_the_others_as_they_are():
    clean = heatmaps.render(torch.rand(6, 3, 2) * 40, (40, 40), 2.0)
    flat = disc(40, (20, 20), 5)[None]
    together, _ = heatmaps.decode(torch.cat([clean[:3], flat, clean[3:]]), 4)
    torch.testing.assert_close(together[[0, 1, 2, 4, 5, 6]], heatmaps.decode(clean, 4)[0], equal_nan=True)


@pytest.mark.parametrize(
    "maps",
    [torch.rand(7, 2, 21, 30), heatmaps.render(torch.rand(7, 2, 3, 2) * torch.tensor([30.0, 21.0]), (21, 30), 0.7)],
    ids=["noise", "peaks"],
)
def test_maps_are_decoded_alike_alone_and_in_groups(monkeypatch, maps):
    together = heatmaps.decode(maps, 6)
    monkeypatch.setattr(peaks, "_CELLS_AT_ONCE", 4 * 21 * 30)  # groups of 4, 4, 4 and 2 maps
    for whole, alone in zip(together, heatmaps.decode(maps, 6), strict=True):
        torch.testing.assert_close(whole, alone, equal_nan=True)


few_levels = arrays(
    np.int64, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)
)


@settings(max_examples=300)
@given(levels=few_levels, count=st.integers(1, 81), missing=st.booleans())
def test_equal_cells_are_decoded_alike_whether_all_or_the_high_ones_are_looked_at(levels, count, missing):
    maps = torch.from_numpy(levels / 3).float()
    if missing:
        maps[0, 0, 0] = NAN
    decode_both_ways(maps, count)


@settings(max_examples=100)
@given(levels=few_levels, count=st.integers(1, 5))
def test_a_map_is_decoded_alike_alone_and_beside_others(levels, count):
    maps = torch.from_numpy(levels / 3).float()
    noise = torch.rand(4, *maps.shape[1:], generator=torch.Generator().manual_seed(0))
    for whole, alone in zip(
        heatmaps.decode(torch.cat([noise, maps]), count), heatmaps.decode(maps, count), strict=True
    ):
        torch.testing.assert_close(whole[4:], alone, rtol=0, atol=0, equal_nan=True)


def test_more_keypoints_than_cells():
    xy, scores = heatmaps.decode(torch.tensor([[[0.5]]]), 3)
    assert xy[0, 0].tolist() == [0.5, 0.5]
    assert scores[0].tolist() == [0.5, 0, 0]
    assert xy[0, 1:].isnan().all()


@pytest.mark.parametrize("shape", [(0, 8, 8), (2, 0, 8, 8)])
def test_decoding_no_maps(shape):
    xy, scores = heatmaps.decode(torch.zeros(shape), 3)
    assert xy.shape == (*shape[:-2], 3, 2)
    assert scores.shape == (*shape[:-2], 3)


def test_decoding_what_is_not_a_number_finds_nothing():
    xy, scores = heatmaps.decode(torch.full((2, 8, 8), NAN), 3)
    assert xy.isnan().all()
    assert not scores.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_decoded_in_single_precision(dtype):
    keypoint = torch.tensor([[[20.3, 11.8]]])
    xy, scores = heatmaps.decode(heatmaps.render(keypoint, (32, 32), 2.0).to(dtype), 2)
    assert xy.dtype == scores.dtype == torch.float32
    assert (xy[0, 0] - keypoint[0, 0]).abs().max() < 0.05
    assert scores[0, 1] == 0


def test_an_exported_graph_decodes_maps_of_any_size():
    class Decoder(torch.nn.Module):
        def forward(self, maps):
            return heatmaps.decode(maps, 5, min_distance=4, stride=2)

    sizes = {2: torch.export.Dim("h", min=8, max=512), 3: torch.export.Dim("w", min=8, max=512)}
    program = torch.export.export(Decoder(), (torch.rand(1, 2, 20, 30),), dynamic_shapes={"maps": sizes})
    maps = torch.rand(1, 2, 33, 17)
    maps[:, 0, 10:13, 5:8] = 2.0  # a plateau, which is one keypoint
    for ours, exported in zip(Decoder()(maps), program.module()(maps), strict=True):
        torch.testing.assert_close(exported, ours, equal_nan=True)


def test_cell_indices_by_hand():
    keypoints = torch.tensor([[0.0, 3.9], [4.0, 8.0], [NAN, 1.0], [1.0, NAN], [99.0, -4.0], [10.9, 9.9]])
    cells = heatmaps.cell_indices(keypoints, torch.tensor([10, 11]), 4)
    assert cells.tolist() == [[0, 0], [1, 2], [-1, -1], [-1, -1], [2, 0], [2, 2]]
    assert cells.dtype == torch.int64
    of_two_images = heatmaps.cell_indices(keypoints.expand(2, 6, 2), torch.tensor([[10, 11], [8, 3]]), 4)
    assert of_two_images.tolist() == [cells.tolist(), [[0, 0], [0, 1], [-1, -1], [-1, -1], [0, 0], [0, 1]]]


@settings(max_examples=50)
@given(x=st.floats(0, 39.5, width=32), y=st.floats(0, 27.5, width=32), stride=st.sampled_from([1, 2, 4]))
def test_the_cell_of_a_keypoint_is_as_high_as_any(x, y, stride):
    keypoint = torch.tensor([[x, y]])
    column, row = heatmaps.cell_indices(keypoint, torch.tensor([28, 40]), stride)[0].tolist()
    rendered = heatmaps.render(keypoint, (28, 40), 3.0, stride)
    assert rendered[row, column] >= rendered.max() - 1e-6


def test_valid_mask_by_hand():
    mask = heatmaps.valid_mask(torch.tensor([[8, 12], [5, 4], [4, 5]]), (8, 12), 4)
    assert mask.shape == (3, 1, 2, 3)
    assert mask[:, 0].tolist() == [
        [[True, True, True], [True, True, True]],
        [[True, False, False], [True, False, False]],
        [[True, True, False], [False, False, False]],
    ]


def test_cell_centres_by_hand():
    assert heatmaps.cell_centres(3, 1).tolist() == [0.5, 1.5, 2.5]
    assert heatmaps.cell_centres(3, 4).tolist() == [2.0, 6.0, 10.0]


def test_entropy_is_the_floor_of_the_binary_cross_entropy():
    targets = torch.tensor([0.0, 1e-39, 1e-6, 1e-4, 0.25, 0.5, 0.9, 1.0])
    by_hand = [0 if p in (0, 1) else -p * math.log(p) - (1 - p) * math.log1p(-p) for p in targets.tolist()]
    entropy = heatmaps.entropy(targets)
    torch.testing.assert_close(entropy, torch.tensor(by_hand), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(heatmaps.entropy(targets.half()).float(), entropy, atol=2e-3, rtol=1e-2)
    for offset in (-0.1, 0.1):
        other = (targets + offset).clamp(0.01, 0.99)
        loss = torch.nn.functional.binary_cross_entropy(other, targets, reduction="none")
        assert (loss >= entropy - 1e-6).all()


def test_transforming_points_by_hand():
    shift_and_scale = torch.tensor([[2.0, 0, 1], [0, 3, -1], [0, 0, 1]], dtype=torch.float64)
    projective = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.5, 1]], dtype=torch.float64)
    points = torch.tensor([[[1.0, 2.0], [NAN, 2.0]], [[0.0, 2.0], [4.0, 0.0]]])
    together = heatmaps.transform_points(points, torch.stack([shift_and_scale, projective]))
    assert together.dtype == torch.float32
    assert together[0, 0].tolist() == [3, 5]
    assert together[0, 1, 0].isnan()
    assert together[1].tolist() == [[0, 1], [4, 0]]
    torch.testing.assert_close(heatmaps.transform_points(points[1], projective), together[1])
    many = points[:, None].expand(2, 3, 2, 2)
    repeated = heatmaps.transform_points(many, torch.stack([shift_and_scale, projective]))
    torch.testing.assert_close(repeated, together[:, None].expand(2, 3, 2, 2), equal_nan=True)


def test_the_sampling_grid_moves_an_image_by_whole_pixels():
    image = torch.rand(1, 1, 6, 8)
    shift = torch.tensor([[1.0, 0, 2], [0, 1, 1], [0, 0, 1]], dtype=torch.float64)
    grid = heatmaps.sampling_grid(shift, (4, 5), (6, 8))
    assert grid.shape == (1, 4, 5, 2)
    moved = torch.nn.functional.grid_sample(image, grid, align_corners=False)
    torch.testing.assert_close(moved, image[:, :, 1:5, 2:7], atol=1e-5, rtol=0)


def test_a_warped_image_shows_the_keypoint_where_the_homography_takes_it():
    to_source = torch.tensor([[0.9, -0.3, 8], [0.25, 1.1, -3], [1e-3, -5e-4, 1]], dtype=torch.float64)
    keypoint = torch.tensor([[30.4, 27.1]])
    image = heatmaps.render(keypoint, (64, 72), 3.0)[None, None]
    warped = torch.nn.functional.grid_sample(
        image, heatmaps.sampling_grid(to_source, (60, 80), (64, 72)), align_corners=False
    )
    expected = heatmaps.transform_points(keypoint, torch.linalg.inv(to_source))
    xy, _ = heatmaps.decode(warped[0], 1)
    torch.testing.assert_close(xy[0], expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("sigma", [0.0, -1.0, 1e-200, 1e-30, math.inf, 1e200, math.nan])
def test_a_sigma_that_no_gaussian_can_be_drawn_with_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma"):
        heatmaps.render(torch.tensor([[0.5, 0.5]]), (4, 4), sigma)


def test_the_narrowest_and_the_widest_gaussian_are_one_cell_and_all():
    narrow, wide = (heatmaps.render(torch.tensor([[1.5, 0.5]]), (2, 3), sigma) for sigma in (1e-18, 1e18))
    assert narrow.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert wide.tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("sigma", [1e-18, 1e18])
def test_the_narrowest_and_the_widest_gaussian_of_a_missing_keypoint_is_nothing(sigma):
    keypoints = torch.full((2, 1, 2), NAN).requires_grad_()
    rendered = heatmaps.render(keypoints, (2, 3), sigma)
    assert rendered.count_nonzero() == 0
    rendered.sum().backward()
    assert keypoints.grad.count_nonzero() == 0
