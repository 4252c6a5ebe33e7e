"""Trains a keypoint detector: `python keypoint_detection/train/train.py --flags`, or `fit(...)` from Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # The script's own folder, which Python puts first, must not hide other modules.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

    from keypoint_detection.cli import run

    sys.exit(run("keypoint_detection.train.train", sys.argv[1:]))

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from keypoint_detection.allocator import TRAINING, give_back_freed_memory, keep_freed_memory
from keypoint_detection.data.splits import SPLIT_FILE
from keypoint_detection.flags import call
from keypoint_detection.train import flags
from keypoint_detection.train.build import (
    build_callbacks,
    build_detector,
    check_detector,
    check_values,
    decoding_caps,
    prepare_data,
)
from keypoint_detection.train.checkpoint_io import (
    check_space,
    explain_lost_image,
    explain_lost_process,
    explain_write_error,
)
from keypoint_detection.train.device_speed import tf32_products
from keypoint_detection.train.ended import find_result
from keypoint_detection.train.fine_tune import TrainedWeights, find_trained_weights
from keypoint_detection.train.finish import finish
from keypoint_detection.train.folder_lock import FolderLock
from keypoint_detection.train.last_checkpoint import LastCheckpoint, stops_when_terminated
from keypoint_detection.train.memory import explain_want_of_memory
from keypoint_detection.train.metrics_file import MetricsFile
from keypoint_detection.train.resume import Resumed, find_interrupted, named_folder
from keypoint_detection.train.run_folder import RunFolder, provenance
from keypoint_detection.train.trainer import check_evaluations, check_setup, create_trainer
from keypoint_detection.train.training_result import TrainingResult
from keypoint_detection.train.wandb_connection import check_login
from keypoint_detection.train.wandb_logger import create_wandb_logger, finish_wandb, sweep_overrides


def fit(**hyperparameters: Any) -> TrainingResult:
    """Trains a detector, as the command line does.

    Args:
        **hyperparameters: The flags of `keypoint-detection train --help_all`, by name. An unknown name is an error.
            Paths are text or `os.PathLike`; numpy's numbers and arrays are converted to Python's own.

    Returns:
        The detector with its best weights, its metrics and the folder of its run.

    Raises:
        InputError: If a hyperparameter or the data set is not usable.
    """
    given = {name: _as_typed(value) for name, value in hyperparameters.items()}
    return train(flags.build_parser().parse_object(given).as_dict())


def _as_typed(value: Any) -> Any:
    """A value in the form that the parser accepts: what could be typed on a command line or in YAML."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return type(value)(map(_as_typed, value)) if type(value) in (list, tuple) else value


def train(config: dict[str, Any]) -> TrainingResult:
    """Trains with validated hyperparameters.

    Args:
        config: A value for every flag.

    Returns:
        See `fit`.
    """
    # These errors should not have to wait until a large data set has been read.
    check_setup(config)
    check_values(config)
    check_login(config["wandb_mode"])
    with _torch_as_started(), FolderLock() as lock:
        named = call(named_folder, config)
        if named:
            lock.take(named.path)  # before looking for its checkpoint, which another process might still replace
        return _train(config, lock)


@contextmanager
def _torch_as_started() -> Iterator[None]:
    """Turns gradients on and makes float32 the default type, in case the caller has changed either."""
    number = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(number)


