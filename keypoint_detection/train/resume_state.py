"""What Lightning leaves out of its checkpoints: random states, and the logged values that schedules depend on."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch


class ResumeState(pl.Callback):
    """Saves the states of all random generators and the latest logged values, and restores them when training starts.

    All processes draw the same numbers (what is drawn for data depends only on seed, image and epoch), so one state
    serves them all.
    """

    def __init__(self) -> None:
        self._trainer: pl.Trainer | None = None
        self._loaded: dict[str, Any] | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remembers the trainer, whose values are saved."""
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """The states, as plain values and tensors."""
        name, keys, *rest = np.random.get_state()
        device = self._trainer.strategy.root_device
        return {
            "python": random.getstate(),
            "numpy": (name, keys.tolist(), *rest),
            "torch": torch.get_rng_state(),
            "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
            "metrics": {name: float(value) for name, value in self._trainer.callback_metrics.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until everything else is set up, since that draws random numbers too."""
        self._loaded = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores the states."""
        if self._loaded is None:
            return
        pl_module.on_train_epoch_start()  # freezes the encoder; Lightning skips it when it resumes within an epoch
        state, self._loaded = self._loaded, None
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        device = trainer.strategy.root_device
        if state["cuda"] and device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"][0], device)  # the first process's, equal to what this one had
        values = {name: torch.tensor(value, device=device) for name, value in state["metrics"].items()}
        trainer.callback_metrics.update(values)  # for a plateau schedule, if the epoch was already validated

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Corrects what Lightning omits in the first epoch after resuming."""
        trainer.fit_loop._restarting = False  # so that a plateau schedule makes its step after this epoch too
        # When Lightning resumes between two epochs, it does not count the next one as started. A run that resumes from
        # a checkpoint in the middle of that epoch would then repeat it from its start.
        epochs = trainer.fit_loop.epoch_progress
        for progress in (epochs.total, epochs.current):
            progress.ready = progress.started = progress.completed + 1
