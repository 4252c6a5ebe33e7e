"""What training logs: losses and metrics per channel.

C channels.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torchmetrics import Metric

from keypoint_detection.batch import Batch
from keypoint_detection.data.channels import channel_members
from keypoint_detection.data.trained_images import TrainedImages
from keypoint_detection.errors import InputError
from keypoint_detection.evaluation.images import make_metrics, metric_values, update_metrics
from keypoint_detection.log_names import log_name
from keypoint_detection.metrics.distances import DEFAULT_DISTANCES, parse_distances
from keypoint_detection.models.checkpoint_file import EVALUATION_KEY, METRICS_KEY, TRAINED_IMAGES
from keypoint_detection.models.optimization import current_learning_rate
from keypoint_detection.train.early_stopping import RelativeEarlyStopping
from keypoint_detection.train.evaluation_row import EvaluationRow
from keypoint_detection.train.evaluation_schedule import epochs_since_validation, is_last_epoch
from keypoint_detection.train.progress_lines import loss_of_batch


class ChannelMeans(Metric):
    """Mean per channel over all cells of all batches and processes; exact even if batches differ in size."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        for name, dtype in (("loss", torch.float32), ("gt_loss", torch.float32), ("weight", torch.int64)):
            self.add_state(name, torch.zeros(num_channels, dtype=dtype), dist_reduce_fx="sum")

    def update(self, losses: Tensor, gt_losses: Tensor, weights: Tensor) -> None:
        """Adds a batch: mean loss, mean entropy of the true heatmaps and number of cells, each `(C,)`."""
        self.loss += losses.detach() * weights
        self.gt_loss += gt_losses.detach() * weights
        self.weight += weights

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean loss and mean entropy of the true heatmaps per channel, `(C,)` each; NaN if no cell was seen."""
        return self.loss / self.weight, self.gt_loss / self.weight


class LossLogger(pl.Callback):
    """Logs the loss, in total and per channel, and for BCE its lower bound, the true heatmaps' entropy (`gt_loss`).

    These are means of all processes, except for `train/loss_step`, which is the loss of one batch of the first process.

    Args:
        row: Collects what an evaluation logs.
        channel_names: Names of the channels.
    """

    def __init__(self, row: EvaluationRow, channel_names: list[str]) -> None:
        self.row = row
        self.channel_names = channel_names
        self.means = {stage: ChannelMeans(len(channel_names)) for stage in ("train", "validation", "test")}
        self.logged_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Moves the sums to the device where processes can exchange them, as even a checkpoint at the start needs."""
        self.means["train"].to(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Adds the batch and logs its loss."""
        self._update("train", outputs)
        step, every = trainer.global_step, trainer.log_every_n_steps
        is_logged = every and step > self.logged_step and step % every == 0
        if not is_logged and not outputs["loss"].is_cpu:
            return  # reading it would wait for the GPU at every step, as Lightning's `log` with a progress bar does
        loss = loss_of_batch(trainer, outputs)
        trainer.progress_bar_metrics["train/loss_step"] = loss
        if is_logged:
            # At once: Lightning would log it after the checkpoint of this step, and lose it if killed in between.
            self.logged_step = step
            for run_logger in trainer.loggers:
                run_logger.log_metrics({"train/loss_step": loss, "epoch": trainer.current_epoch}, step=step - 1)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Adds the batch."""
        if not trainer.sanity_checking:
            self._update("validation", outputs)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any) -> None:
        """Adds the batch."""
        self._update("test", outputs)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the means of the epoch, and the learning rate at its end."""
        # All processes have the same values already; `sync_dist` avoids a warning for each of them.
        pl_module.log_dict(self._compute("train", "train"), sync_dist=True)
        pl_module.log("learning_rate", current_learning_rate(trainer.optimizers[0]), sync_dist=True)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the means of the epoch."""
        if not trainer.sanity_checking:
            self.row.add(trainer, self._compute("validation", log_prefix(trainer)))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the means of the set."""
        self.row.add(trainer, self._compute("test", "test"))

    def state_dict(self) -> dict[str, Any]:
        """The sums of the epoch so far, over all processes."""
        with self.means["train"].sync_context():
            sums = {name: value.clone() for name, value in self.means["train"].metric_state.items()}
        return {"sums": sums, "logged_step": self.logged_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the sums of an interrupted epoch in the first process; the others start from zero."""
        self.logged_step = state_dict["logged_step"]
        if rank_zero_only.rank == 0:
            for name, value in state_dict["sums"].items():
                sums = getattr(self.means["train"], name)
                setattr(self.means["train"], name, value.to(sums.dtype))  # older checkpoints count in float32

    def _update(self, stage: str, outputs: dict[str, Tensor]) -> None:
        self.means[stage].to(outputs["losses"].device).update(
            outputs["losses"].float(), outputs["gt_losses"].float(), outputs["weights"]
        )

    def _compute(self, stage: str, prefix: str) -> dict[str, float]:
        # torchmetrics squeezes the values of a single channel to scalars.
        means = [value.reshape(len(self.channel_names)) for value in self.means[stage].compute()]
        (loss, *losses), (gt_loss, *_) = torch.stack([torch.cat([v.nanmean()[None], v]) for v in means]).tolist()
        values = {f"{prefix}/loss": loss} | ({} if math.isnan(gt_loss) else {f"{prefix}/gt_loss": gt_loss})
        named = zip(self.channel_names, losses, strict=True)
        values |= {log_name("loss", name, stage=prefix): value for name, value in named}
        self.means[stage].reset()
        return values


