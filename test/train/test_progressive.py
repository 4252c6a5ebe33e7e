import pytest

from keypoint_detection.errors import InputError
from keypoint_detection.train.progressive import ProgressiveResizing


@pytest.mark.parametrize(
    ("progress", "scale"), [(0, 0.5), (0.14, 0.5), (0.15, 0.625), (0.3, 0.75), (0.59, 0.875), (0.6, 1.0), (1, 1.0)]
)
def test_images_grow_in_steps_from_half_to_all_of_their_size(progress, scale):
    assert ProgressiveResizing(0.6).scale(progress) == scale


def test_zero_trains_at_full_size_throughout():
    assert ProgressiveResizing(0).scale(0) == 1.0


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_share_out_of_range_is_refused(value):
    with pytest.raises(InputError, match="progressive_resizing"):
        ProgressiveResizing(value)
