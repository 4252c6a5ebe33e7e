import io
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from configuration import DEFAULT_HYPERPARAMETERS

from keypoint_detection.train import progress_lines
from keypoint_detection.train.progress_lines import ProgressLines, shows_bars
from keypoint_detection.train.train import fit


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_bars(monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert shows_bars()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not shows_bars()
    monkeypatch.setitem(sys.modules, "ipykernel", None)  # a notebook
    assert shows_bars()


def test_a_log_file_gets_a_line_per_validation(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(progress_lines, "_AFTER_VALIDATION", 0.0)
    arguments = {**DEFAULT_HYPERPARAMETERS, "max_epochs": 2, "enable_progress_bar": True, "run_dir": str(tmp_path)}
    fit(**arguments)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if re.match(r"\d+ s: ", line)]
    assert [line.split(", ")[0].split(": ")[1] for line in lines] == ["epoch 0/1", "epoch 1/1"]
    assert all(re.search(r"validation loss \S+, meanAP \S+$", line) for line in lines)
    assert "it/s" not in printed


def test_a_terminal_gets_these_lines_too_above_its_bar(monkeypatch, tmp_path):
    terminal = Terminal()
    monkeypatch.setattr(progress_lines, "_AFTER_VALIDATION", 0.0)
    monkeypatch.setattr(progress_lines, "_WITHIN_EPOCHS", 0.0)  # of which the bar tells
    monkeypatch.setattr(sys, "stdout", terminal)
    fit(**DEFAULT_HYPERPARAMETERS | {"max_epochs": 2}, run_dir=str(tmp_path))
    printed = terminal.getvalue().replace("\x1b[A", "\n")  # the bar moves up, to where the line goes
    assert "it/s" in printed
    line = r"^\d+ s: epoch (\d)/1, validation loss \S+, meanAP \S+$"
    assert re.findall(line, printed.replace("\r", "\n"), re.MULTILINE) == ["0", "1"]
    assert ", loss" not in printed


@pytest.mark.parametrize("terminal", [False, True])
def test_without_a_progress_bar_there_are_no_lines(monkeypatch, tmp_path, terminal):
    output = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(progress_lines, "_AFTER_VALIDATION", 0.0)
    monkeypatch.setattr(sys, "stdout", output)
    fit(**DEFAULT_HYPERPARAMETERS | {"enable_progress_bar": False}, run_dir=str(tmp_path))
    assert "validation loss" not in output.getvalue()


@pytest.mark.parametrize(("seconds", "expected"), [(59.0, ""), (61.0, "61 s: epoch 2, step 5 of 100, loss 0.25\n")])
def test_a_long_epoch_says_once_a_minute_where_it_is(monkeypatch, capsys, seconds, expected):
    class Trainer:
        current_epoch, max_epochs, num_training_batches, is_global_zero = 2, -1, 100, True
        accumulate_grad_batches = 2  # by which Lightning divides a batch's loss
        progress_bar_callback = None

    clock = [0.0]
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: clock[0])
    lines = ProgressLines()
    clock[0] = seconds
    for batch_idx in (4, 5):
        lines.on_train_batch_end(Trainer(), None, {"loss": torch.tensor(0.125)}, None, batch_idx)
    assert capsys.readouterr().out == expected


def test_a_validation_is_told_by_the_first_process_where_no_line_was_for_five_seconds(monkeypatch, capsys):
    clock = [1000.0]
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: clock[0])
    lines = ProgressLines()
    clock[0] = start = 1100.0
    lines.on_train_start(None, None)
    values = {
        "current_epoch": 2, "max_epochs": 9, "is_global_zero": True, "progress_bar_callback": None, "global_step": 7,
        "state": SimpleNamespace(fn="fit"), "sanity_checking": False,
        "callback_metrics": {"validation/loss": torch.tensor(0.25)},
    }  # fmt: skip
    others = [{"sanity_checking": True}, {"global_step": 0}, {"state": SimpleNamespace(fn="validate")}]
    for seconds, changes in [(4, {}), *((5, other) for other in others), (6, {}), (10, {}), (12, {})]:
        clock[0] = start + seconds
        lines.on_validation_end(SimpleNamespace(**values | changes), None)
    clock[0] = start + 20
    lines.on_validation_end(SimpleNamespace(**values | {"is_global_zero": False}), None)
    assert capsys.readouterr().out.splitlines() == [
        "6 s: epoch 2/8, validation loss 0.25", "12 s: epoch 2/8, validation loss 0.25"
    ]  # fmt: skip