def log_prefix(trainer: pl.Trainer) -> str:
    """Prefix of the log names of validation values; those of the best checkpoint have their own."""
    return "validation" if trainer.state.fn == "fit" else "best"


class MetricsLogger(pl.Callback):
    """Computes and logs all metrics of `METRICS`, per channel and threshold distance.

    Args:
        row: Collects what is logged.
        channel_names: Names of the channels.
        maximal_gt_keypoint_pixel_distances: Distances for average precision: how far from a true keypoint, in pixels of
            the image file, a detection may be to count as correct. Separate several with spaces.
        threshold_unit: Unit of these distances: `pixel`, or `image` for fractions of the image's diagonal, below 1.
        ap_epoch_start: Number of epochs after which the metrics are first computed, apart from those of the weights
            that a fine-tuning run starts from.
        ap_epoch_freq: Epochs from one evaluation to the next. An evaluation that is due waits for the next validation;
            validations after which training may stop early are always evaluated. `auto` validates and evaluates about
            25 times in a run (less often if that would take more than a tenth of max_time), or as often as
            val_check_interval says, or check_val_every_n_epoch if that is not 1.
    """

    def __init__(
        self,
        row: EvaluationRow,
        channel_names: list[str],
        maximal_gt_keypoint_pixel_distances: str | float | list[float] = DEFAULT_DISTANCES,
        threshold_unit: Literal["pixel", "image"] = "pixel",
        ap_epoch_start: int = 1,
        ap_epoch_freq: int | Literal["auto"] = "auto",
    ) -> None:
        self.row = row
        self.threshold_distances = parse_distances(maximal_gt_keypoint_pixel_distances, threshold_unit)
        self.threshold_unit = threshold_unit
        self.ap_epoch_start = ap_epoch_start
        self.ap_epoch_freq = ap_epoch_freq
        if ap_epoch_freq != "auto" and ap_epoch_freq < 1:
            raise InputError(f"--ap_epoch_freq {ap_epoch_freq}: expected at least 1, or auto")
        self.metrics = {
            stage: make_metrics(channel_names, self.threshold_distances) for stage in ("validation", "test")
        }
        self.channel_names = channel_names
        self.latest: dict[str, float] = {}  # values of the latest validation by name; none before the first
        self.score_thresholds: torch.Tensor | None = None  # (C,) at the best F1 of the latest validation
        self._validated = -1  # epoch of the latest validation after the first step
        self.trained_images: dict[str, Any] = {}  # for checkpoints, in the first process, which writes them

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes the record of the training images, for which it reads files; a resumed checkpoint has it already."""
        if trainer.is_global_zero and not self.trained_images:
            images, earlier = TrainedImages.of(trainer.datamodule.train_annotations), trainer.datamodule.trained_images
            self.trained_images = {TRAINED_IMAGES: (images.joined(earlier) if earlier else images).record()}

    def evaluates(self, trainer: pl.Trainer) -> bool:
        """Whether the current validation computes and logs the metrics."""
        if trainer.sanity_checking:
            return False
        if trainer.state.fn != "fit" or self.row.checkpoint_epoch is not None or is_last_epoch(trainer):
            return True
        if any(isinstance(c, RelativeEarlyStopping) and c.may_stop(trainer) for c in trainer.callbacks):
            return True  # whether it does stop is only known once all images have gone through the network
        epochs = trainer.current_epoch + 1 - self.ap_epoch_start  # since the first one that may be evaluated
        if epochs < 0 or self.ap_epoch_freq == "auto":
            return epochs >= 0
        # Whether an evaluation became due since the previous validation: not every epoch is validated.
        before = epochs - epochs_since_validation(trainer, self._validated)
        return epochs // self.ap_epoch_freq > before // self.ap_epoch_freq

    def state_dict(self) -> dict[str, Any]:
        """The epoch of the latest validation, for a run that is resumed."""
        return {"validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self._validated = state_dict["validated"]

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        """Adds the detections of the batch."""
        if self.evaluates(trainer):
            self._update("validation", outputs, batch)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        """Adds the detections of the batch."""
        self._update("test", outputs, batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the metrics, and keeps each channel's best score threshold for the next checkpoint."""
        if self.evaluates(trainer):
            self.latest = self._log("validation", trainer, log_prefix(trainer))
            names = [log_name("best_threshold", channel) for channel in self.channel_names]
            self.score_thresholds = torch.tensor([self.latest[name] for name in names])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the epoch."""
        if not trainer.sanity_checking and self.row.checkpoint_epoch is None:
            self._validated = trainer.current_epoch

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the metrics."""
        self._log("test", trainer, "test")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the latest score thresholds and metrics, and the settings and data that they were measured with.

        By now, the averaged weights are already in the checkpoint.
        """
        if self.score_thresholds is not None:
            checkpoint["state_dict"]["score_thresholds"] = self.score_thresholds.clone()
        if self.latest:
            checkpoint[METRICS_KEY] = dict(self.latest)
        checkpoint[EVALUATION_KEY] = {
            "channel_members": channel_members(trainer.datamodule.keypoint_channels, self.channel_names),
            "empty_channels": trainer.datamodule.empty_channels,
            "distances": self.threshold_distances,
            "threshold_unit": self.threshold_unit,
            "fingerprints": dict(trainer.datamodule.split["fingerprints"]),
            **self.trained_images,
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the thresholds and metrics, until the next validation computes new ones, and the training images."""
        self.latest = dict(checkpoint.get(METRICS_KEY, {}))
        recorded = checkpoint.get(EVALUATION_KEY, {})
        self.trained_images = {name: recorded[name] for name in (TRAINED_IMAGES,) if name in recorded}
        thresholds = checkpoint["state_dict"].get("score_thresholds")
        if thresholds is not None and len(thresholds) == len(self.channel_names):
            self.score_thresholds = thresholds.cpu().clone()

    def _update(self, stage: str, outputs: dict[str, Tensor], batch: Batch) -> None:
        update_metrics(self.metrics[stage].values(), batch, outputs["xy"], outputs["scores"], self.threshold_unit)

    def _log(self, stage: str, trainer: pl.Trainer, prefix: str) -> dict[str, float]:
        values = metric_values(self.metrics[stage])
        for metric in self.metrics[stage].values():
            metric.reset()
        self.row.add(trainer, {f"{prefix}/{name}": value for name, value in values.items()})
        return values
