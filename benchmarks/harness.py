"""Time two ways of doing the same work against each other, and print the ratios as a table.

The two are timed in turn, so that anything else that the machine does slows both down.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch

from keypoint_detection.batch import Batch
from keypoint_detection.errors import InputError
from keypoint_detection.files import prepare_file, write_atomic, writing

if TYPE_CHECKING:  # processes that measure memory import this file, and not Lightning
    from keypoint_detection.models.detector import KeypointDetector

THREADS = 2
# Seconds to wait before each measurement of a whole network: the threads of the one that ran before keep spinning for a
# while and would take the cores. The first call, which does not count, wakes them: up to 10 ms on a virtual machine.
PAUSE = 0.05
# Seconds for which something is called repeatedly to measure its time.
STREAM = 0.02
# Close to what the recipe chooses for images of 400 pixels at their own size.
DETECTOR_VALUES = {"heatmap_sigma": 6.0, "heatmap_stride": 4, "learning_rate": 6e-3}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was measured.
        work: the amount of work.
        milliseconds: time of one call of this library, the median of several means.
        baseline: what it is compared with; empty for none.
        baseline_milliseconds: time of one call of the baseline, likewise.
        target: the ratio to be reached (time of the baseline to ours); None for a row without a target.
        at_most: show the target as a limit: ours takes at most `1 / target` of the baseline's time.
        note: anything else to show, such as memory.
    """

    name: str
    work: str
    milliseconds: float
    baseline: str = ""
    baseline_milliseconds: float | None = None
    target: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times as long the baseline takes; None without a baseline."""
        return None if self.baseline_milliseconds is None else self.baseline_milliseconds / self.milliseconds

    def cells(self) -> list[str]:
        """The cells of the row as text."""
        ratio = shown = ""
        if self.target is not None:
            shown = f"at most {1 / self.target:.2f}x" if self.at_most else f"{self.target:g}x"
        if self.ratio is not None:
            missed = self.target is not None and self.ratio < self.target
            shown += " MISSED" if missed else ""
            value, digits = (1 / self.ratio, 2) if self.at_most else (self.ratio, 1)
            if missed:
                # One digit more than usual, and more if rounding would make it look as if the target was reached.
                limit = round(1 / self.target if self.at_most else self.target, 9)
                digits = next((d for d in range(digits + 1, 9) if round(value, d) != limit), 9)
            ratio = f"{value:.{digits}f}x its time" if self.at_most else f"{value:.{digits}f}x"
        slow = "" if self.baseline_milliseconds is None else f"{self.baseline_milliseconds:.1f}"
        return [self.name, self.work, f"{self.milliseconds:.2f}", self.baseline, slow, ratio, shown, self.note]


HEADER = ["what", "work", "ms", "baseline", "ms", "ratio", "at least", "note"]


def compare(
    row: Row,
    ours: Callable[[], object] | InProcess,
    baseline: Callable[[], object] | InProcess,
    repeats: int = 7,
    pause: float = 0.0,
    once: bool = False,
) -> Row:
    """Time two callables in turn, and fill the medians into the row.

    Args:
        row: The row to fill in.
        ours: This library's way.
        baseline: The other way.
        repeats: How often to measure each.
        pause: Seconds to wait before each measurement.
        once: Measure single calls, whose data and code the other side has driven out of the caches, instead of a stream
            of calls (see `milliseconds`).
    """
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for callable_, kept in zip((ours, baseline), times, strict=True):
            time.sleep(pause)
            kept.append(milliseconds(callable_, once))
    return replace(row, milliseconds=statistics.median(times[0]), baseline_milliseconds=statistics.median(times[1]))


def milliseconds(callable_: Callable[[], object] | InProcess, once: bool = False) -> float:
    """Mean time of calls that take `STREAM` seconds together, after one that does not count; or time of one call."""
    if isinstance(callable_, InProcess):
        return callable_.milliseconds(once)
    if not once:
        callable_()
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < (0 if once else STREAM) or not calls:
        callable_()
        calls += 1
    return 1000 * elapsed / calls


class InProcess:
    """A callable to time in a process of its own, so that settings of one side's process do not affect the other.

    Args:
        make: Makes the callable from the arguments, in that process. It can be pickled, and so can they.
        arguments: Arguments of `make`.
    """

    def __init__(self, make: Callable[..., Callable[[], object]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, self._there = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._there, make, arguments), daemon=True)

    def __enter__(self) -> InProcess:
        self._process.start()
        self._there.close()  # so that the pipe closes when the process ends
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()  # ends the loop in the process
        self._process.join()

    def milliseconds(self, once: bool) -> float:
        """The time, measured in the process.

        Raises:
            RuntimeError: If the process has ended; its error message is above.
        """
        try:
            self._connection.send(once)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError("the process of a benchmark has ended with an error, above") from error

    @property
    def peak_bytes(self) -> int:
        """Peak memory of the process."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _serve(connection: Connection, make: Callable[..., Callable[[], object]], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(THREADS)
    callable_ = make(*arguments)
    with suppress(EOFError):  # raised when the benchmark ends
        while True:
            connection.send(milliseconds(callable_, connection.recv()))


