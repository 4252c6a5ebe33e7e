"""Notices that other programs keep the cores busy, which slows training on a CPU by much more than their share."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from keypoint_detection.data.loading import device_type

logger = logging.getLogger(__name__)

# Two numbers of the main thread on Linux: nanoseconds on a core, and nanoseconds of waiting for one.
SCHEDULE = Path("/proc/self/schedstat")
SECONDS = 15
# Measured with two threads on two cores: 0.07 beside programs of low priority, 0.53 beside two busy ones.
BUSY = 0.25


class BusyCores(pl.Callback):
    """Warns if the main thread waits for a core for much of the first seconds of training on a CPU.

    The threads of an operation wait for the slowest of them, so two threads on two cores lose much more than what other
    programs take. One thread loses only that.
    """

    def __init__(self) -> None:
        self._started: tuple[float, float] | None = None  # seconds on the clock, and of waiting

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts to measure."""
        if device_type(trainer) == "cpu" and torch.get_num_threads() > 1 and SCHEDULE.exists():
            self._started = time.monotonic(), _seconds_of_waiting()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Warns once if that is due."""
        if self._started is None:
            return
        seconds = time.monotonic() - self._started[0]
        if seconds < SECONDS:
            return
        share = (_seconds_of_waiting() - self._started[1]) / seconds
        self._started = None
        if share > BUSY:
            logger.warning(
                "training waited for a free CPU core for %.0f %% of its first %.0f s; end other programs, lower "
                "--num_workers if it is above 0, or try OMP_NUM_THREADS=1 in front of the command",
                100 * share, seconds,
            )  # fmt: skip


def _seconds_of_waiting() -> float:
    return int(SCHEDULE.read_text(encoding="ascii").split()[1]) / 1e9
