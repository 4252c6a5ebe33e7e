"""After which epochs a training validates."""

import csv
from types import SimpleNamespace

import pytest
from configuration import DEFAULT_HYPERPARAMETERS
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop

from keypoint_detection import fit
from keypoint_detection.errors import InputError
from keypoint_detection.train.evaluation_schedule import (
    NOT_YET,
    EvaluationSchedule,
    epochs_since_validation,
    is_last_epoch,
)
from keypoint_detection.train.finish import read_curves

QUICK = DEFAULT_HYPERPARAMETERS | {"wandb_mode": "disabled", "max_pictures": 0, "ap_epoch_start": 0}


def trainer_of_100_seconds(**changes):
    """What the schedule asks a trainer for, of a training that ends after this time and is a single process."""
    values = {
        "callbacks": [Timer(duration={"seconds": 100})], "max_epochs": -1, "max_steps": -1, "current_epoch": 0,
        "global_step": 0, "num_training_batches": 1, "num_val_batches": [0], "accumulate_grad_batches": 1,
        "check_val_every_n_epoch": 1, "datamodule": SimpleNamespace(batch_size=4),
        "strategy": SimpleNamespace(broadcast=lambda value: value), "should_stop": False, "sanity_checking": False,
    }  # fmt: skip
    return SimpleNamespace(**values | changes)


def loader(*images):
    """A validation loader of batches with these numbers of images."""
    return SimpleNamespace(batch_sampler=SimpleNamespace(batches=[range(count) for count in images]))


def validated(folder, **changes):
    """Epochs that were validated, with and without average precision, where an epoch has two batches."""
    fit(**{**QUICK, "run_dir": str(folder), **changes})
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["validation/loss"]]
    with_ap = [int(row["epoch"]) for row in rows if row["validation/meanAP"]]
    return with_ap, [int(row["epoch"]) for row in rows if not row["validation/meanAP"]]