def batch_of(images: int, channels: int, keypoints: int, height: int, width: int) -> Batch:
    """A batch of noise with random keypoints."""
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.rand(images, 3, height, width, generator=generator),
        keypoints=torch.rand(images, channels, keypoints, 2, generator=generator) * torch.tensor([width, height]),
        heatmaps=None,
        sizes=torch.tensor([[height, width]] * images),
        labelled=torch.ones(images, channels, dtype=torch.bool),
        transforms=torch.eye(3, dtype=torch.float64).expand(images, 3, 3),
        indices=torch.arange(images),
    )


def optimizer_of(detector: KeypointDetector) -> torch.optim.Optimizer:
    """The optimiser with which training of the detector starts, at its highest learning rates."""
    detector.trainer = SimpleNamespace(
        callbacks=[], max_epochs=1, max_steps=-1, precision="32-true", gradient_clip_val=1.0
    )
    optimizer = detector.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]  # the schedule starts at 0, which would change no weights
    return optimizer


def wait_for(device: str) -> None:
    """Wait until a GPU has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def machine() -> str:
    """One line with the machine and the versions that were measured."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor(),
    )
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [HEADER, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    lines.insert(1, ["-" * width for width in widths])
    padded = (" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(f"| {line} |" for line in padded)


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--json`, for `prepare_json` and `write_json`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")


def prepare_json(path: Path | None) -> None:
    """Check that the file of `--json`, if given, can be written, before anything runs.

    Raises:
        InputError: If it cannot.
    """
    if path is not None:
        prepare_file(path, f"--json {path}")


def write_json(path: Path | None, content: object) -> None:
    """Write the file of `--json`, if given.

    Raises:
        InputError: If it can no longer be written.
    """
    if path is not None:
        with writing(f"--json {path}"):
            write_atomic(path, json.dumps(content, indent=2) + "\n")


def report(rows: Sequence[Row], json_path: Path | None) -> None:
    """Print the machine and the table, and write them to the file of `--json`, if given."""
    print(f"\n{machine()}\n\n{table(rows)}")
    write_json(json_path, {"machine": machine(), "rows": [{**asdict(row), "ratio": row.ratio} for row in rows]})


def exit_code(script: Callable[[], None]) -> int:
    """Run a script; bad input gives one line on standard error and exit code 2, as in the library's commands."""
    try:
        script()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def main(benchmarks: dict[str, Callable[[], list[Row]]], description: str) -> None:
    """Command line of one or more benchmarks: run them, print one table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"benchmarks to run, by default all: {', '.join(benchmarks)}"
    )
    add_json_flag(parser)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(benchmarks))
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; expected some of {', '.join(benchmarks)}")
    sys.exit(exit_code(lambda: _run(benchmarks, arguments.names or list(benchmarks), arguments.json)))


def _run(benchmarks: dict[str, Callable[[], list[Row]]], names: list[str], json_path: Path | None) -> None:
    prepare_json(json_path)
    torch.set_num_threads(THREADS)
    rows = []
    for name in names:
        print(f"running {name} ...", flush=True)
        rows += benchmarks[name]()
    report(rows, json_path)
