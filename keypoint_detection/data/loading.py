"""How data loaders run: how many workers, and where an interrupted epoch goes on."""

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
    """A loader with the two methods by which Lightning knows that it can go on in mid-epoch.

    The position itself is Lightning's own count of batches (`resume_position`): a loader that reads ahead cannot know
    how many of its batches were trained on.
    """

    def state_dict(self) -> dict[str, Any]:
        """What the order of an epoch depends on."""
        return self.sampler.state_dict() if isinstance(self.sampler, TrainingSampler) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Checks that an interrupted epoch can go on in the same order.

        Raises:
            InputError: if the data, the seed, the batch size or the number of processes has changed.
        """
        if isinstance(self.sampler, TrainingSampler):
            self.sampler.load_state_dict(state)


def resume_position(trainer: pl.Trainer) -> tuple[int, int]:
    """Where the training loader has to begin.

    Args:
        trainer: which has restored the state of its loops from a checkpoint, or begins anew.

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
    """Torch's name of the device that trains; the CPU as long as there is no trainer."""
    return "cpu" if trainer is None else trainer.strategy.root_device.type


def process(trainer: pl.Trainer | None) -> tuple[int, int]:
    """Number of this process, and of all processes."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def check_num_workers(num_workers: int | str) -> None:
    """Refuses what is no number of workers.

    Raises:
        InputError: if it is neither "auto" nor a number of at least 0.
    """
    if num_workers != "auto" and (not isinstance(num_workers, int) or num_workers < 0):
        raise InputError(f"num_workers: expected auto or a whole number of at least 0, got {num_workers!r}")


def loader_arguments(num_workers: int | str, trainer: pl.Trainer | None, report: bool = False) -> dict[str, Any]:
    """Workers, and pinned memory where it speeds up the transfer.

    Args:
        num_workers: how many; "auto" chooses.
        trainer: which knows the device, if there is one yet.
        report: log what "auto" chose, and why.

    Raises:
        InputError: if `num_workers` is neither "auto" nor a number of at least 0.
    """
    check_num_workers(num_workers)
    device = device_type(trainer)
    if num_workers == "auto":
        num_workers, reason = automatic_num_workers(device, 1 if trainer is None else _sharing_processes(trainer))
        if trainer is not None:
            # The same on all machines: how far a loader is ahead decides when its sampler asks the first process.
            num_workers, reason = trainer.strategy.broadcast((num_workers, reason))
        if report and trainer is not None:
            logger.info("num_workers: %d (%s)", num_workers, reason)
    return {
        "num_workers": num_workers,
        # Workers that stay save their start at every epoch, and nothing where there are none.
        "persistent_workers": num_workers > 0,
        "pin_memory": device == "cuda",
        # Its own, so that making an iterator does not change what the model draws from torch's.
        "generator": torch.Generator(),
        "worker_init_fn": leave_signals_to_the_training,
    }


def loader_renders(place: str, trainer: pl.Trainer | None, report: bool = False) -> bool:
    """Whether the loader renders the heatmaps, and not the device, after the batch has reached it.

    Args:
        place: loader or device; auto chooses.
        trainer: which knows the device, if there is one yet.
        report: log what auto chose, and why.
    """
    if place != "auto":
        return place == "loader"
    device = device_type(trainer)
    place, reason = "loader", "workers, where there are any, do it beside the training"
    if device != "cpu":
        place, reason = "device", f"nearly free on {device}, and the transfer is smaller without them"
    if report and trainer is not None:
        logger.info("render_heatmaps_on: %s (%s)", place, reason)
    return place == "loader"


def leave_signals_to_the_training(worker: int) -> None:
    """Ignores SIGTERM and Ctrl-C in a worker: they reach all processes, and the training still has to save.

    Args:
        worker: Number of the worker.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def automatic_num_workers(device: str, processes_per_machine: int = 1) -> tuple[int, str]:
    """Chooses how many workers load data for one training process.

    Args:
        device: torch's name of the device that trains.
        processes_per_machine: training processes that share the cores of the machine.

    Returns:
        The number of workers and the reason.
    """
    share = usable_cores() // processes_per_machine
    if device != "cpu":
        workers = max(0, min(_MOST_WORKERS, share - 1))
        return workers, f"one of {share} cores is left to feed the {device} device"
    free = share - torch.get_num_threads()
    if free > 0:  # with OMP_NUM_THREADS, or two threads of a core counted as two cores
        return min(2, free), f"torch uses {torch.get_num_threads()} of {share} cores"
    if share <= 2:
        return 0, f"training itself keeps {share} cores busy"
    return min(2, share - 2), f"training keeps most of {share} cores busy"


def _sharing_processes(trainer: pl.Trainer) -> int:
    """How many training processes share the cores that this one may use."""
    # SLURM binds the tasks that it starts to cores of their own where it gives each a number of them.
    environment = getattr(trainer.strategy, "cluster_environment", None)
    bound = isinstance(environment, SLURMEnvironment) and "SLURM_CPUS_PER_TASK" in os.environ
    return 1 if bound else max(1, trainer.num_devices)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
