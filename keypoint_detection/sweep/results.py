"""The results of a sweep: a table, and a picture with an axis for each parameter."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keypoint_detection.files import write_atomic
from keypoint_detection.sweep.picture import draw_parallel_coordinates
from keypoint_detection.sweep.sweep_file import SweepFile, flag_text
from keypoint_detection.wording import cells, padded


@dataclass(frozen=True)
class Run:
    """The current state of one run of a sweep.

    Attributes:
        number: Its number, from 0.
        state: waiting, running, complete, pruned or failed.
        value: The best value of the metric so far, None if there is none.
        parameters: Values by parameter; empty before they are drawn.
        evaluations: How often the metric was computed.
        seconds: Duration of its latest attempt, None before that has ended.
        problem: Why it failed, or an empty text.
    """

    number: int
    state: str
    value: float | None
    parameters: dict[str, Any]
    evaluations: int
    seconds: float | None
    problem: str

    @property
    def name(self) -> str:
        """Name of its folder."""
        return run_name(self.number)


def run_name(number: int) -> str:
    """Name of the folder of a run."""
    return f"run-{number:04d}"


def ranked(runs: Sequence[Run], maximize: bool) -> list[Run]:
    """Sorts runs by state (complete, pruned, then all others) and, within a state, by value, the best first."""
    states = {"complete": 0, "pruned": 1}

    def key(run: Run) -> tuple[int, float, int]:
        value = 0.0 if run.value is None else run.value
        return states.get(run.state, 2), -value if maximize else value, run.number

    return sorted(runs, key=key)


def table(runs: Sequence[Run], sweep: SweepFile) -> str:
    """The runs as a text table, in the given order, with the parameters that vary."""
    return "\n".join("  ".join(cells).rstrip() for cells in _aligned(_rows(runs, sweep)))


def _rows(runs: Sequence[Run], sweep: SweepFile) -> list[list[str]]:
    names = [parameter.name for parameter in sweep.parameters if parameter.varies]
    rows = [["rank", "run", sweep.metric, "state", "evaluations", "time", *names]]
    for rank, run in enumerate(runs, start=1):
        values = [short(run.parameters[name]) if name in run.parameters else "-" for name in names]
        value = "-" if run.value is None else f"{run.value:.4f}"
        seconds = "-" if run.seconds is None else f"{run.seconds:.0f} s"
        rows.append([str(rank), run.name, value, run.state, str(run.evaluations), seconds, *values])
    return rows


def short(value: Any) -> str:
    """A parameter's value as short text."""
    return f"{value:.4g}" if isinstance(value, float) else flag_text(value)


def _aligned(rows: list[list[str]]) -> list[list[str]]:
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    return [[padded(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]


def write_results(runs: Sequence[Run], sweep: SweepFile, folder: Path) -> None:
    """Writes `runs.csv` and `parallel_coordinates.png`.

    Args:
        runs: All runs, the best first.
        sweep: The sweep.
        folder: Its folder.
    """
    names = [parameter.name for parameter in sweep.parameters]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", sweep.metric, "state", "evaluations", "seconds", "problem", *names])
    for run in runs:
        values = [flag_text(run.parameters[name]) if name in run.parameters else "" for name in names]
        writer.writerow([run.name, run.value, run.state, run.evaluations, run.seconds, run.problem, *values])
    write_atomic(folder / "runs.csv", text.getvalue())
    shown = [run for run in runs if run.value is not None]
    draw_parallel_coordinates(
        folder / "parallel_coordinates.png",
        values=[run.value for run in shown],
        parameters=[run.parameters for run in shown],
        complete=[run.state == "complete" for run in shown],
        axes=[parameter for parameter in sweep.parameters if parameter.varies],
        metric=sweep.metric,
        maximize=sweep.maximize,
    )