def _train(config: dict[str, Any], lock: FolderLock) -> TrainingResult:
    """Trains in a folder, which is locked as soon as it exists."""
    interrupted = call(find_interrupted, config)
    if interrupted:
        config = interrupted.decide(config, flags.automatic_flags())
    else:
        flags.warn_of_unused(config)  # not again when resuming, with the flags that `auto` chose
        if config["run_dir"] and config["resume"] is None:
            RunFolder(Path(config["run_dir"])).refuse_used()
    trained, config = _initial_weights(config, interrupted)
    if interrupted:  # before the labels are read, since other channels would change them
        interrupted.check(config, flags.learning_flags() - flags.automatic_flags())
    check_detector(config)
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    learnt = trained.channels(config) if trained else ()
    split, images = (interrupted.split, None) if interrupted else (None, trained and trained.images)
    datamodule, recipe = prepare_data(config, split, learnt, images)
    config = {**config, **recipe.values(), **decoding_caps(datamodule, config["max_keypoints"])}
    if interrupted:
        interrupted.check(config, flags.learning_flags())
        if result := find_result(interrupted, config, datamodule.split["fingerprints"]):
            return result
    channels = list(datamodule.channel_names)
    detector = build_detector(config, channels, load_pretrained=not (trained or interrupted))
    is_trained = trained.load(detector) if trained and not interrupted else False
    # A new folder is created as late as possible: bad input should leave nothing behind.
    folder = interrupted.folder if interrupted else call(RunFolder.choose, config, name=config["wandb_name"])
    with folder.removed_if_refused():
        callbacks = build_callbacks(config, folder, channels, is_trained)
        trainer = call(
            create_trainer, config, config=config, folder=folder, callbacks=callbacks,
            batches_per_epoch=datamodule.batches_per_epoch(),
        )  # fmt: skip
        check_evaluations(trainer, datamodule)
    folder.make()
    lock.take(folder.path)
    check_space(folder, detector, config["save_top_k"])
    csv_logger, wandb_logger = _start_records(config, folder, datamodule.split, recipe.reasons, interrupted)
    if not trainer.fast_dev_run:  # with it, nothing is logged
        trainer.loggers = [csv_logger, wandb_logger] if wandb_logger else [csv_logger]
    checkpoint = str(interrupted.checkpoint) if interrupted else None
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory(*TRAINING)  # not earlier, so that the memory for reading labels goes back to the system
    try:
        with tf32_products(trainer.strategy.root_device):
            with stops_when_terminated(trainer):
                trainer.fit(detector, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
            return finish(trainer, folder)
    except BaseException as error:
        finish_wandb(wandb_logger, exit_code=1)
        if _is_ctrl_c(error):
            raise KeyboardInterrupt(_how_to_go_on(folder, callbacks, interrupted)) from error
        explained = explain_write_error(error, folder) or explain_lost_image(error, folder)
        explained = explained or explain_want_of_memory(error, config, folder) or explain_lost_process(error, folder)
        if explained:
            raise explained from error
        raise
    finally:
        give_back_freed_memory()


def _initial_weights(
    config: dict[str, Any], interrupted: Resumed | None
) -> tuple[TrainedWeights | None, dict[str, Any]]:
    """The weights to start from, with their channels called as in the flags, and the flags with what they need."""
    # The checkpoint of a resumed run has all the weights that it started from, whose file may no longer exist.
    source = str(interrupted.checkpoint) if interrupted and config["checkpoint"] else config["checkpoint"]
    trained = find_trained_weights(source)
    if trained is None:
        return None, config
    return trained.renamed(config["keypoint_channels"]), trained.inherit(config)


def _start_records(
    config: dict[str, Any],
    folder: RunFolder,
    split: dict[str, Any],
    reasons: dict[str, str],
    interrupted: Resumed | None,
) -> tuple[MetricsFile, WandbLogger | None]:
    """Writes what is known about a run at its start to its folder, and makes its loggers."""
    if interrupted:
        interrupted.announce()
    if rank_zero_only.rank == 0:
        folder.write_json(SPLIT_FILE, split)
    resume_id = interrupted.wandb_id if interrupted else None
    wandb_logger = call(create_wandb_logger, config, run_dir=folder.path, hyperparameters=config, resume_id=resume_id)
    record = provenance(split["fingerprints"])
    wandb_id = wandb_logger.experiment.id if wandb_logger else None
    if rank_zero_only.rank == 0:
        # hparams.yaml is for people: Lightning writes Python's own types to it, and not atomically.
        record |= {"chosen": reasons, "wandb_id": wandb_id, "flags": config}
        folder.write_record(record, goes_on=interrupted is not None)
    csv_logger = MetricsFile(folder.path, first_step=interrupted.step if interrupted else 0)
    # The flags already include those of a --config, so that this file can be the next --config by itself.
    csv_logger.log_hyperparams({name: value for name, value in config.items() if name != "config"})
    return csv_logger, wandb_logger


def _is_ctrl_c(error: BaseException) -> bool:
    """Whether it is what Ctrl-C raises, or the exit into which Lightning turns that."""
    return isinstance(error, KeyboardInterrupt) or (
        type(error) is SystemExit and isinstance(error.__context__, KeyboardInterrupt)
    )


def _how_to_go_on(folder: RunFolder, callbacks: Sequence[pl.Callback], interrupted: Resumed | None) -> str:
    """Says how to resume if this run has a checkpoint; only in the first process."""
    last = next(callback for callback in callbacks if isinstance(callback, LastCheckpoint))
    told = rank_zero_only.rank == 0 and (interrupted or last.exists)
    return f"interrupted: resume with the same flags and --resume {folder.path}" if told else "interrupted"


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains with the flags of a command line, which the parameters of a wandb sweep override.

    Args:
        arguments: The flags; by default those of the process.

    Returns:
        The exit code.
    """
    parser = flags.build_parser()
    config = parser.parse_args(arguments).as_dict()
    overrides = sweep_overrides()
    if overrides:
        config = parser.parse_object({**config, **overrides}).as_dict()
    result = train(config)
    if rank_zero_only.rank == 0:
        origin = f"{result.origin}\n" if result.origin else ""
        sys.stdout.write(f"\n{result.table()}\n{origin}\n{result.where_to_look()}\n")
    return 0
