"""Trains the waiting runs of a sweep, one after another, until none is left."""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from tqdm import tqdm

from keypoint_detection.errors import InputError
from keypoint_detection.sweep import study as memory
from keypoint_detection.sweep.results import ranked, run_name, short
from keypoint_detection.sweep.sweep_file import SweepFile
from keypoint_detection.sweep.training import RunError, column_names, run_training
from keypoint_detection.wording import did_you_mean

logger = logging.getLogger(__name__)

# If this many runs failed since the command started, and none is complete, pruned or running, the sweep is at fault.
FAILURES_TO_STOP = 3


class Worker:
    """One of the processes that work on a sweep.

    Args:
        sweep: The sweep.
        folder: Its folder.
        study: Its study.
        seed: Seed of the parameters.
        bar: Shows how many runs have ended; its total is the number of runs.
    """

    def __init__(self, sweep: SweepFile, folder: Path, study: optuna.Study, seed: int, bar: tqdm) -> None:
        self.sweep = sweep
        self.folder = folder
        self.study = study
        self.seed = seed
        self.bar = bar
        self._failed_before = 0

    def work(self) -> None:
        """Works until no run is left, and then waits a while, in case the process of a running one is gone.

        Raises:
            InputError: If the sweep itself is at fault, rather than one of its runs.
            KeyboardInterrupt: If the user stops it; the current run is put back into the queue.
        """
        # Earlier failures do not count, since their cause may have been fixed.
        self._failed_before = sum(run.state == "failed" for run in memory.list_runs(self.study)[: self.bar.total])
        idle_since = time.monotonic()
        while True:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                optuna.storages.fail_stale_trials(self.study)  # puts them back into the queue
            states = self._progress()
            if "waiting" in states:
                self.study.optimize(self._objective, n_trials=1, catch=(RunError,))
                idle_since = time.monotonic()
            elif "running" not in states:
                return
            elif time.monotonic() - idle_since > memory.GRACE_SECONDS + 2 * memory.HEARTBEAT_SECONDS:
                logger.info("%d runs continue in other processes", states.count("running"))
                return
            else:
                time.sleep(0.5)

    def _progress(self) -> list[str]:
        """Updates the bar, and returns the states of all runs.

        Raises:
            InputError: If too many runs have failed, and none has succeeded or is still running.
        """
        found = memory.list_runs(self.study)[: self.bar.total]
        states = [run.state for run in found]
        best = next((run.value for run in ranked(found, self.sweep.maximize) if run.state == "complete"), None)
        self.bar.set_postfix_str("" if best is None else f"best {best:.4g}", refresh=False)
        self.bar.update(sum(state in ("complete", "pruned", "failed") for state in states) - self.bar.n)
        failed = states.count("failed")
        if failed - self._failed_before >= FAILURES_TO_STOP and not {"complete", "pruned", "running"} & set(states):
            reason = [run.problem for run in found if run.problem][-1]
            raise InputError(f"{self.sweep.path}: the first {failed} runs all failed: {reason}")
        return states

    def _objective(self, trial: optuna.Trial) -> float:
        """Trains and logs the result."""
        frozen = self._frozen(trial)
        if memory.is_repeated(self.study, frozen):
            raise RunError("two processes that started at the same time added the run twice")
        number = frozen.user_attrs["run"]
        if number >= self.bar.total:  # added by a command with a larger count
            memory.put_back(self.study, frozen)
            raise RunError("the run is beyond the count of this command")
        try:
            value = self._train(trial, number)
        except (RunError, InputError) as error:
            trial.set_user_attr("problem", str(error))
            logger.warning("run %d failed: %s", number, error)
            raise
        except optuna.TrialPruned:
            logger.info("run %d: stopped early, because others were better at this point", number)
            raise
        except KeyboardInterrupt:
            memory.put_back(self.study, self._frozen(trial))
            logger.info("run %d: interrupted; the same command resumes it", number)
            raise
        logger.info("run %d: %s %.4g", number, self.sweep.metric, value)
        return value

    def _frozen(self, trial: optuna.Trial) -> FrozenTrial:
        """A trial as it is in the study right now."""
        return self.study.get_trials(deepcopy=False)[trial.number]

    def _train(self, trial: optuna.Trial, number: int) -> float:
        """Trains with the parameters of a run.

        Returns:
            The best value of the metric.

        Raises:
            RunError: If the run fails, or the metric was never finite.
            InputError: If training turns out not to log the metric.
            TrialPruned: If the run was stopped because it was hopeless.
        """
        parameters = self._parameters(trial, number)
        shown = [f"{p.name} {short(parameters[p.name])}" for p in self.sweep.parameters if p.varies]
        logger.info("run %d: %s", number, ", ".join(shown))
        run_dir = self.folder.absolute() / run_name(number)

        def report(evaluation: int, value: float) -> None:
            if math.isfinite(value):
                trial.report(value, evaluation)

        command = self.sweep.command(self._flags(parameters, run_dir))
        outcome = run_training(
            command, self.sweep.folder, run_dir, self.sweep.metric, report, is_hopeless=trial.should_prune
        )
        if outcome.stopped:
            raise optuna.TrialPruned
        values = [value for value in outcome.values if math.isfinite(value)]
        if not values:
            logged = column_names(run_dir / "metrics.csv")
            if self.sweep.metric in logged:
                raise RunError(f"{self.sweep.metric} was never finite")
            hint = did_you_mean(self.sweep.metric, logged)
            raise InputError(f"{self.sweep.path}: metric.name {self.sweep.metric!r}: the run did not log it{hint}")
        return max(values) if self.sweep.maximize else min(values)

    def _parameters(self, trial: optuna.Trial, number: int) -> dict[str, Any]:
        """The parameters of a run: those of an earlier attempt, or newly drawn ones."""
        if "parameters" in trial.user_attrs:
            return json.loads(trial.user_attrs["parameters"])
        if self.sweep.points:
            parameters = self.sweep.points[number]
        else:
            self.study.sampler = memory.create_sampler(self.sweep.method, self.seed, number)
            parameters = {parameter.name: parameter.draw(trial) for parameter in self.sweep.parameters}
        trial.set_user_attr("parameters", json.dumps(parameters))
        return parameters

    def _flags(self, parameters: dict[str, Any], run_dir: Path) -> dict[str, Any]:
        """The flags of a run: its parameters, its folder, where wandb puts it, and no progress bar in its log."""
        content = self.sweep.content
        places = {f"wandb_{key}": content[key] for key in ("project", "entity") if key in content}
        return {"enable_progress_bar": False, **places, **parameters, "run_dir": str(run_dir), "resume": "auto"}
