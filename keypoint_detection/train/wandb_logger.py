"""Starts the wandb run of a training, and ends it, whatever state login, network and server are in.

The rules: never wait for a prompt, never let an absent server stop a training that did not insist on it, keep
everything in the run's folder, and say in one line what happened and how to upload later.
"""

import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
import yaml
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from keypoint_detection.errors import InputError

WandbMode = Literal["auto", "online", "offline", "disabled"]

# What WANDB_MODE may say (`dryrun` and `run` are its older names), and what that means here.
ENVIRONMENT_MODES = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}

_log = logging.getLogger(__name__)


class RunLogger(WandbLogger):
    """Lightning's wandb logger that uploads the checkpoints it is given, instead of all that Lightning keeps.

    Args:
        log_checkpoints: whether `log_checkpoint_artifact` uploads.
        mode: what `wandb.init` is to do.
        run_dir: folder below which wandb keeps its files.
        init_timeout: seconds that `wandb.init` may take.
        finish_timeout: seconds that the end of the run may wait for uploads.
        project: name of the project.
        entity: user or team; None for the default one of the login.
        name: name of the run; None for one that wandb makes up.
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
        settings = wandb.Settings(
            init_timeout=init_timeout,
            finish_timeout=finish_timeout,
            finish_timeout_raises=True,
            # Offline, wandb has nothing to say beyond the one line that is logged here.
            silent=mode == "offline",
        )
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
        # Lightning passes this on always, and wandb warns that it has no effect any more.
        self._wandb_init.pop("anonymous", None)
        self.log_checkpoints = log_checkpoints


def create_wandb_logger(
    run_dir: Path | str,
    hyperparameters: Mapping[str, Any],
    wandb_project: str = "keypoint-detection",
    wandb_entity: str | None = None,
    wandb_name: str | None = None,
    wandb_mode: WandbMode = "auto",
    wandb_log_model: bool = True,
    wandb_init_timeout: float = 10.0,
    wandb_finish_timeout: float = 300.0,
    resume_id: str | None = None,
) -> RunLogger | None:
    """Start the wandb run, online where that works.

    Under `wandb agent` the sweep chooses project and run id.

    Args:
        run_dir: folder of the run; wandb keeps its files in the folder `wandb` in it.
        hyperparameters: values to log as the configuration of the run.
        wandb_project: wandb project that the run belongs to.
        wandb_entity: wandb user or team; the login's own when left out.
        wandb_name: name of the run in wandb; wandb makes one up when left out.
        wandb_mode: `auto` follows WANDB_MODE, and without it logs online if there is a login and the server answers,
            else offline. `online` fails where that is not possible. `offline` writes files for `wandb sync`.
            `disabled` leaves wandb out.
        wandb_log_model: upload the best checkpoint as an artifact.
        wandb_init_timeout: seconds to wait for the server at the start.
        wandb_finish_timeout: seconds to wait at the end for uploads that are not done yet; what is left stays on disk
            for `wandb sync`. 0 waits for as long as it takes.
        resume_id: wandb's id of the run to go on with; None for a new run.

    Returns:
        The logger with its run started (on rank zero only), or None if wandb is disabled.

    Raises:
        InputError: `online` was asked for, by `wandb_mode` or by WANDB_MODE, and there is no login or no server.
    """
    mode = _requested_mode(wandb_mode)
    if mode == "disabled":
        return None

    def start(mode: Literal["online", "offline", "disabled"]) -> RunLogger:
        # Where the folder does not exist, wandb falls back to the working directory.
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        logger = RunLogger(
            log_checkpoints=wandb_log_model,
            mode=mode,
            run_dir=Path(run_dir).absolute(),
            init_timeout=wandb_init_timeout,
            finish_timeout=wandb_finish_timeout,
            project=wandb_project,
            entity=wandb_entity,
            name=wandb_name,
            run_id=run_id,
            hyperparameters=dict(hyperparameters),
        )
        _ = logger.experiment  # this is what calls `wandb.init`
        return logger

    # The id is chosen here, so that an attempt that failed and the offline run after it are the same run.
    run_id = resume_id or secrets.token_hex(4)
    if not _is_rank_zero():
        return start("disabled")
    if mode == "offline":
        return _report(start("offline"), logging.INFO, "wandb logs offline, as asked")

    trouble = _login_trouble()
    if trouble is None:
        try:
            return start("online")
        except wandb.Error as error:
            trouble = f"the wandb server at {wandb.setup().settings.base_url} does not answer ({_first_line(error)})"
    if mode == "online":
        raise InputError(f"wandb mode is 'online', but {trouble}; expected a login and a server, or another mode")
    return _report(start("offline"), logging.WARNING, f"wandb logs offline: {trouble}")


def finish_wandb(logger: RunLogger | None, exit_code: int = 0) -> None:
    """End the run, waiting for its uploads no longer than was asked for.

    Args:
        logger: what `create_wandb_logger` returned.
        exit_code: 0 for a run that went well; anything else marks it as failed.
    """
    if logger is None or not _is_rank_zero():
        return
    run = logger.experiment
    try:
        run.finish(exit_code=exit_code)
    except TimeoutError:
        _log.warning("wandb could not upload all of the run; later: wandb sync %s", run.settings.sync_dir)


def log_checkpoint_artifact(
    logger: RunLogger | None,
    path: Path | str,
    aliases: Sequence[str] = ("best", "latest"),
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Log a checkpoint as the artifact `model-<run id>`, as `model.ckpt` in it: the names that Lightning uses too.

    Args:
        logger: what `create_wandb_logger` returned; None logs nothing.
        path: the checkpoint. It is not copied: it has to stay as it is until it is uploaded.
        aliases: names by which this version can be asked for.
        metadata: anything of interest, such as the epoch and the mean AP.
    """
    if logger is None or not logger.log_checkpoints or not _is_rank_zero():
        return
    run = logger.experiment
    artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=dict(metadata or {}))
    artifact.add_file(str(path), name="model.ckpt", policy="immutable", skip_cache=True)
    run.log_artifact(artifact, aliases=list(aliases))


