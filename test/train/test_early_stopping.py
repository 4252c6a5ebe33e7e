"""When a training stops early, from validation losses worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from configuration import DEFAULT_HYPERPARAMETERS

from keypoint_detection import fit
from keypoint_detection.errors import InputError
from keypoint_detection.train.early_stopping import RelativeEarlyStopping


def trainer_at(**changes):
    """What the callback asks a trainer for, after the last batch of an epoch."""
    values = {"callback_metrics": {}, "sanity_checking": False, "global_step": 0, "current_epoch": 0}
    values |= {"is_last_batch": True, "min_epochs": 0, "min_steps": None, "should_stop": False}
    return SimpleNamespace(**values | changes)


@pytest.mark.parametrize("patience", [0, -1])
def test_a_patience_below_1_is_refused(patience):
    with pytest.raises(InputError, match=f"early_stopping_patience {patience}: expected at least 1"):
        RelativeEarlyStopping(0.0, patience)


@pytest.mark.parametrize("threshold", [1.0, 5.0, float("nan")])
def test_a_loss_cannot_fall_by_all_of_itself_or_more(threshold):
    with pytest.raises(InputError, match=f"--early_stopping_relative_threshold {threshold}: expected below 1"):
        RelativeEarlyStopping(threshold)


@pytest.mark.parametrize(
    ("losses", "threshold", "patience", "stops"),
    [
        ([1.0, 0.91, 0.92], 0.1, 2, 3),  # 0.9 would have been progress
        ([1.0, 0.91, 0.92], 0.1, 3, None),
        ([1.0, 0.95, 0.89, 0.85, 0.84], 0.1, 2, 5),  # the third loss is progress, and the count begins anew
        ([1.0, 0.95, 0.89, 0.88, 0.8], 0.1, 2, None),  # 0.8 is, too: lower by a tenth of 0.89
        ([1.0, 1.0, 1.0], 0.0, 2, 3),
        ([1.0, math.nan, math.nan], 0.0, 2, 3),
        ([1.0, 2.0, 3.0, 4.0], -1.0, 1, None),
    ],
)
def test_it_stops_after_as_many_validations_without_progress_as_was_asked(losses, threshold, patience, stops):
    stopping = RelativeEarlyStopping(threshold, patience)
    trainer = trainer_at()
    seen = []
    for loss in [0.0, *losses]:  # the first one is of the weights that the training starts from
        trainer.callback_metrics["validation/loss"] = torch.tensor(loss)
        stopping.on_validation_end(trainer, None)
        seen.append(trainer.should_stop)
        trainer.global_step += 1
    assert seen == [stops is not None and number >= stops for number in range(len(seen))]


def test_it_may_stop_after_a_validation_that_would_be_the_last_one_without_progress():
    stopping = RelativeEarlyStopping(0.1, 2)
    trainer = trainer_at(global_step=1)
    could = []
    for loss in (1.0, 0.95, 0.89, 0.85, 0.84):  # progress are the first and the third
        could.append(stopping.may_stop(trainer))
        trainer.callback_metrics["validation/loss"] = torch.tensor(loss)
        stopping.on_validation_end(trainer, None)
    assert could == [False, False, True, False, True]
    assert not RelativeEarlyStopping(-1.0, 1).may_stop(trainer)


@pytest.mark.parametrize(
    ("before", "patience", "stopped", "after", "stops"),
    [
        ([1.0, 0.95], 2, False, [0.94], [True]),  # the second loss in a row that is not below 0.9
        ([1.0, 0.95], 2, False, [0.89, 0.85], [False, False]),
        ([1.0, 0.95, 0.94], 2, True, [], []),  # interrupted behind the validation that stopped it
        ([1.0, 0.95, 0.94], 3, False, [0.93], [True]),
        ([1.0, 0.95, 0.94], 4, False, [0.93], [False]),
    ],
)
def test_a_training_that_goes_on_remembers_the_validations_before(before, patience, stopped, after, stops):
    def losses_of(stopping, losses):
        for loss in losses:
            trainer.callback_metrics["validation/loss"] = torch.tensor(loss)
            stopping.on_validation_end(trainer, None)
            yield trainer.should_stop

    trainer = trainer_at(global_step=1)
    first, again = RelativeEarlyStopping(0.1, 2), RelativeEarlyStopping(0.1, patience)
    list(losses_of(first, before))
    again.load_state_dict(first.state_dict())
    trainer.should_stop = False
    again.on_train_start(trainer, None)
    assert trainer.should_stop is stopped
    assert list(losses_of(again, after)) == stops


@pytest.mark.parametrize(
    ("losses", "least", "stops"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0], {"min_epochs": 4}, 4),
        ([1.0, 1.0, 1.0, 0.5, 0.5], {"min_epochs": 4}, 5),  # it has learnt again
        ([1.0, 1.0, 1.0], {"min_epochs": 2}, 2),
        ([1.0, 1.0, 1.0, 1.0, 1.0], {"min_steps": 30}, 3),
        ([1.0, 1.0, 1.0, 1.0], {"min_epochs": 5}, None),
    ],
)
def test_it_stops_no_sooner_than_after_the_fewest_epochs_and_steps(losses, least, stops):
    stopping, trainer, seen = RelativeEarlyStopping(0.1, 1), trainer_at(**least), []
    for epoch, loss in enumerate(losses):  # of 10 steps each
        trainer.current_epoch, trainer.global_step = epoch, 10 * (epoch + 1)
        trainer.callback_metrics["validation/loss"] = torch.tensor(loss)
        stopping.on_validation_end(trainer, None)
        seen.append(trainer.should_stop)
    assert seen == [stops is not None and number >= stops for number in range(1, len(losses) + 1)]


def test_a_validation_within_an_epoch_does_not_count_it_among_the_fewest():
    stopping = RelativeEarlyStopping(0.1, 1)
    trainer = trainer_at(global_step=5, current_epoch=1, min_epochs=2, is_last_batch=False)
    trainer.callback_metrics["validation/loss"] = torch.tensor(math.nan)
    stopping.on_validation_end(trainer, None)
    assert not trainer.should_stop
    trainer.is_last_batch = True
    stopping.on_validation_end(trainer, None)
    assert trainer.should_stop


@pytest.mark.parametrize(("epochs", "stops"), [(2, False), (3, True)])
def test_a_training_that_goes_on_stops_at_once_if_it_had_stopped(epochs, stops):
    stopping, trainer = RelativeEarlyStopping(0.1, 1), trainer_at(current_epoch=epochs, min_epochs=3)
    stopping.load_state_dict({"best": 1.0, "without_progress": 2})
    stopping.on_train_start(trainer, None)
    assert trainer.should_stop == stops


def test_a_training_says_once_that_it_stops_early(tmp_path, caplog):
    stops = {"early_stopping_relative_threshold": 0.999, "early_stopping_patience": 1, "min_epochs": 4}
    short = {"max_epochs": 9, "max_pictures": 0, "wandb_mode": "disabled"}
    with caplog.at_level("INFO"):
        fit(**DEFAULT_HYPERPARAMETERS | short | stops, run_dir=str(tmp_path))
    (said,) = [message for message in caplog.messages if message.startswith("stopping early")]
    assert said.endswith("in 3 validations")
