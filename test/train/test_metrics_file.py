import csv

from keypoint_detection.train.metrics_file import MetricsFile


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_columns_begin_with_what_tells_of_the_training(tmp_path):
    metrics = MetricsFile(tmp_path)
    metrics.log_metrics({"train/loss_step": 2.5, "epoch": 0}, step=9)
    metrics.log_metrics({"validation/loss": 1.5, "epoch": 0}, step=19)
    metrics.log_metrics({"best/loss": 0.5, "train/loss": 2.0, "learning_rate": 0.1, "epoch": 1}, step=29)
    metrics.log_metrics({"epoch": 2, "train/loss": 1.0}, step=39)
    assert rows(tmp_path) == [
        ["step", "epoch", "learning_rate", "train/loss", "train/loss_step", "validation/loss", "best/loss"],
        ["9", "0", "", "", "2.5", "", ""],
        ["19", "0", "", "", "", "1.5", ""],
        ["29", "1", "0.1", "2.0", "", "", "0.5"],
        ["39", "2", "", "1.0", "", "", ""],
    ]


def test_rows_after_the_checkpoint_and_one_that_was_cut_off_are_dropped(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n0,9,3.0\n1,19,2.0\n2,20,1.5\n2,29,1.0\n2,3")
    metrics = MetricsFile(tmp_path, first_step=20)  # after which steps 0 to 19 are done
    metrics.log_metrics({"epoch": 1, "train/loss": 1.5}, step=24)
    assert rows(tmp_path) == [
        ["step", "epoch", "train/loss"],
        ["9", "0", "3.0"],
        ["19", "1", "2.0"],
        ["24", "1", "1.5"],
    ]
    MetricsFile(tmp_path).log_metrics({"test/loss": 0.5}, step=0)  # of a training that begins anew
    assert rows(tmp_path) == [["step", "test/loss"], ["0", "0.5"]]
