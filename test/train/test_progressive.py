from types import SimpleNamespace

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


def test_the_loader_asks_for_the_scale_of_each_batch_of_the_training():
    datamodule = SimpleNamespace(train_scale=None)
    steps = SimpleNamespace(
        datamodule=datamodule,
        estimated_stepping_batches=100,
        callbacks=[],
        world_size=1,
        accumulate_grad_batches=2,
        max_epochs=25,
        max_steps=-1,
    )
    ProgressiveResizing(0.6).setup(steps, None, "test")
    assert datamodule.train_scale is None
    ProgressiveResizing(0.6).setup(steps, None, "fit")
    # Two batches are one step; after 30 of 100 steps, half of the growth is done.
    assert [datamodule.train_scale(batch) for batch in (0, 59, 60, 120)] == [0.5, 0.625, 0.75, 1.0]
