"""How data loaders run: the number of workers, and where an interrupted epoch resumes."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import SLURMEnvironment
from torch.utils.data import DataLoader

from keypoint_detection.batch import Batch
from keypoint_detection.data.sampler import TrainingSampler
from keypoint_detection.errors import InputError

logger = logging.getLogger(__name__)

_MOST_WORKERS = 8


class TrainingLoader(DataLoader[Batch]):
    """A loader with the two methods that tell Lightning that it can resume in mid-epoch.

    The position itself is Lightning's own count of batches (`resume_position`): a loader that reads ahead cannot know
    how many of its batches were trained on.
    """

    def state_dict(self) -> dict[str, Any]:
        """What the order of an epoch depends on."""
        return self.sampler.state_dict() if isinstance(self.sampler, TrainingSampler) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Checks that an interrupted epoch can be resumed in the same order.

        Raises:
            InputError: if the data, the seed, the batch size or the number of processes has changed.
        """
        if isinstance(self.sampler, TrainingSampler):
            self.sampler.load_state_dict(state)


def resume_position(trainer: pl.Trainer) -> tuple[int, int]:
    """Where the training loader has to start.

    Args:
        trainer: the trainer, which has restored the state of its loops from a checkpoint or starts from scratch.

    Returns:
        The epoch and the number of its batches that have been trained on.
    """
    epoch = trainer.fit_loop.epoch_progress.current
    batch = trainer.fit_loop.epoch_loop.batch_progress
    if not trainer.fit_loop.restarting or epoch.started == epoch.processed:
        return epoch.processed, 0
    if batch.is_last_batch:
        return epoch.processed + 1, 0
    # Not `completed`, which lags behind in a checkpoint that a callback wrote at the end of a batch.
    return epoch.processed, batch.current.processed


def device_type(trainer: pl.Trainer | None) -> str:
    """Torch's name for the training device; the CPU if there is no trainer yet."""
    return "cpu" if trainer is None else trainer.strategy.root_device.type


def process(trainer: pl.Trainer | None) -> tuple[int, int]:
    """The rank of this process, and the number of processes."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def check_num_workers(num_workers: int | str) -> None:
    """Checks a number of workers.

    Raises:
        InputError: if it is neither "auto" nor a number of at least 0.
    """
    if num_workers != "auto" and (not isinstance(num_workers, int) or num_workers < 0):
        raise InputError(f"num_workers: expected auto or a whole number of at least 0, got {num_workers!r}")


def loader_arguments(num_workers: int | str, trainer: pl.Trainer | None, report: bool = False) -> dict[str, Any]:
    """The arguments of a loader: workers, and pinned memory if it speeds up the transfer.

    Args:
        num_workers: how many; "auto" chooses.
        trainer: the trainer, which knows the device; None if there is none yet.
        report: log what "auto" chose, and why.

    Raises:
        InputError: if `num_workers` is neither "auto" nor a number of at least 0.
    """
    check_num_workers(num_workers)
    device = device_type(trainer)
    if num_workers == "auto":
        num_workers, reason = automatic_num_workers(device, 1 if trainer is None else _sharing_processes(trainer))
        if trainer is not None:
            # The same on all machines: how far a loader reads ahead decides when its sampler asks the first process.
            num_workers, reason = trainer.strategy.broadcast((num_workers, reason))
        if report and trainer is not None:
            logger.info("num_workers: %d (%s)", num_workers, reason)
    return {
        "num_workers": num_workers,
        # Starting workers once saves time in every epoch; torch refuses this without workers.
        "persistent_workers": num_workers > 0,
        "pin_memory": device == "cuda",
        # Its own, so that creating an iterator does not change the random numbers that the model draws from torch's.
        "generator": torch.Generator(),
        "worker_init_fn": leave_signals_to_the_training,
    }


def loader_renders(place: str, trainer: pl.Trainer | None, report: bool = False) -> bool:
    """Whether the loader renders the heatmaps, rather than the device after the transfer.

    Args:
        place: loader or device; auto chooses.
        trainer: the trainer, which knows the device; None if there is none yet.
        report: log what auto chose, and why.
    """
    if place != "auto":
        return place == "loader"
    device = device_type(trainer)
    place, reason = "loader", "workers, if there are any, do it in parallel with training"
    if device != "cpu":
        place, reason = "device", f"nearly free on {device}, and less data to transfer"
    if report and trainer is not None:
        logger.info("render_heatmaps_on: %s (%s)", place, reason)
    return place == "loader"


def leave_signals_to_the_training(worker: int) -> None:
    """Ignores SIGTERM and Ctrl-C in a worker: they reach all processes, and the training process still has to save.

    Args:
        worker: Number of the worker.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def automatic_num_workers(device: str, processes_per_machine: int = 1) -> tuple[int, str]:
    """Chooses how many workers load data for one training process.

    Args:
        device: torch's name for the training device.
        processes_per_machine: training processes that share the cores of the machine.

    Returns:
        The number of workers and the reason.
    """
    share = usable_cores() // processes_per_machine
    if device != "cpu":
        workers = max(0, min(_MOST_WORKERS, share - 1))
        return workers, f"one of {share} cores is left to feed the {device} device"
    free = share - torch.get_num_threads()
    if free > 0:  # because of OMP_NUM_THREADS, or because hyperthreads count as cores
        return min(2, free), f"torch uses {torch.get_num_threads()} of {share} cores"
    if share <= 2:
        return 0, f"training itself keeps {share} cores busy"
    return min(2, share - 2), f"training keeps most of {share} cores busy"


def _sharing_processes(trainer: pl.Trainer) -> int:
    """How many training processes share the cores that this one may use."""
    # SLURM binds each task to its own cores if it assigns a number of them per task.
    environment = getattr(trainer.strategy, "cluster_environment", None)
    bound = isinstance(environment, SLURMEnvironment) and "SLURM_CPUS_PER_TASK" in os.environ
    return 1 if bound else max(1, trainer.num_devices)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
