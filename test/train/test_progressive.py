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
    trainer = SimpleNamespace(
        datamodule=datamodule, estimated_stepping_batches=100, callbacks=[], world_size=1, accumulate_grad_batches=2,
        num_training_batches=20, max_epochs=10, max_steps=-1, train_dataloader=[None] * 20,
    )  # fmt: skip
    ProgressiveResizing(0.6).setup(trainer, None, "test")
    assert datamodule.train_scale is None
    ProgressiveResizing(0.6).setup(trainer, None, "fit")
    # Twenty batches are an epoch and ten steps; after 30 of 100 steps, half of the growth is done.
    places = [(0, 0), (2, 19), (3, 0), (6, 0)]
    assert [datamodule.train_scale(epoch, batch) for epoch, batch in places] == [0.5, 0.625, 0.75, 1.0]
    # Workers ask before Lightning has counted the batches, and may get its guess of infinity.
    trainer.num_training_batches, trainer.estimated_stepping_batches = float("inf"), 1000
    ProgressiveResizing(0.6).setup(trainer, None, "fit")
    assert datamodule.train_scale(3, 0) == 0.75
