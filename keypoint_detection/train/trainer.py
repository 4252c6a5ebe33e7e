"""The Lightning Trainer of a training run."""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.errors import InputError
from keypoint_detection.metrics.distances import parse_distances, warn_of_tiny
from keypoint_detection.models.progress import asks_for_the_time, limit_batches
from keypoint_detection.processes import device_of
from keypoint_detection.train.checkpoint_io import AtomicCheckpointIO
from keypoint_detection.train.network_size import NetworkSize
from keypoint_detection.train.progress_lines import ProgressLines, shows_bars
from keypoint_detection.train.run_folder import RunFolder

logger = logging.getLogger(__name__)

DEFAULT_TIME = timedelta(minutes=5)
# Strategies that fork or spawn are left out, since their processes end with training, but their results are needed
# afterwards. So are strategies that shard the weights, which cannot be averaged then.
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
# Lightning's number formats in which everything but the network, such as keypoints, stays in 32 bits.
PRECISIONS = ("auto", "32", "32-true", "bf16-mixed", "16-mixed", "bf16", "16")
PROFILERS: dict[str, Callable[..., Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": partial(PyTorchProfiler, table_kwargs={"max_name_column_width": 100}),  # or names of steps are cut off
}
# Arguments of Lightning's Trainer that this library sets itself, or that `create_trainer` declares.
NOT_FLAGS = {
    "logger", "callbacks", "default_root_dir", "plugins", "use_distributed_sampler", "precision",
    "enable_checkpointing", "gradient_clip_val",
    "model_registry", "inference_mode", "barebones", "profiler", "strategy", "accelerator", "max_time",
    "reload_dataloaders_every_n_epochs", "enable_autolog_hparams", "limit_predict_batches",
}  # fmt: skip
# Lightning's messages that start like this are hidden: about its makers' products, absent devices, its
# checkpoints and how long training was meant to be.
NO_NEWS = (
    "💡 Tip", "TPU available: False", "Restoring states from", "Restored all states", "Found current_model_state",
    "`Trainer.fit` stopped",
)  # fmt: skip


class SharedTimer(Timer):
    """Lightning's timer, except that several processes ask the first one for the time only every few steps."""

    state_key = Timer.__qualname__  # the key of the elapsed time in a checkpoint

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Stops training when its time is over."""
        if asks_for_the_time(trainer, trainer.global_step):
            super().on_train_batch_end(trainer, *args, **kwargs)


def trainer_flags() -> list[str]:
    """Names of the arguments of Lightning's Trainer that become flags unchanged."""
    return [name for name in inspect.signature(pl.Trainer).parameters if name not in NOT_FLAGS]


def create_trainer(
    config: Mapping[str, Any],
    folder: RunFolder,
    callbacks: Sequence[pl.Callback],
    batches_per_epoch: int,
    max_time: str | None = None,
    accelerator: str = "auto",
    strategy: str = "auto",
    profiler: Literal["simple", "advanced", "pytorch"] | None = None,
    gradient_clip_val: float | None = 1.0,
) -> pl.Trainer:
    """Makes the Trainer.

    Args:
        config: All hyperparameters; those of Lightning's Trainer are passed on unchanged.
        folder: Folder of the run.
        callbacks: Callbacks of the run.
        batches_per_epoch: Number of training batches in an epoch.
        max_time: Time after which training stops (DD:HH:MM:SS); the learning rate schedule then ends with it.
            00:00:05:00 if neither --max_epochs nor --max_steps is given.
        accelerator: Kind of device: cpu, gpu, mps or auto.
        strategy: Lightning's strategy for several devices: auto, ddp or one of its variants. Strategies that split a
            network over devices are not supported, because their weights cannot be averaged.
        profiler: Lightning's profiler; its table is written to the run's folder. pytorch also writes a trace of some
            steps, which ui.perfetto.dev can show.
        gradient_clip_val: Norm that gradients are clipped to; none or 0 turns clipping off.

    Returns:
        The Trainer, without loggers.

    Raises:
        InputError: If Lightning rejects the arguments, for example because there is no such device.
    """
    arguments = {name: config[name] for name in trainer_flags() if name in config}
    duration = parse_duration(max_time)
    unlimited = arguments["max_epochs"] is None and arguments["max_steps"] == -1
    if duration is None and unlimited and not arguments["fast_dev_run"]:
        duration = DEFAULT_TIME
        logger.info("training for 5 minutes, since neither --max_time nor --max_epochs nor --max_steps is given")
    if unlimited:
        arguments["max_epochs"] = -1
    # Lightning's table would show two layers and, without an example image, 0 FLOPs; --enable_model_summary true prints
    # it.
    size = [NetworkSize()] if arguments["enable_model_summary"] is None else []
    arguments["enable_model_summary"] = bool(arguments["enable_model_summary"])
    lines = [ProgressLines()] if arguments["enable_progress_bar"] is not False else []
    if not shows_bars():
        arguments["enable_progress_bar"] = False
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_concerns_the_training)
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # normal when resuming
    if arguments["limit_val_batches"] != 0:  # normal before the first validation
        warnings.filterwarnings("ignore", "ReduceLROnPlateau conditioned on metric validation/loss")
    # Only Lightning can act on these deprecation warnings of torch.
    warnings.filterwarnings("ignore", module=r"pytorch_lightning\.utilities\._pytree")
    # The timer comes first, since other callbacks need to know whether it stops training.
    timer = [SharedTimer(duration=duration, verbose=False)] if duration else []
    try:
        trainer = pl.Trainer(
            **arguments,
            precision=config["precision"],
            accelerator=accelerator,
            strategy=strategy,
            gradient_clip_val=gradient_clip_val,
            profiler=None if profiler is None else PROFILERS[profiler](dirpath=folder.path, filename="profile"),
            callbacks=[*timer, *callbacks, *size, *lines],
            logger=False,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=folder.path,
            use_distributed_sampler=False,  # the data module has its own sampler for each process
        )
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise InputError(f"training cannot be set up: {' '.join(str(error).split())}") from error
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise InputError(
            f"--devices {config['devices']}: expected 1 in a notebook, whose processes would end with training; the "
            "command line allows more"
        )
    interval = getattr(trainer, "val_check_interval", None)  # missing from the Trainer if it is a time
    per_process = -(-batches_per_epoch // trainer.world_size)
    batches = limit_batches(per_process, trainer.limit_train_batches)
    if isinstance(interval, int) and interval > batches and trainer.check_val_every_n_epoch is not None:
        raise InputError(
            f"--val_check_interval {interval}: expected at most {batches}, the number of batches in an epoch, or "
            "--check_val_every_n_epoch none as well"
        )
    if not batches:
        name = "overfit_batches" if trainer.overfit_batches else "limit_train_batches"
        raise InputError(
            f"--{name} {trainer.limit_train_batches}: expected at least one batch out of {per_process} per epoch"
        )
    if config["log_every_n_steps"] is None:
        trainer.log_every_n_steps = min(50, -(-batches // trainer.accumulate_grad_batches))
    return trainer


def check_evaluations(trainer: pl.Trainer, datamodule: KeypointsDataModule) -> None:
    """Refuses a share of the evaluation batches that leaves none, which would end training with an error.

    Args:
        trainer: The trainer.
        datamodule: The data, set up.

    Raises:
        InputError: If a share leaves no batch.
    """
    of_validation = "overfit_batches" if trainer.overfit_batches else "limit_val_batches"
    for stage, name, limit in (
        ("validation", of_validation, trainer.limit_val_batches),
        ("test", "limit_test_batches", trainer.limit_test_batches),
    ):
        if stage in datamodule.parts.annotations and isinstance(limit, float) and 0 < limit < 1:
            batches = len(datamodule.evaluation_sampler(stage, world=trainer.world_size))
            if not limit_batches(batches, limit):
                raise InputError(f"--{name} {limit}: expected at least one batch out of {batches} in the {stage} set")


def _concerns_the_training(record: logging.LogRecord) -> bool:
    """Whether a message of Lightning is worth showing."""
    return not record.getMessage().startswith(NO_NEWS)


def check_setup(config: Mapping[str, Any]) -> None:
    """Refuses settings that training cannot work with, before the data is read.

    Args:
        config: A value for every flag.

    Raises:
        InputError: For a run without any steps, minimum lengths above the maximum, a gradient norm, seed, duration or
            device number that is not valid, a number format that rounds keypoints, a device that does not exist, or an
            unsupported strategy.
    """
    for name in ("max_epochs", "max_steps"):
        if config[name] is not None and (config[name] == 0 or config[name] < -1):
            raise InputError(f"--{name} {config[name]}: expected at least 1, or -1 for any number")
    for unit in ("epochs", "steps"):
        least, most = config[f"min_{unit}"], config[f"max_{unit}"]
        if least is not None and most not in (None, -1) and least > most:
            raise InputError(f"--min_{unit} {least}: expected at most {most}, the value of --max_{unit}")
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "limit_train_batches", "val_check_interval"):
        # the last one may also be a time, which is not a number
        if isinstance(config[name], (int, float)) and not config[name] > 0:
            raise InputError(f"--{name} {config[name]}: expected more than 0")
    clip = config["gradient_clip_val"]
    if clip is not None and not clip >= 0:
        raise InputError(f"--gradient_clip_val {clip}: expected at least 0, or none to turn clipping off")
    if not 0 <= config["seed"] < 2**32:
        raise InputError(f"--seed {config['seed']}: expected a whole number from 0 to 4294967295")
    duration = parse_duration(config["max_time"])
    if duration is not None and duration <= timedelta(0):
        raise InputError(f"--max_time {config['max_time']}: expected more than 0 seconds")
    unit = config["threshold_unit"]
    warn_of_tiny(parse_distances(config["maximal_gt_keypoint_pixel_distances"], unit), unit)
    if config["precision"] not in PRECISIONS:
        raise InputError(f"--precision {config['precision']}: expected one of 32, bf16-mixed, 16-mixed, auto")
    if not re.fullmatch(r"auto|-1|[1-9]\d*|[\[(]?\d+(,\s*\d*)+[\])]?|\[\d+\]", str(config["devices"])):
        raise InputError(f"--devices {config['devices']}: expected auto, a number of at least 1, or a list such as 0,1")
    if config["accelerator"] in ("gpu", "cuda", "mps"):
        device_of(config["accelerator"])  # an error if there is none
    if config["strategy"] not in STRATEGIES:
        raise InputError(f"--strategy {config['strategy']}: expected one of {', '.join(STRATEGIES)}")


def parse_duration(text: str | None) -> timedelta | None:
    """Parses a time in the form DD:HH:MM:SS.

    Args:
        text: The time, or None.

    Returns:
        The duration, or None.

    Raises:
        InputError: If the text does not have this form, or is longer than a `timedelta` can be.
    """
    if text is None:
        return None
    try:
        days, hours, minutes, seconds = (int(part) for part in str(text).split(":"))
    except ValueError as error:
        raise InputError(f"--max_time {text!r}: expected DD:HH:MM:SS, such as 00:00:05:00 for five minutes") from error
    try:
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    except OverflowError as error:
        raise InputError(f"--max_time {text}: expected less than 1000000000 days") from error