def sweep_overrides() -> dict[str, Any]:
    """Parameters that `wandb agent` chose for this run, by name; empty outside of a sweep.

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
        message = f"{path}: expected the sweep's parameters as `name: {{value: ...}}` ({_first_line(error)})"
        raise InputError(message) from error


def _requested_mode(wandb_mode: WandbMode) -> WandbMode:
    """The explicit wish: the argument, else WANDB_MODE, else what `wandb offline` or `wandb disabled` stored."""
    environment = os.environ.get("WANDB_MODE", "")
    if environment and environment not in ENVIRONMENT_MODES:
        raise InputError(f"WANDB_MODE is {environment!r}, expected one of {', '.join(ENVIRONMENT_MODES)}")
    if wandb_mode == "online" and ENVIRONMENT_MODES.get(environment, "online") != "online":
        raise InputError(f"wandb mode is 'online', but WANDB_MODE is {environment!r}; expected them to agree")
    if wandb_mode != "auto":
        return wandb_mode
    if environment:
        return ENVIRONMENT_MODES[environment]
    stored = ENVIRONMENT_MODES.get(wandb.setup().settings.mode, "online")
    return "auto" if stored == "online" else stored


def _login_trouble() -> str | None:
    """Why there is no usable login; None if there is one. Asks neither the server nor the user."""
    try:
        found = wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        return f"the login is not valid ({_first_line(error)})"
    return None if found else "there is no login (`wandb login` or WANDB_API_KEY)"


def _is_rank_zero() -> bool:
    # Before the strategy starts, Lightning takes the first process of every node for rank zero.
    return rank_zero_only.rank == 0 and os.environ.get("NODE_RANK", "0") == "0"


def _report(logger: RunLogger, level: int, what: str) -> RunLogger:
    _log.log(level, "%s. To upload the run later: wandb sync %s", what, logger.experiment.settings.sync_dir)
    return logger


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