@pytest.mark.parametrize(
    ("changes", "evaluated"),
    [
        ({"max_epochs": 5, "ap_epoch_freq": "auto"}, [0, 1, 2, 3, 4]),
        ({"max_epochs": 60, "ap_epoch_freq": "auto", "limit_train_batches": 1}, [*range(1, 60, 2)]),
        ({"max_epochs": 6, "ap_epoch_freq": "auto", "check_val_every_n_epoch": 4}, [3, 5]),
        ({"max_epochs": 5, "check_val_every_n_epoch": None, "val_check_interval": 4}, [1, 3, 4]),
        ({"max_epochs": 2, "val_check_interval": 0.5}, [0, 0, 1, 1]),
        ({"max_epochs": -1, "max_steps": 3}, [0, 1]),
        ({"max_epochs": -1, "max_steps": 1, "ap_epoch_freq": "auto"}, [0]),
        ({"max_epochs": -1, "max_steps": 5, "check_val_every_n_epoch": 2}, [1, 2]),
        ({"max_epochs": -1, "max_steps": 5, "check_val_every_n_epoch": None, "val_check_interval": 4}, [1, 2]),
        ({"max_epochs": -1, "max_steps": 3, "batch_size": 1, "accumulate_grad_batches": 2}, [0, 1]),
        ({"max_epochs": 50, "ap_epoch_freq": "auto", "val_check_interval": 0.5}, [n // 2 for n in range(100)]),
        ({"max_epochs": 50, "ap_epoch_freq": "auto", "val_check_interval": 2}, [*range(50)]),
    ],
)
def test_a_training_validates_as_its_flags_say_and_always_at_its_end(tmp_path, changes, evaluated):
    assert validated(tmp_path, **changes) == (evaluated, [])


def test_a_training_that_may_not_stop_yet_validates_no_more_often(tmp_path):
    stops = {"early_stopping_relative_threshold": 0.999, "early_stopping_patience": 1, "min_epochs": 6}
    short = {"limit_train_batches": 2, "batch_size": 1, "ap_epoch_freq": 1, "max_epochs": 9}
    assert validated(tmp_path / "often", **short, **stops) == ([0, 1, 2, 3, 4, 5], [])
    assert validated(tmp_path / "seldom", check_val_every_n_epoch=2, **short, **stops) == ([1, 3, 5], [])
    batches = {"val_check_interval": 1, "min_epochs": 4}
    assert validated(tmp_path / "batches", **short | stops | batches) == ([0, 0, 1, 1, 2, 2, 3, 3], [])
    odd = {"check_val_every_n_epoch": 2, "min_epochs": 5}
    assert validated(tmp_path / "odd", **short | stops | odd) == ([1, 3, 5], [])
    # Of every fifth epoch there is average precision, and of the one that may stop and does.
    assert validated(tmp_path / "fifth", **short | stops | {"ap_epoch_freq": 5}) == ([4, 5], [0, 1, 2, 3])


def test_a_training_that_is_out_of_time_evaluates_no_more_often_before_its_fewest_epochs(tmp_path):
    timed = {"max_time": "00:00:00:01", "min_epochs": 12, "check_val_every_n_epoch": 2, "ap_epoch_freq": 50}
    with_ap, without = validated(tmp_path, **timed, max_epochs=20, batch_size=1)
    assert without[0] == 1
    assert len(with_ap) == 1
    assert with_ap[0] >= 11


def test_a_validation_that_stops_a_training_early_has_average_precision(tmp_path):
    stops = {"early_stopping_relative_threshold": 0.999, "early_stopping_patience": 2, "max_epochs": 20}
    # The first loss is progress and the next two are none; without the stop epochs 4, 9, ... would be evaluated.
    assert validated(tmp_path / "two", ap_epoch_freq=5, **stops) == ([2], [0, 1])
    # With a patience of one, every validation may be the last.
    assert validated(tmp_path / "one", ap_epoch_freq=5, **stops | {"early_stopping_patience": 1}) == ([0, 1], [])


def test_an_interval_in_time_validates_at_the_end(tmp_path):
    assert validated(tmp_path, max_epochs=3, val_check_interval="00:01:00:00") == ([2], [])


def test_average_precision_that_is_due_waits_for_the_next_validation_of_an_interval_in_time(tmp_path, monkeypatch):
    real = _TrainingEpochLoop._should_check_val_fx

    def by_the_clock(self, fetcher):
        if self.trainer._val_check_time_interval is None:  # at the end
            return real(self, fetcher)
        return self.batch_progress.is_last_batch and self.trainer.current_epoch in (1, 2, 5)

    monkeypatch.setattr(_TrainingEpochLoop, "_should_check_val_fx", by_the_clock)
    in_time = {"val_check_interval": "00:01:00:00", "max_epochs": 9, "limit_train_batches": 1}
    # Epochs 1, 4 and 7, counted from 1, are due; 2, 3, 6 and 9 are validated.
    assert validated(tmp_path, ap_epoch_freq=3, ap_epoch_start=1, **in_time) == ([1, 5, 8], [2])


def test_epochs_without_average_precision_leave_the_checkpoints_of_the_best_alone(tmp_path):
    names = {"maximal_gt_keypoint_pixel_distances": "40 80", "learning_rate": 0.1, "save_top_k": 9}
    assert validated(tmp_path, max_epochs=5, ap_epoch_freq=3, **names) == ([2, 4], [0, 1, 3])
    kept = {path.name[:9] for path in (tmp_path / "checkpoints").glob("epoch*")}
    assert kept == {"epoch0002", "epoch0004"}


def test_average_precision_falls_on_epochs_that_are_validated(tmp_path):
    often = {"ap_epoch_start": 1, "check_val_every_n_epoch": 2, "max_epochs": 8, "limit_train_batches": 1}
    assert validated(tmp_path / "a", ap_epoch_freq=2, **often) == ([1, 3, 5, 7], [])
    # Epochs 1, 4 and 7, counted from 1, are due; 2, 4 and 8 are the first ones that are validated.
    assert validated(tmp_path / "b", ap_epoch_freq=3, **often) == ([1, 3, 7], [5])
    # After batches 5, 10, 15, 20 and 24, of three in each epoch; epochs 3 and 6, counted from 1, are due.
    batches = {"check_val_every_n_epoch": None, "val_check_interval": 5, "batch_size": 1, "max_epochs": 8}
    assert validated(tmp_path / "c", ap_epoch_freq=3, **batches) == ([3, 6, 7], [1, 4])


def test_a_plateau_counts_validations(tmp_path):
    plateau = {"learning_rate_schedule": "plateau", "plateau_patience": 1, "plateau_relative_threshold": 0.99}
    often = {"check_val_every_n_epoch": 3, "max_epochs": 12, "limit_train_batches": 1, "plateau_factor": 0.5}
    validated(tmp_path, **plateau, **often)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rates = {int(row["epoch"]): float(row["learning_rate"]) for row in csv.DictReader(file) if row["learning_rate"]}
    # The second validation in a row that is no better, after epoch 8, halves it.
    assert [rates[epoch] / 1e-3 for epoch in range(12)] == pytest.approx([1.0] * 9 + [0.5] * 3)


def test_a_plateau_counts_no_epoch_twice_and_none_that_was_not_validated(tmp_path):
    plateau = {"learning_rate_schedule": "plateau", "plateau_patience": 0, "plateau_relative_threshold": 0.99}
    often = {"check_val_every_n_epoch": None, "val_check_interval": 3, "plateau_factor": 0.5, "max_epochs": 6}
    validated(tmp_path, **plateau, **often)  # after batches 3, 6, 9 and 12, of two in each epoch
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rates = {int(row["epoch"]): float(row["learning_rate"]) for row in csv.DictReader(file) if row["learning_rate"]}
    # The first one, in epoch 1, is the lowest so far; those in epochs 2 and 4 are no better.
    assert [rates[epoch] / 1e-3 for epoch in range(6)] == pytest.approx([1, 1, 1, 0.5, 0.5, 0.25])


class Clock:
    """A clock that stands still, and a training whose epochs and evaluations take what they are said to."""

    def __init__(self, monkeypatch, **trainer):
        self.now = 0.0
        monkeypatch.setattr("keypoint_detection.train.evaluation_schedule.time.perf_counter", lambda: self.now)
        self.trainer = trainer_of_100_seconds(**trainer)
        self.schedule = EvaluationSchedule(automatic=True)

    def evaluate(self, seconds):
        self.schedule.on_validation_start(self.trainer, None)
        self.now += seconds
        self.schedule.on_validation_end(self.trainer, None)

    def evaluated(self, epochs, evaluations=lambda number: 0.0):
        """After which epochs it validates, as Lightning asks: seconds of each epoch and of each evaluation."""
        found = []
        self.schedule.on_train_start(self.trainer, None)
        for epoch, seconds in enumerate(epochs):
            self.trainer.current_epoch = epoch
            self.schedule.on_train_epoch_start(self.trainer, None)
            self.now += seconds
            self.schedule.on_train_batch_end(self.trainer, None, None, None, 0)
            if (epoch + 1) % self.trainer.check_val_every_n_epoch == 0:
                self.evaluate(evaluations(len(found)))
                found.append(epoch)
        return found


@pytest.mark.parametrize(("epochs", "evaluated"), [(10_000, [3, 7, 11]), (50, [1, 3, 5, 7, 9, 11])])
def test_a_time_with_a_largest_number_of_epochs_takes_the_shorter_interval(monkeypatch, epochs, evaluated):
    # One second per epoch: 100 epochs in the time, of which every fourth is one of 25.
    assert Clock(monkeypatch, max_epochs=epochs).evaluated([1.0] * 13) == evaluated


def test_epochs_that_take_longer_and_longer_are_evaluated_as_often(monkeypatch):
    lengths = [0.5 + 0.01 * epoch for epoch in range(96)]  # 93.6 s together
    found = Clock(monkeypatch).evaluated(lengths)
    ends = [sum(lengths[: epoch + 1]) for epoch in found]
    gaps = [after - before for before, after in zip([0.0, *ends], ends, strict=False)]
    assert max(abs(gap - 4) for gap in gaps) <= 0.75  # half of the longest epoch


@pytest.mark.parametrize(
    ("ends", "interval"),
    [
        ({"max_epochs": 49}, 1),
        ({"max_epochs": 50}, 2),
        ({"max_epochs": 74}, 2),
        ({"max_epochs": 75}, 3),
        ({"max_steps": 100}, 2),  # two in each epoch
        ({"max_steps": 150, "max_epochs": 200}, 3),
        ({}, 1),
    ],
)
def test_a_training_validates_25_times_or_more_often(ends, interval):
    trainer = trainer_of_100_seconds(
        callbacks=[], num_training_batches=3, accumulate_grad_batches=2, **{"max_epochs": -1, "max_steps": -1} | ends
    )
    EvaluationSchedule(automatic=True).on_train_start(trainer, None)
    assert trainer.check_val_every_n_epoch == interval


@pytest.mark.parametrize(
    ("fewest", "steps", "epochs_done", "batch", "ends"),
    [
        ({}, 5, 0, 3, True),
        ({"min_steps": 10}, 9, 0, 3, False),
        ({"min_steps": 10}, 10, 0, 3, True),
        ({"min_epochs": 3}, 20, 1, 3, False),
        ({"min_epochs": 3}, 20, 2, 3, True),
        ({"min_epochs": 3}, 20, 2, 2, False),  # before the last batch of the third epoch
        ({"min_epochs": 3, "min_steps": 21}, 20, 2, 3, False),
    ],
)
def test_a_training_that_is_to_stop_validates_where_it_may(fewest, steps, epochs_done, batch, ends):
    trainer = trainer_of_100_seconds(
        should_stop=True, check_val_every_n_epoch=7, val_check_batch=4, num_training_batches=4, global_step=steps,
        current_epoch=epochs_done, **{"min_epochs": None, "min_steps": None} | fewest,
    )  # fmt: skip
    EvaluationSchedule(automatic=False).on_train_batch_end(trainer, None, None, None, batch)
    assert trainer.check_val_every_n_epoch == (1 if ends else 7)


def test_a_training_that_goes_on_validates_no_more_often_than_before(monkeypatch):
    timer = Timer(duration={"seconds": 100})
    timer.load_state_dict({"time_elapsed": {"train": 90.0}})
    # 25 times in all of the 100 s, not in the 10 s that are left.
    assert Clock(monkeypatch, callbacks=[timer]).evaluated([1.0] * 9) == [3, 7]


def test_evaluations_that_take_long_are_fewer(monkeypatch):
    clock = Clock(monkeypatch, max_epochs=50, sanity_checking=True)
    clock.evaluate(0.1)  # of a few batches
    clock.trainer.sanity_checking = False
    # 25 evaluations are one in 2 of 50 epochs, but one of 3 s belongs to 30 s of training, and one of 7/8 s to 9 s.
    # The first one is not counted.
    seconds = [8.0, 3.0, 0.875, 2.0]
    assert clock.evaluated([1.0] * 49, lambda number: seconds[number]) == [1, 3, 33, 42]


def test_the_first_evaluation_says_little_of_the_others(monkeypatch):
    found = Clock(monkeypatch).evaluated([1.0] * 20, lambda number: 0.1 if number else 5.0)
    assert found == [3, 7, 11, 15, 19]


@pytest.mark.parametrize(
    ("first", "batches", "images", "evaluated"),
    [
        (0, 100, 8, [20, 40, 60, 80, 100]),  # looked at every ten batches, 2.5 s; due every 4 s
        (0, 90, 8, [20, 40, 60, 80, 90]),  # after 80 batches the end is 2.5 s away, more than half of 4 s
        (0, 24, 8, [24]),  # after 20 batches it is due, and a second later after all of them
        (50, 100, 8, [70, 90, 100]),  # what is left after an interruption takes 0.25 s for each batch too
        (0, 100, 48, [40, 60, 80, 100]),  # at first a third of 0.25 s for every 4, 1 s, belongs to 10 s of training
        (0, 100, 4000, [100]),  # a third of 0.25 s for every 4, 83 s, belongs to 833 s of training
    ],
)
def test_long_epochs_are_evaluated_within(monkeypatch, first, batches, images, evaluated):
    now = 1000.0
    monkeypatch.setattr("keypoint_detection.train.evaluation_schedule.time.perf_counter", lambda: now)
    trainer = trainer_of_100_seconds(
        num_training_batches=batches, num_val_batches=[2], val_check_batch=batches,
        val_dataloaders=loader(images // 2, images // 2, 1000),  # of which two are validated on
    )  # fmt: skip
    schedule = EvaluationSchedule(automatic=True)
    schedule.on_train_start(trainer, None)
    schedule.on_train_epoch_start(trainer, None)
    found = []
    for batch in range(first, batches):
        now += 0.25
        schedule.on_train_batch_end(trainer, None, None, None, batch)
        if (batch + 1) % trainer.val_check_batch == 0:  # as Lightning asks
            found.append(batch + 1)
            schedule.on_validation_start(trainer, None)
            now += 0.1
            schedule.on_validation_end(trainer, None)
    assert found == evaluated


def test_an_epoch_that_takes_far_longer_than_the_others_is_evaluated_within(monkeypatch):
    now = 0.0
    monkeypatch.setattr("keypoint_detection.train.evaluation_schedule.time.perf_counter", lambda: now)
    trainer = trainer_of_100_seconds(num_training_batches=30, val_check_batch=30)
    schedule = EvaluationSchedule(automatic=True)
    schedule.on_train_start(trainer, None)
    found = []
    for seconds in (1.0, 30.0):  # of an epoch
        schedule.on_train_epoch_start(trainer, None)
        for batch in range(20 if found else 30):
            now += seconds / 30
            schedule.on_train_batch_end(trainer, None, None, None, batch)
        found.append((trainer.val_check_batch, trainer.check_val_every_n_epoch))
    assert found == [(30, NOT_YET), (20, 1)]


def test_the_rest_of_an_interrupted_epoch_is_not_taken_for_a_short_one(monkeypatch):
    clock = Clock(monkeypatch, num_training_batches=10)
    clock.schedule.on_train_start(clock.trainer, None)  # an epoch that goes on does not start again
    clock.now += 3.6  # of an epoch of 18 s, of which the middle of the next one is 12.6 s away
    for batch in (8, 9):
        clock.schedule.on_train_batch_end(clock.trainer, None, None, None, batch)
    assert clock.trainer.check_val_every_n_epoch == 1


def test_an_evaluation_within_an_epoch_is_one_like_others(tmp_path, monkeypatch):
    module = "keypoint_detection.train.evaluation_schedule."
    for name, value in (("BATCHES_BETWEEN_LOOKS", 1), ("EVALUATIONS_PER_RUN", 1e9), ("LARGEST_SHARE", 1e9)):
        monkeypatch.setattr(module + name, value)
    timed = {"max_epochs": 2, "max_time": "00:01:00:00", "batch_size": 1, "ap_epoch_freq": "auto"}
    assert validated(tmp_path, **timed) == ([0, 0, 0, 1, 1, 1], [])
    curves = read_curves(tmp_path / "metrics.csv", 3)
    assert curves["validation/meanAP"][0] == pytest.approx([-2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1])
    assert curves["train/loss"][0] == [0, 1]


@pytest.mark.parametrize(("stops", "epoch", "last"), [(True, 1, False), (True, 2, True), (False, 2, False)])
def test_the_last_epoch_is_that_in_which_a_training_stops_and_may(stops, epoch, last):
    trainer = trainer_of_100_seconds(should_stop=stops, current_epoch=epoch, min_epochs=3, min_steps=None)
    assert is_last_epoch(trainer) is last


@pytest.mark.parametrize(
    ("every", "batches", "batch", "expected"),
    [
        (3, 3, 8, 3),
        (None, None, 8, 2),  # an interval in time; it is the third epoch, and the first one was validated
        (1, None, 8, 2),
        (1, None, 2, 1),
        (None, 5, 9, 2),  # after batch 10 in the fourth epoch of three; before that after batch 5 in the second one
        (None, 1, 4, 1),  # after each batch, so also before in this epoch
    ],
)
def test_the_epochs_since_a_validation_are_at_least_one(every, batches, batch, expected):
    loop = SimpleNamespace(total_batch_idx=batch)
    trainer = trainer_of_100_seconds(
        check_val_every_n_epoch=every, val_check_batch=batches, num_training_batches=3, current_epoch=batch // 3,
        fit_loop=loop,
    )  # fmt: skip
    assert epochs_since_validation(trainer, latest=0) == expected


def test_an_interval_longer_than_an_epoch_is_refused(tmp_path):
    with pytest.raises(InputError, match="--val_check_interval 3: expected at most 2, the number of batches in"):
        validated(tmp_path, val_check_interval=3)


def test_processes_agree_on_when_to_validate_whatever_their_clocks_say(monkeypatch):
    told = []

    def broadcast(value):
        told.append(value)
        return told[0]

    found = [
        Clock(monkeypatch, strategy=SimpleNamespace(broadcast=broadcast)).evaluated([seconds])
        for seconds in (1.0, 3.9)  # of an epoch, in the first process and in the second one
    ]
    assert found == [[], []]
    assert told == [False, True], "the second process would have validated alone"


def test_epochs_that_are_longer_than_the_interval_are_all_evaluated(monkeypatch):
    assert Clock(monkeypatch).evaluated([7.0, 5.0, 9.0]) == [0, 1, 2]
