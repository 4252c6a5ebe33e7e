"""Starts and ends the wandb run of a training run, whatever state login, network and server are in.

The rules: never wait for a prompt, never let a missing server stop a training run that does not require it, keep
everything in the run's folder, and say in one line what happened and how to upload later.
"""

import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import wandb
import yaml
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from keypoint_detection.errors import InputError
from keypoint_detection.train.wandb_connection import (
    WandbMode,
    is_rank_zero,
    login_trouble,
    not_online,
    requested_mode,
    server_trouble,
)
from keypoint_detection.wording import first_line

# The parts of wandb's service that upload, as named in its own log.
UPLOADING_PARTS = ("filestream:", "runupserter:", "runfiles:", "fileTransfer:", "artifact")

_log = logging.getLogger(__name__)


class RunLogger(WandbLogger):
    """Lightning's wandb logger, except that it uploads the checkpoints it is given, not all that Lightning keeps.

    Args:
        log_checkpoints: whether `log_checkpoint_artifact` uploads.
        mode: mode of `wandb.init`.
        run_dir: folder below which wandb keeps its files.
        init_timeout: seconds that `wandb.init` may take.
        finish_timeout: seconds that the end of the run may wait for uploads.
        project: name of the project.
        entity: user or team; None for the login's default.
        name: name of the run; None to let wandb make one up.
        run_id: identifier of the run.
        hyperparameters: configuration of the run.
    """

    def __init__(
        self,
        *,
        log_checkpoints: bool,
        mode: Literal["online", "offline", "disabled"],
        run_dir: Path,
        init_timeout: float,
        finish_timeout: float,
        project: str,
        entity: str | None,
        name: str | None,
        run_id: str,
        hyperparameters: dict[str, Any],
    ) -> None:
        settings = wandb.Settings(init_timeout=init_timeout, finish_timeout=finish_timeout, finish_timeout_raises=True)
        if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:
            settings.x_transaction_log_flush_interval = 2.0  # otherwise a killed job loses up to 15 s of its rows
        if mode == "offline":  # the one line that is logged below says it all
            settings.silent = True
        super().__init__(
            name=name,
            save_dir=run_dir,
            project=project,
            id=run_id,
            log_model=False,
            mode=mode,
            entity=entity,
            config=hyperparameters,
            settings=settings,
        )
        # Lightning always passes this on, and wandb warns that it no longer has an effect.
        self._wandb_init.pop("anonymous", None)
        if mode == "offline":
            self._wandb_init.pop("resume", None)  # likewise: `wandb sync` goes by the run's id
        if os.environ.get("WANDB_SWEEP_ID"):
            # The sweep sets these, and wandb warns about each one that is given.
            self._wandb_init.update(project=None, entity=None, id=None)
        self.log_checkpoints = log_checkpoints
        self.checkpoints_left: list[Path] = []
        self.lost = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values, and pictures too, since Lightning's `log_image` calls this.

        Args:
            metrics: what to log, by key.
            step: number of the optimiser step.
        """
        if self.lost:
            return
        try:
            super().log_metrics(metrics, step)
        except OSError as error:
            self.lose(error)

    def lose(self, error: OSError) -> None:
        """Continue without wandb's own process, which has been killed, perhaps for lack of memory; warn once.

        Args:
            error: the error that revealed it.
        """
        if not self.lost:
            self.lost = True
            _log.warning("wandb's process has ended (%s): training continues without it", first_line(error))


def create_wandb_logger(
    run_dir: Path | str,
    hyperparameters: Mapping[str, Any],
    wandb_project: str = "keypoint-detection",
    wandb_entity: str | None = None,
    wandb_name: str | None = None,
    wandb_mode: WandbMode = "auto",
    wandb_log_model: bool = True,
    wandb_init_timeout: float = 15.0,
    wandb_finish_timeout: float = 300.0,
    resume_id: str | None = None,
) -> RunLogger | None:
    """Start the wandb run, online if possible.

    Under `wandb agent`, the sweep chooses the project and the run's id.

    Args:
        run_dir: folder of the run; wandb keeps its files in its subfolder `wandb`.
        hyperparameters: values to log as the configuration of the run.
        wandb_project: The wandb project.
        wandb_entity: Wandb user or team; by default that of the login.
        wandb_name: Name of the run in wandb; by default, wandb makes one up.
        wandb_mode: How to log to wandb, online, offline or disabled. `auto` follows WANDB_MODE; without it, it logs
            online if there is a login and the server answers, otherwise offline. `online` fails if that is not
            possible. `offline` writes files for `wandb sync`. `disabled` turns wandb off.
        wandb_log_model: upload the best checkpoint as an artifact.
        wandb_init_timeout: Seconds to wait for the server at the start.
        wandb_finish_timeout: Seconds to wait at the end for unfinished uploads; the rest stays on disk for `wandb
            sync`. 0 waits as long as it takes.
        resume_id: wandb's id of the run to resume; None for a new run.

    Returns:
        The logger with its run started (on rank zero only), or None if wandb is disabled.

    Raises:
        InputError: `online` was requested by `wandb_mode` or WANDB_MODE, and there is no login or no server; or another
            run is open in this process.
    """
    mode = requested_mode(wandb_mode)
    if mode == "disabled":
        return None
    # Otherwise, wandb's own telemetry would log one more line for each failed request.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    folder = Path(run_dir).absolute()
    # The id is chosen here, so that a failed attempt and the offline run after it are the same run.
    run_id = resume_id or secrets.token_hex(4)

    def create(mode: Literal["online", "offline", "disabled"]) -> RunLogger:
        folder.mkdir(parents=True, exist_ok=True)  # without it, wandb would write to the working directory
        return RunLogger(
            log_checkpoints=wandb_log_model,
            mode=mode,
            run_dir=folder,
            init_timeout=wandb_init_timeout,
            finish_timeout=wandb_finish_timeout,
            project=wandb_project,
            entity=wandb_entity,
            name=wandb_name,
            run_id=run_id,
            hyperparameters=dict(hyperparameters),
        )

    def start(mode: Literal["online", "offline"]) -> RunLogger:
        logger = create(mode)
        _ = logger.experiment  # this is what calls `wandb.init`
        return logger

    if not is_rank_zero():
        return create("disabled")
    # A service inherited from the program that started this one would still hold the run of a killed training process.
    # So each process starts its own, as under wandb's agent.
    os.environ.pop(wandb.env.SERVICE, None)
    if wandb.run is not None:
        raise InputError(f"the wandb run {wandb.run.id} is already open, expected none; `wandb.finish()` ends it")
    if mode == "offline":
        return _report(start("offline"), logging.INFO, "wandb logs offline, as requested")
    trouble = login_trouble()
    if trouble is None and mode == "auto":
        trouble = server_trouble(wandb_init_timeout)
    if trouble is None:
        before = set(folder.glob("wandb/run-*"))
        try:
            return start("online")
        except wandb.Error as error:
            trouble = f"{wandb.setup().settings.base_url} did not start the run ({first_line(error)})"
        # Only a new wandb service accepts the same run id again. What the attempt has left behind is empty.
        wandb.teardown()
        for leftover in set(folder.glob("wandb/run-*")) - before:
            shutil.rmtree(leftover, ignore_errors=True)
    if mode == "online":
        raise not_online(trouble)
    return _report(start("offline"), logging.WARNING, f"wandb logs offline: {trouble}")


def finish_wandb(logger: RunLogger | None, exit_code: int = 0) -> None:
    """End the run, waiting for its uploads at most as long as configured; its local file is complete after this.

    It ends wandb's session in this process: other open runs end as well.

    Args:
        logger: what `create_wandb_logger` returned.
        exit_code: 0 for success; anything else marks the run as failed.
    """
    if logger is None or not is_rank_zero():
        return
    run = logger.experiment
    settings = run.settings
    try:
        run.finish(exit_code=exit_code)
        failed = settings.mode == "online" and _uploads_failed(Path(settings.log_internal))
    except TimeoutError:
        failed = True
    except OSError as error:
        logger.lose(error)
        failed = False
        wandb.run = None  # otherwise this process could not start another run
    with suppress(OSError):
        # `finish` may return before wandb's process has written the last records to the run's file.
        wandb.teardown(exit_code)
    if failed or (logger.checkpoints_left and not logger.lost):
        left = "".join(f" (except {path}, which stays here)" for path in logger.checkpoints_left)
        hint = f"wandb sync --include-online {settings.sync_dir}"
        _log.warning("wandb could not upload the whole run. To upload it later%s: %s", left, hint)


def log_checkpoint_artifact(logger: RunLogger, path: Path | str) -> None:
    """Log a checkpoint as `model.ckpt` in the artifact `model-<run id>`, the names that Lightning uses too.

    `wandb sync` uploads it with an offline run, but not with an online run that has lost its server: wandb does not
    record the artifacts of online runs in their files.

    Args:
        logger: what `create_wandb_logger` returned.
        path: the best checkpoint. It is not copied, and must not change until it is uploaded.
    """
    if not logger.log_checkpoints or logger.lost or not is_rank_zero():
        return
    run = logger.experiment
    artifact = wandb.Artifact(f"model-{run.id}", type="model")
    # Offline, wandb records the path as given, but `wandb sync` may run in another folder.
    artifact.add_file(str(Path(path).absolute()), name="model.ckpt", policy="immutable", skip_cache=True)
    try:
        run.log_artifact(artifact, aliases=["best", "latest"])
    except ConnectionError as error:
        logger.lose(error)
    except (wandb.Error, OSError):  # it contacts the server at once; `finish_wandb` says what is left to upload
        logger.checkpoints_left.append(Path(path))


def sweep_overrides() -> dict[str, Any]:
    """Parameters that `wandb agent` has chosen for this run, by name; empty outside a sweep.

    Raises:
        InputError: the file that holds them cannot be read.
    """
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not path or not os.environ.get("WANDB_SWEEP_ID"):
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return {name: entry["value"] for name, entry in content.items() if name != "wandb_version"}
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        message = f"{path}: expected the sweep's parameters as `name: {{value: ...}}` ({first_line(error)})"
        raise InputError(message) from error


def _uploads_failed(log: Path) -> bool:
    """Whether wandb's own log shows an upload that it gave up on, which it does not always report."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any('"level":"ERROR"' in line and any(part in line for part in UPLOADING_PARTS) for line in lines)


def _report(logger: RunLogger, level: int, what: str) -> RunLogger:
    _log.log(level, "%s. To upload the run later: wandb sync %s", what, logger.experiment.settings.sync_dir)
    return logger
