"""`keypoint-detection sweep`: runs a wandb sweep file locally, without an account."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from keypoint_detection.errors import InputError
from keypoint_detection.files import make_folder
from keypoint_detection.flags import call, parser_for
from keypoint_detection.sweep.flag_check import check_flags
from keypoint_detection.sweep.results import Run, ranked, table, write_results
from keypoint_detection.sweep.sweep_file import SweepFile, read_sweep_file

COMMAND = "keypoint-detection sweep"
# Maximum number of failed runs whose problems are printed; runs.csv has those of all.
SHOWN_PROBLEMS = 10


def sweep(
    sweep_file: str,
    count: int | None = None,
    sweep_dir: str | None = None,
    storage: str | None = None,
    prune: bool = True,
    prune_after: int = 5,
    seed: int = 0,
    retry_failed: bool = False,
) -> tuple[list[Run], SweepFile, Path]:
    """Run a wandb sweep file here, without an account; the same command resumes it where it stopped.

    Args:
        sweep_file: The YAML file that `wandb sweep` takes.
        count: Total number of runs, including earlier ones and those of other processes; it overrides the file's
            run_cap. By default the run_cap, or the whole grid.
        sweep_dir: Folder of the sweep, with one folder for each run; by default sweeps/<name of the sweep>.
        storage: URL of the database that the processes of a sweep share, such as postgresql://user@host/name; by
            default an SQLite file in the sweep's folder, for processes on one machine.
        prune: Stop runs that are worse than the median of the others at the same evaluation, or as the file's
            early_terminate says.
        prune_after: Number of evaluations that every run gets before it may be stopped.
        seed: Seed for drawing parameters. A run draws the same ones in any process.
        retry_failed: Start failed runs again, with their parameters.

    Returns:
        All runs, the best first; the contents of the sweep file; and the folder of the sweep.

    Raises:
        InputError: If the file, a parameter in it or the database is not usable.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError('a sweep needs the extra sweep: pip install "keypoint_detection[sweep]"')
    from keypoint_detection.sweep.study import add_runs, create_pruner, list_runs, open_study, put_back_failed
    from keypoint_detection.sweep.worker import Worker

    asked = read_sweep_file(sweep_file)
    runs = asked.runs(count)
    pruner = create_pruner(asked, prune, prune_after)
    check_flags(asked)
    folder = Path(sweep_dir or Path("sweeps") / asked.name)
    make_folder(folder, f"--sweep_dir {folder}")
    study = open_study(asked, folder, storage, pruner)
    add_runs(study, runs)
    if retry_failed:
        put_back_failed(study)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: schedulers send SIGTERM
    try:
        with logging_redirect_tqdm(), tqdm(total=runs, unit="run", desc=asked.name, disable=None) as bar:
            Worker(asked, folder, study, seed, bar).work()
    finally:
        signal.signal(signal.SIGTERM, before)
        found = ranked(list_runs(study), asked.maximize)
        write_results(found, asked, folder)
    return found, asked, folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `keypoint-detection sweep`.

    Args:
        arguments: The flags; by default those of the process.

    Returns:
        The exit code: 1 if a run failed.
    """
    parser = parser_for(sweep, COMMAND, positional=("sweep_file",))
    config = parser.parse_args(arguments).as_dict()
    runs, asked, folder = call(sweep, config)
    failed = [run for run in runs if run.state == "failed"]
    sys.stdout.write(f"\n{table(runs, asked)}\n\n")
    if runs and runs[0].value is not None:
        best = folder / runs[0].name
        elsewhere = "" if best.exists() else " (on the machine that trained it)"
        sys.stdout.write(f"best run:   {best}{elsewhere}\n")
    sys.stdout.write(f"  look at   {folder / 'parallel_coordinates.png'}, {folder / 'runs.csv'}\n")
    if failed:
        sys.stdout.write(
            f"{len(failed)} of {len(runs)} runs failed; see their output.log, or try them again with --retry_failed\n"
        )
        sys.stdout.writelines(f"  {run.name}  {run.problem}\n" for run in failed[:SHOWN_PROBLEMS] if run.problem)
    return 1 if failed else 0
