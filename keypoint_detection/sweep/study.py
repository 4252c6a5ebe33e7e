"""The state of a sweep: an Optuna study that several processes share, with one trial for each attempt at a run.

All runs of a sweep are added to the study when the sweep starts, and processes take the next one that is waiting. A run
that was interrupted, by a user or because its process died, is put back and resumes in its folder; a failed one is only
put back on request.
"""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from keypoint_detection.errors import InputError
from keypoint_detection.sweep.results import Run
from keypoint_detection.sweep.sweep_file import SweepFile

# A process reports this often that its run is alive; after this long without a report, the process counts as gone.
HEARTBEAT_SECONDS = 5
GRACE_SECONDS = 30
# Number of runs that must be complete before others are compared with their median.
RUNS_BEFORE_PRUNING = 5


def open_study(sweep: SweepFile, folder: Path, storage: str | None, pruner: BasePruner) -> optuna.Study:
    """Opens the study of a sweep, or creates it.

    Args:
        sweep: The sweep.
        folder: Folder of the sweep.
        storage: URL of a database, None for an SQLite file in the folder.
        pruner: What stops hopeless runs.

    Returns:
        The study.

    Raises:
        InputError: If the database cannot be opened or holds a different sweep of this name, or if the folder holds
            runs of another sweep, which runs of this one would resume.
    """
    has_runs = any(folder.glob("run-*"))  # looked up before the study, which another process may be creating right now
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = storage or f"sqlite:///{folder.absolute() / 'study.db'}"
    direction = "maximize" if sweep.maximize else "minimize"
    try:
        database = _open_database(url)
        study = optuna.create_study(
            storage=database, study_name=sweep.name, direction=direction, pruner=pruner, load_if_exists=True
        )
    except (SQLAlchemyError, StorageInternalError, ImportError, OSError) as error:
        name = "--storage" if storage else "the sweep's database"
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"{name} {hide_password(url)}: cannot be opened: {reason}") from error
    begun = study.user_attrs.get("sweep")
    if begun is None and has_runs:
        optuna.delete_study(study_name=sweep.name, storage=database)
        raise InputError(f"--sweep_dir {folder}: holds runs of another sweep, expected one for {sweep.path} alone")
    if begun is None:
        study.set_user_attr("sweep", sweep.identity)
    elif begun != sweep.identity:
        way_out = "another name and --sweep_dir" if storage else f"another --sweep_dir, or {folder} to be removed"
        raise InputError(
            f"{sweep.path}: the sweep {sweep.name} in {hide_password(url)} was started with a different "
            f"{' and '.join(sweep.differences(begun))}; expected the same as then, or {way_out}"
        )
    return study


def _open_database(url: str, attempts: int = 5) -> RDBStorage:
    """Opens the database, and tries again if another process was creating its tables at the same time."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # about the heartbeat
            storage = RDBStorage(
                url.replace("postgresql://", "postgresql+pg8000://", 1),
                # Processes that share an SQLite file wait for one another.
                engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite:") else {},
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=put_back,
            )
        if url.startswith("sqlite:"):
            _lock_from_the_first_read(storage.engine)
        return storage
    except DBAPIError as error:
        if attempts == 1 or not any(text in str(error) for text in ("already exists", "UNIQUE", "unique")):
            raise
        time.sleep(0.2)
        return _open_database(url, attempts - 1)


def _lock_from_the_first_read(engine: Engine) -> None:
    """Keeps two processes from taking the same waiting run: by default, SQLite transactions only lock when they write.

    With this, they also lock when they read, for the duration of a query.
    """

    def leave_transactions_alone(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", leave_transactions_alone)
    event.listen(engine, "begin", begin)
    engine.dispose()  # connections that were opened before


def hide_password(url: str) -> str:
    """The URL of a database without its password, for messages."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", url)


