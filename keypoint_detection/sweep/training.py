"""One run of a sweep: a process that trains, watched through the metrics that it writes."""

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
# What a training that is told to end may take for it, such as for its last checkpoint.
SECONDS_TO_END = 30.0
# What every evaluation of this library that computes metrics logs; a validation between them may log losses alone.
MEAN_AP = "validation/meanAP"


class RunError(Exception):
    """A run ended without a value. The text says why, in one line."""


class Outcome(NamedTuple):
    """How a training ended.

    Attributes:
        values: The metric at each evaluation.
        stopped: Whether it was stopped before its end, as hopeless.
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
    """Starts a training and waits for its end, or ends it where it is hopeless.

    That it does not seem to log the metric is said meanwhile.

    Args:
        command: Program and arguments.
        folder: Where it starts.
        run_dir: Folder of the run, which gets its output as `output.log`, and where it writes `metrics.csv`.
        metric: Name of the metric in that file.
        report: Called with the number (from 0) and the value of each evaluation.
        is_hopeless: Asked after evaluations whether to stop the training.

    Returns:
        The values of the metric, and whether it was stopped.

    Raises:
        RunError: If the training ends with an error.
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
                    "%s: the first evaluations do not log %s%s, which the training has to do before its end",
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
    """Tells a training and its processes to end, and kills them if they take too long."""
    try:
        with contextlib.suppress(ProcessLookupError):  # e.g. one that has ended
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
    finally:  # also where Ctrl-C does not wait for it
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads a `metrics.csv`, which may be written to at this moment.

    Args:
        path: The file.

    Returns:
        Its rows, with an empty text for what a row has no value of; none if there is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines(), restkey=""))


def seems_not_logged(rows: Sequence[Mapping[str, str]], metric: str) -> bool:
    """Whether two evaluations have not logged a metric of the validation, which may log it less often than others.

    Nothing is said of other metrics, which may come at any time.

    Args:
        rows: What a training has logged so far.
        metric: Name of the metric.
    """
    evaluations = sum(bool(row.get(MEAN_AP)) for row in rows)
    return metric.startswith("validation/") and evaluations > 1 and not any(row.get(metric) for row in rows)


def column_names(path: Path) -> list[str]:
    """What a `metrics.csv` has values of; nothing if there is no such file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return next(csv.reader(file), [])
    except FileNotFoundError:
        return []


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
