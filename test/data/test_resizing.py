import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keypoint_detection import heatmaps
from keypoint_detection.batch import Batch
from keypoint_detection.data.resizing import SMALLEST_SIDE, shrink_batch


def batch_of(height, width, keypoints):
    points = torch.tensor(keypoints)[None, None]
    images = heatmaps.render(points, (height, width), sigma=6.0).expand(1, 3, -1, -1)
    return Batch(
        images, points, None, torch.tensor([[height, width]]), torch.ones(1, 1, dtype=torch.bool),
        torch.diag(torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64))[None], torch.tensor([0]),
    )  # fmt: skip


def centroid(image):
    """The centre of mass of an image `(H, W)` in continuous pixels."""
    columns, rows = (heatmaps.cell_centres(n, 1) for n in (image.shape[1], image.shape[0]))
    return torch.stack([(image.sum(0) * columns).sum(), (image.sum(1) * rows).sum()]) / image.sum()


@given(
    height=st.integers(200, 300), width=st.integers(200, 300), scale=st.floats(0.5, 0.95),
    x=st.floats(0.2, 0.8), y=st.floats(0.2, 0.8),
)  # fmt: skip
def test_keypoints_stay_on_what_they_mark(height, width, scale, x, y):
    batch = batch_of(height, width, [[x * width, y * height]])
    small = shrink_batch(batch, scale)
    assert small.images.shape[-1] < width
    assert torch.allclose(centroid(small.images[0, 0]), small.keypoints[0, 0, 0], atol=0.05)
    original = heatmaps.transform_points(batch.keypoints.double(), batch.transforms)
    assert torch.allclose(heatmaps.transform_points(small.keypoints.double(), small.transforms), original, atol=1e-3)


def test_small_images_are_left_alone():
    batch = batch_of(SMALLEST_SIDE, 400, [[9.0, 9.0]])
    assert shrink_batch(batch, 0.5) is batch


@pytest.mark.parametrize("scale", [0.5, 0.75])
def test_padding_is_still_known_as_padding(scale):
    batch = batch_of(300, 400, [[9.0, 9.0]])._replace(sizes=torch.tensor([[201, 299]]))
    small = shrink_batch(batch, scale)
    assert small.images.shape[-2:] == (300 * scale, 400 * scale)
    assert small.sizes.tolist() == [[-(-201 * scale // 1), -(-299 * scale // 1)]]
