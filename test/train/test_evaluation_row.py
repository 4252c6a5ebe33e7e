from types import SimpleNamespace

import pytest

from keypoint_detection.train.evaluation_row import EvaluationRow


class Recorder:
    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step):
        self.rows.append((step, dict(metrics)))


@pytest.fixture
def trainer():
    return SimpleNamespace(
        callback_metrics={}, loggers=[Recorder(), Recorder()], global_step=12, current_epoch=3,
        state=SimpleNamespace(fn="fit"),
    )  # fmt: skip


def test_all_values_of_an_evaluation_are_one_row_of_every_logger(trainer):
    row = EvaluationRow()
    row.on_validation_start(trainer, None)
    row.add(trainer, {"validation/loss": 0.5})
    row.add(trainer, {"validation/meanAP": 0.25})
    assert trainer.callback_metrics == {"validation/loss": 0.5, "validation/meanAP": 0.25}
    row.on_validation_end(trainer, None)
    expected = (11, {"validation/loss": 0.5, "validation/meanAP": 0.25, "epoch": 3})
    assert [recorder.rows for recorder in trainer.loggers] == [[expected], [expected]]
    row.on_validation_end(trainer, None)  # of a sanity check, which adds nothing
    assert len(trainer.loggers[0].rows) == 1


@pytest.mark.parametrize("stage", ["validation", "test"])
def test_after_the_training_rows_are_of_the_next_step_and_hold_nothing_from_before(trainer, stage):
    row = EvaluationRow()
    row.add(trainer, {"validation/loss": 0.5})  # of an evaluation that was interrupted
    trainer.state.fn = stage
    getattr(row, f"on_{stage}_start")(trainer, None)
    row.add(trainer, {"best/loss": 0.75})
    getattr(row, f"on_{stage}_end")(trainer, None)
    assert trainer.loggers[0].rows == [(12, {"best/loss": 0.75, "epoch": 3})]


def test_a_validation_without_average_precision_is_not_taken_for_one_with_that_of_the_one_before(trainer):
    row = EvaluationRow()
    row.add(trainer, {"validation/loss": 0.5, "validation/meanAP": 0.25})
    trainer.callback_metrics["train/loss"] = 0.75
    row.on_validation_start(trainer, None)
    row.add(trainer, {"validation/loss": 0.4})
    assert set(trainer.callback_metrics) == {"train/loss", "validation/loss"}
