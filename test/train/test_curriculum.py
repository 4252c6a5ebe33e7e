from types import SimpleNamespace

import pytest
from configuration import DEFAULT_HYPERPARAMETERS

from keypoint_detection.errors import InputError
from keypoint_detection.train.build import build_callbacks
from keypoint_detection.train.curriculum import Curriculum
from keypoint_detection.train.flags import build_parser
from keypoint_detection.train.run_folder import RunFolder


def curriculum(**arguments):
    return Curriculum(**{"augmented_share": 0.7, "progressive_resizing": 0.6, **arguments})


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
    datamodule = SimpleNamespace(curriculum=None)
    trainer = SimpleNamespace(
        datamodule=datamodule, estimated_stepping_batches=100, callbacks=[], world_size=1, accumulate_grad_batches=2,
        num_training_batches=20, max_epochs=10, max_steps=-1, train_dataloader=[None] * 20, limit_train_batches=1.0,
    )  # fmt: skip
    curriculum(progressive_resizing=0.6, augmented_share=0.6).setup(trainer, None, "test")
    curriculum(progressive_resizing=0, augmented_share=1).setup(trainer, None, "fit")
    assert datamodule.curriculum is None
    curriculum(progressive_resizing=0.6, augmented_share=1).setup(trainer, None, "fit")
    assert [datamodule.curriculum(epoch, 0) for epoch in (0, 9)] == [(0.5, True), (1.0, True)]
    curriculum(progressive_resizing=0, augmented_share=0.6).setup(trainer, None, "fit")
    assert [datamodule.curriculum(epoch, 0) for epoch in (0, 9)] == [(1.0, True), (1.0, False)]
    curriculum(progressive_resizing=0.6, augmented_share=0.6).setup(trainer, None, "fit")
    # Twenty batches are an epoch and ten steps; after 30 of 100 steps, half of the growth is done.
    places = [(0, 0), (2, 19), (3, 0), (6, 0)]
    stages = [datamodule.curriculum(epoch, batch) for epoch, batch in places]
    assert stages == [(0.5, True), (0.625, True), (0.75, True), (1.0, False)]
    # Workers ask before Lightning has counted the batches, and may get its guess of infinity.
    trainer.num_training_batches, trainer.estimated_stepping_batches = float("inf"), 1000
    curriculum(progressive_resizing=0.6).setup(trainer, None, "fit")
    assert datamodule.curriculum(3, 0) == (0.75, True)
    # So does the limit of an epoch: 8 of 50 steps.
    for limit in (10, 0.5):
        trainer.limit_train_batches = limit
        assert datamodule.curriculum(1, 6) == (0.625, True)


def test_gradients_accumulated_over_more_than_is_left_of_an_epoch_take_a_step_at_its_end():
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(curriculum=None), estimated_stepping_batches=10, callbacks=[], world_size=1,
        accumulate_grad_batches=8, num_training_batches=4, max_epochs=10, max_steps=-1,
    )  # fmt: skip
    curriculum(progressive_resizing=0.6, augmented_share=0.7).setup(trainer, None, "fit")
    stages = [trainer.datamodule.curriculum(epoch, batch) for epoch in (0, 3, 9) for batch in (0, 3)]
    assert stages == 2 * [(0.5, True)] + 2 * [(0.75, True)] + 2 * [(1.0, False)]


def test_a_training_without_an_end_shows_all_images_alike():
    trainer = SimpleNamespace(datamodule=SimpleNamespace(curriculum=None), callbacks=[], max_epochs=-1, max_steps=-1)
    curriculum(progressive_resizing=0.6).setup(trainer, None, "fit")
    assert trainer.datamodule.curriculum is None


def test_a_training_has_the_curriculum_of_its_flags(tmp_path):
    given = {"progressive_resizing": 0.2, "augmented_share": 0.4}
    config = build_parser().parse_object(DEFAULT_HYPERPARAMETERS | given)
    callbacks = build_callbacks(config, RunFolder(tmp_path), ["corner"])
    (found,) = (callback for callback in callbacks if isinstance(callback, Curriculum))
    assert (found.progressive_resizing, found.augmented_share) == (0.2, 0.4)
