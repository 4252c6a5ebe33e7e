from types import SimpleNamespace

import pytest

from keypoint_detection.errors import InputError
from keypoint_detection.train.curriculum import Curriculum


def curriculum(**arguments):
    return Curriculum(**{"augmented_share": 0.7, **arguments})


@pytest.mark.parametrize(
    ("progress", "scale"), [(0, 0.5), (0.14, 0.5), (0.15, 0.625), (0.3, 0.75), (0.59, 0.875), (0.6, 1.0), (1, 1.0)]
)
def test_images_grow_in_steps_from_half_to_all_of_their_size(progress, scale):
    assert curriculum(progressive_resizing=0.6).scale(progress) == scale


def test_zero_trains_at_full_size_throughout():
    assert curriculum(progressive_resizing=0).scale(0) == 1.0


@pytest.mark.parametrize(
    ("share", "expected"), [(0.7, [True, True, False, False]), (0, [False] * 4), (1, [True] * 4)]
)  # fmt: skip
def test_images_come_as_they_are_in_the_end(share, expected):
    assert [curriculum(augmented_share=share).augments(progress) for progress in (0, 0.69, 0.7, 1)] == expected


@pytest.mark.parametrize("name", ["progressive_resizing", "augmented_share"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_share_out_of_range_is_refused(name, value):
    with pytest.raises(InputError, match=f"--{name} {value}"):
        curriculum(**{name: value})


def test_the_loader_asks_about_each_batch_of_the_training():
    datamodule = SimpleNamespace(train_stage=None)
    trainer = SimpleNamespace(
        datamodule=datamodule, estimated_stepping_batches=100, callbacks=[], world_size=1, accumulate_grad_batches=2,
        num_training_batches=20, max_epochs=10, max_steps=-1, train_dataloader=[None] * 20,
    )  # fmt: skip
    curriculum(progressive_resizing=0.6, augmented_share=0.6).setup(trainer, None, "test")
    curriculum(progressive_resizing=0, augmented_share=1).setup(trainer, None, "fit")
    assert datamodule.train_stage is None
    curriculum(progressive_resizing=0.6, augmented_share=0.6).setup(trainer, None, "fit")
    # Twenty batches are an epoch and ten steps; after 30 of 100 steps, half of the growth is done.
    places = [(0, 0), (2, 19), (3, 0), (6, 0)]
    stages = [datamodule.train_stage(epoch, batch) for epoch, batch in places]
    assert stages == [(0.5, True), (0.625, True), (0.75, True), (1.0, False)]
    # Workers ask before Lightning has counted the batches, and may get its guess of infinity.
    trainer.num_training_batches, trainer.estimated_stepping_batches = float("inf"), 1000
    curriculum(progressive_resizing=0.6).setup(trainer, None, "fit")
    assert datamodule.train_stage(3, 0) == (0.75, True)
