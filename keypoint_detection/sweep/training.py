"""One run of a sweep: a process that trains, monitored through the metrics that it writes."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from keypoint_detection.parent import end_with_parent
from keypoint_detection.wording import did_you_mean

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.25
# How long a training process may take to end after it was told to, for example to write its last checkpoint.
SECONDS_TO_END = 30.0
# Logged by every evaluation of this library that computes metrics; other validations may log only losses.
MEAN_AP = "validation/meanAP"


class RunError(Exception):
    """A run ended without a value. The message says why, in one line."""


class Outcome(NamedTuple):
    """How a training process ended.

    Attributes:
        values: The metric at each evaluation.
        stopped: Whether it was stopped early because it was hopeless.
    """

    values: list[float]
    stopped: bool


def run_training(
    command: Sequence[str],
    folder: Path,
    run_dir: Path,
    metric: str,
    report: Callable[[int, float], None],
    is_hopeless: Callable[[], bool],
) -> Outcome:
    """Starts training in a process and waits until it ends, or stops it if it is hopeless.

    Meanwhile, logs a warning if it does not seem to log the metric.

    Args:
        command: Program and arguments.
        folder: Folder in which the process starts.
        run_dir: Folder of the run: its output goes to `output.log` there, and it writes its `metrics.csv` there.
        metric: Name of the metric in that file.
        report: Called with the number (from 0) and the value of each evaluation.
        is_hopeless: Called after evaluations; says whether to stop training.

    Returns:
        The values of the metric, and whether it was stopped.

    Raises:
        RunError: If the process cannot be started, or ends with an error.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    log, metrics = run_dir / "output.log", run_dir / "metrics.csv"
    seen, is_told = 0, False
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )  # fmt: skip
        except OSError as error:
            raise RunError(f"{command[0]} cannot be started: {error.strerror or error}") from error
    try:
        while True:
            ended = process.poll() is not None
            rows = read_rows(metrics)
            values = [float(row[metric]) for row in rows if row.get(metric)]
            for number in range(seen, len(values)):
                report(number, values[number])
            is_new, seen = len(values) > seen, max(seen, len(values))
            if ended:
                break
            if not is_told and seems_not_logged(rows, metric):
                is_told = True
                logger.warning(
                    "%s: the first evaluations did not log %s%s; the run fails unless it is logged before the end",
                    run_dir.name, metric, did_you_mean(metric, rows[0]),
                )  # fmt: skip
            if is_new and is_hopeless():
                end(process)
                return Outcome(values, stopped=True)
            time.sleep(SECONDS_BETWEEN_LOOKS)
    except BaseException:
        end(process)
        raise
    if process.returncode != 0:
        raise RunError(f"{last_line(log).removeprefix('error: ')} (exit code {process.returncode}, {log})")
    return Outcome(values, stopped=False)


def end(process: subprocess.Popen[bytes]) -> None:
    """Tells a training process and its children to end, and kills them if they take too long."""
    try:
        with contextlib.suppress(ProcessLookupError):  # e.g. it has already ended
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
    finally:  # even if Ctrl-C interrupts the wait
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads a `metrics.csv`, which may be being written at the same time.

    Args:
        path: The file.

    Returns:
        Its complete rows, with empty text for missing values; no rows if there is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines(), restkey=""))


def seems_not_logged(rows: Sequence[Mapping[str, str]], metric: str) -> bool:
    """Whether at least two evaluations have been logged, but not this validation metric.

    False for all other metrics, as they may be logged at any time.

    Args:
        rows: The rows that have been logged so far.
        metric: Name of the metric.
    """
    evaluations = sum(bool(row.get(MEAN_AP)) for row in rows)
    return metric.startswith("validation/") and evaluations > 1 and not any(row.get(metric) for row in rows)


def column_names(path: Path) -> list[str]:
    """The column names of a `metrics.csv`; none if there is no such file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return next(csv.reader(file), [])
    except FileNotFoundError:
        return []


def last_line(path: Path) -> str:
    """The last line of a log that is not empty."""
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