def create_pruner(sweep: SweepFile, prune: bool, prune_after: int) -> BasePruner:
    """What stops hopeless runs: hyperband if the sweep file asks for it, else the median of the runs so far.

    Args:
        sweep: The sweep.
        prune: Whether to stop any.
        prune_after: Number of evaluations that every run gets before it may be stopped.

    Returns:
        The pruner.

    Raises:
        InputError: If `early_terminate` is not valid in wandb, or a number is out of its range.
    """
    if prune_after < 0:
        raise InputError(f"--prune_after {prune_after}: expected at least 0")
    if not prune:
        return NopPruner()
    early_terminate = sweep.content.get("early_terminate")
    if early_terminate is None:
        return MedianPruner(n_startup_trials=RUNS_BEFORE_PRUNING, n_warmup_steps=prune_after)
    found = f"{sweep.path}: early_terminate is {early_terminate!r}"
    given = early_terminate if isinstance(early_terminate, dict) else {}
    values = {"type": "hyperband", "eta": 3, "s": 2, **given}
    numbers = [values[key] for key in ("eta", "s", "min_iter", "max_iter") if key in values]
    known = {"type", "eta", "s", "min_iter", "max_iter", "strict"}
    is_right = values["type"] == "hyperband" and len(numbers) > 2 and values["eta"] != 1 and values.keys() <= known
    if not is_right or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise InputError(
            f"{found}, expected type hyperband, min_iter or max_iter of at least 1 and, if given, eta of at least 2 "
            "and s of at least 1"
        )
    most = values.get("max_iter", "auto")
    least = values["min_iter"] if "min_iter" in values else max(1, most // values["eta"] ** values["s"])
    if most != "auto" and least > most:  # Optuna would silently stop no run at all
        raise InputError(f"{found}, expected min_iter not above max_iter")
    return HyperbandPruner(min_resource=least, max_resource=most, reduction_factor=values["eta"])


def create_sampler(method: str, seed: int, run: int) -> BaseSampler:
    """What draws the parameters of one run. The run has its own seed, whichever process draws them and when.

    Args:
        method: random or bayes.
        seed: Seed of the sweep.
        run: Number of the run.

    Returns:
        The sampler.
    """
    own = (seed * 1_000_003 + run) % 2**32
    if method == "bayes":
        # Unfinished runs count as bad, so that processes explore different regions.
        return TPESampler(seed=own, constant_liar=True)
    return RandomSampler(seed=own)


def add_runs(study: optuna.Study, count: int) -> None:
    """Adds runs to the study until there are `count`."""
    known = {trial.user_attrs.get("run") for trial in study.get_trials(deepcopy=False)}
    for number in range(count):
        if number not in known:
            study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={"run": number}))


def put_back(study: optuna.Study, trial: FrozenTrial) -> None:
    """Puts an interrupted run back into the queue, with its parameters."""
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={
                **trial.user_attrs,
                "problem": "",
                "first_attempt": _first_attempt(trial),
                "after": trial.number,
            },
        )
    )


def put_back_failed(study: optuna.Study) -> None:
    """Puts failed runs back into the queue, with their parameters."""
    for _, trial in sorted(_latest_attempts(study).items()):
        if trial.state is TrialState.FAIL:
            put_back(study, trial)


def is_repeated(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether a trial does not count, for example because two processes added the same run to the study at once."""
    if "run" not in trial.user_attrs:
        return True
    trials = study.get_trials(deepcopy=False)
    same = [t for t in trials if t.user_attrs.get("run") == trial.user_attrs["run"]]
    return _first_attempt(trial) > min(map(_first_attempt, same)) or trial.number in _put_back_twice(trials)


def _put_back_twice(trials: Sequence[FrozenTrial]) -> set[int]:
    """Numbers of the trials that a second process put back after the same attempt."""
    first: dict[int, int] = {}
    put_back = [(trial.number, trial.user_attrs["after"]) for trial in trials if "after" in trial.user_attrs]
    return {number for number, after in put_back if first.setdefault(after, number) != number}


def _first_attempt(trial: FrozenTrial) -> int:
    """Number of the first trial of the same run."""
    return trial.user_attrs.get("first_attempt", trial.number)


def list_runs(study: optuna.Study) -> list[Run]:
    """The runs of a study in the order of their numbers, each as described by its latest attempt."""
    return [_describe(study, number, trial) for number, trial in sorted(_latest_attempts(study).items())]


def _latest_attempts(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The latest attempt at each run, by the number of the run."""
    latest: dict[int, FrozenTrial] = {}
    trials = study.get_trials(deepcopy=False)
    repeated = _put_back_twice(trials)
    for trial in trials:
        number = trial.user_attrs.get("run")
        if trial.number in repeated:
            continue
        if number is not None and (number not in latest or _first_attempt(trial) <= _first_attempt(latest[number])):
            latest[number] = trial
    return latest


def _describe(study: optuna.Study, number: int, trial: FrozenTrial) -> Run:
    choose = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
    reported = trial.intermediate_values.values()  # without NaN
    return Run(
        number=number,
        state={"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower()),
        value=trial.value if trial.state is TrialState.COMPLETE else choose(reported, default=None),
        parameters=json.loads(trial.user_attrs.get("parameters", "{}")),
        evaluations=len(reported),
        seconds=trial.duration.total_seconds() if trial.duration else None,
        problem=trial.user_attrs.get("problem", ""),
    )
