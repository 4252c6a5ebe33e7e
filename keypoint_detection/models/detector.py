"""The detector: backbone, one convolution, loss and decoding, as a LightningModule whose steps only return tensors.

B batch, C channels, N decoded keypoints, H W image, h w heatmap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from typing import IO, Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from keypoint_detection import heatmaps
from keypoint_detection.batch import Batch
from keypoint_detection.models import hyperparameters, optimization
from keypoint_detection.models.backbones import build_backbone
from keypoint_detection.models.backbones.layers import as_in_inference
from keypoint_detection.models.checkpoint_file import VERSION_KEY, check_known
from keypoint_detection.models.detections import Detections, decode_detections, predicted_heatmaps
from keypoint_detection.models.fine_tuning import MatchReport, match_weights
from keypoint_detection.models.losses import counted_cells, evaluate_loss
from keypoint_detection.models.targets import loss_targets
from keypoint_detection.version import library_version

# Heatmaps start at this value: most cells of the true ones are 0 (Lin et al. 2017, Focal Loss for Dense Detection), and
# below the threshold of a peak, nothing is detected.
_PRIOR = 0.005


class KeypointDetector(pl.LightningModule):
    """Detects any number of keypoints of each channel in images of any size.

    Args:
        keypoint_channels: Names of the C channels.
        heatmap_sigma: Standard deviation of the Gaussian at each keypoint, in pixels of the network's input.
        heatmap_stride: Pixels of the network's input per cell of the heatmaps: 1, 2 or 4.
        learning_rate: Highest learning rate of AdamW; that of Muon's kernels is 10/3 of it.
        backbone_type: Name of the backbone in `BACKBONES`.
        backbone: Arguments of the backbone by name; those left out have the backbone's defaults.
        loss: Name of the loss in `LOSSES`.
        loss_arguments: Arguments of the loss by name; those left out have the loss's defaults.
        image_size: Height and width in pixels that images are letterboxed to, None for images as they are.
        max_keypoints: Maximum number of keypoints that are decoded per channel and image. By default 20, or in training
            1.5 times as many as the fullest image holds, if that is more.
        keypoint_channel_max_keypoints: The same for each channel, -1 for `max_keypoints`. None for -1 everywhere.
        minimal_keypoint_extraction_pixel_distance: If the cells of two peaks of one channel are this close in x and in
            y, only the higher one is decoded. In pixels of the network's input, rounded down to whole cells, at least
            one. The decoded keypoints, which lie anywhere in their cells, may be closer.
        optimizer: Optimiser: muon (orthogonal steps for convolution kernels that are not pretrained, AdamW for the
            rest) or adamw.
        weight_decay: Weight decay of all weights except biases and those of normalisation layers.
        learning_rate_schedule: Learning rate schedule: cosine_to_half (for averaged weights), cosine (to 0), one_cycle,
            constant or plateau (falls when the validation loss stops falling).
        learning_rate_warmup: Share of the training, in [0, 1), in which the learning rate rises; not for plateau.
        plateau_factor: Factor that the plateau schedule multiplies the learning rate by.
        plateau_patience: Number of validated epochs that the plateau schedule waits for a lower validation loss.
        plateau_relative_threshold: Fraction by which the validation loss has to fall to count as lower for the plateau
            schedule.
        encoder_learning_rate_factor: Learning rate of the backbone's encoder, as a multiple of learning_rate.
        freeze_encoder_epochs: The backbone's encoder is frozen for this many epochs at the start; -1 for all of them.
        load_pretrained: False does not load pretrained weights of the backbone, because others will replace them.

    Raises:
        InputError: for a value out of its range, or an unknown name; lists the valid ones.
    """

    score_thresholds: Tensor  # (C,) score from which a detection of each channel counts, NaN if unknown

    def __init__(
        self,
        keypoint_channels: list[str],
        *,
        heatmap_sigma: float,
        heatmap_stride: int,
        learning_rate: float,
        backbone_type: str = "Unet",
        backbone: dict[str, Any] | None = None,
        loss: str = "bce",
        loss_arguments: dict[str, Any] | None = None,
        image_size: list[int] | None = None,
        max_keypoints: int | None = None,
        keypoint_channel_max_keypoints: list[int] | None = None,
        minimal_keypoint_extraction_pixel_distance: float = 1.0,
        optimizer: str = "muon",
        weight_decay: float = 0.05,
        learning_rate_schedule: str = "cosine_to_half",
        learning_rate_warmup: float = 0.08,
        plateau_factor: float = 0.3,
        plateau_patience: int = 5,
        plateau_relative_threshold: float = 0.01,
        encoder_learning_rate_factor: float = 1.0,
        freeze_encoder_epochs: int = 0,
        load_pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["load_pretrained"], logger=False)  # the training run logs all its flags
        hyperparameters.complete(self.hparams)
        self.backbone = build_backbone(backbone_type, heatmap_stride, self.hparams.backbone)
        hyperparameters.check_encoder(self.hparams, self.backbone)
        if load_pretrained:
            self.backbone.load_pretrained()
        channels = len(self.hparams.keypoint_channels)
        self.head = nn.Conv2d(self.backbone.out_channels, channels, kernel_size=1)
        nn.init.normal_(self.head.weight, std=1e-2)
        nn.init.constant_(self.head.bias, math.log(_PRIOR / (1 - _PRIOR)))
        self.register_buffer("score_thresholds", torch.full((channels,), math.nan))
        self._encoder_is_frozen = self._validated = False
        encoder = (parameter for module in self.backbone.encoder_modules() for parameter in module.parameters())
        self._encoder_parameters = [parameter for parameter in encoder if parameter.requires_grad]
        self.to(dtype=torch.float32, memory_format=torch.channels_last)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | PathLike[str] | IO[bytes],
        map_location: Any = None,
        hparams_file: str | PathLike[str] | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **overrides: Any,
    ) -> KeypointDetector:
        """Load a trained detector. This needs only the checkpoint, and runs no code from it.

        Like every new module of torch, it is in training mode: call `eval()` before you call it yourself. `detect` and
        a trainer's validation do not need that.

        Args:
            checkpoint_path: A checkpoint that a trainer wrote.
            map_location: Device to load to, see `torch.load`; by default, the one that the weights were saved from.
            hparams_file: See Lightning.
            strict: See Lightning.
            weights_only: False lets a checkpoint run code: only for files that you trust.
            overrides: Hyperparameters that replace those of the checkpoint.

        Raises:
            InputError: for a hyperparameter that the detector does not take.
        """
        hyperparameters.check_overrides(cls, overrides)
        return super().load_from_checkpoint(
            checkpoint_path, map_location, hparams_file, strict, weights_only, load_pretrained=False, **overrides
        )

    def load_matching_weights(self, checkpoint: str | PathLike[str] | Mapping[str, Any]) -> MatchReport:
        """Start from the weights of a trained detector, which may have other channels.

        Copies the weights of the backbone whose name and shape match, and those of the head for all shared channels.

        Args:
            checkpoint: A file that `load_checkpoint` reads, or what it read.

        Returns:
            What was copied and what was not.

        Raises:
            InputError: when the file is not a checkpoint of a detector.
        """
        state, report = match_weights(self.state_dict(), list(self.hparams.keypoint_channels), checkpoint)
        self.load_state_dict(state, strict=False)
        return report

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the version of this library into a checkpoint."""
        checkpoint[VERSION_KEY] = library_version()
        checkpoint["validated"] = self._validated

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reject unknown hyperparameters, and restore whether there is a new validation loss for a plateau."""
        known = {*self.hparams, "load_pretrained"}  # which `load_from_checkpoint` adds
        check_known("the checkpoint", checkpoint.get("hyper_parameters", ()), known, checkpoint.get(VERSION_KEY))
        self._validated = checkpoint.get("validated", False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of the heatmaps.

        Args:
            images: `(B, 3, H, W)` RGB in [0, 1], H and W at least 1.

        Returns:
            `(B, C, ceil(H / stride), ceil(W / stride))`, in 32 bits even if the backbone computes in 16. In 16 bits,
            neighbouring cells of most peaks would be equal after rounding, and resolving such ties is slow.
        """
        features = self.backbone(images)
        device = features.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return self.head(features)
        with torch.autocast(device, enabled=False):
            return self.head(features.to(self.head.weight.dtype))

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Tensor | None = None) -> Detections:
        """Find keypoints. A detector in training mode computes as in inference, too, and its state does not change.

        Args:
            images: `(B, 3, H, W)` RGB in [0, 1].
            sizes: `(B, 2)` height and width of the part of each image that is not padding, None without padding.

        Returns:
            Keypoints in pixels of `images`.
        """
        with as_in_inference(self):
            logits = self(images)
        probabilities = predicted_heatmaps(logits, images, sizes, self.hparams.heatmap_stride)
        return self._decode(probabilities, torch.tensor([images.shape[-2:]] * len(images)) if sizes is None else sizes)

    def training_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Returns:
            `loss`, the mean over channels; `losses` `(C,)` per channel; `gt_losses` `(C,)`, the value that BCE
            converges to, NaN for other losses; `weights` `(C,)`, the number of cells that these are means over.
        """
        return self._losses(self(batch.images), batch)

    def validation_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        """Compute the loss and the keypoints of a batch.

        Returns:
            `losses`, `gt_losses` and `weights` as for training; `xy` `(B, C, N, 2)` in pixels of the image files and
            `scores` `(B, C, N)`; `heatmaps` `(B, C, h, w)` as predicted, 0 in padding.
        """
        logits = self(batch.images)
        losses = self._losses(logits, batch)
        probabilities = predicted_heatmaps(logits, batch.images, batch.sizes, self.hparams.heatmap_stride)
        xy, scores = self._decode(probabilities, batch.sizes)
        del losses["loss"]
        xy = heatmaps.transform_points(xy, batch.transforms)
        return {**losses, "xy": xy, "scores": scores, "heatmaps": probabilities}

    def test_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        """See `validation_step`."""
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        """Find the keypoints of a batch.

        Returns:
            `xy` `(B, C, N, 2)` in pixels of the image files, NaN for none, `scores` `(B, C, N)`, and `indices` `(B,)`,
            the index of each image in the dataset (-1 for none).
        """
        xy, scores = self.detect(batch.images, batch.sizes)
        xy = heatmaps.transform_points(xy, batch.transforms)
        # A trainer keeps what is returned, and memory shared with a worker of the loader keeps a file open.
        return {"xy": xy, "scores": scores, "indices": batch.indices.clone()}

    def _losses(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        values = self.hparams
        targets = loss_targets(batch, values.heatmap_sigma, values.heatmap_stride)
        losses, gt_losses = evaluate_loss(values.loss, values.loss_arguments, logits, targets)
        weights = counted_cells(targets.mask)
        counted = (weights > 0).sum().clamp(min=1)
        return {"loss": losses.sum() / counted, "losses": losses.detach(), "gt_losses": gt_losses, "weights": weights}

    def _decode(self, probabilities: Tensor, sizes: Tensor) -> Detections:
        values = self.hparams
        distance, stride = values.minimal_keypoint_extraction_pixel_distance, values.heatmap_stride
        return decode_detections(probabilities, sizes, hyperparameters.keypoint_caps(values), distance, stride)

    def configure_optimizers(self) -> dict[str, Any]:
        """Build the optimiser and the schedule, which is as long as the trainer's run."""
        values = self.hparams
        rates = {"learning_rate": values.learning_rate, "encoder_factor": values.encoder_learning_rate_factor}
        hidden = self.backbone.untrained_modules() if values.optimizer == "muon" else None
        groups = optimization.parameter_groups(
            self, self.backbone.encoder_modules(), **rates, weight_decay=values.weight_decay, hidden=hidden
        )
        optimizer = optimization.build_optimizer(groups, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": optimization.build_schedule(optimizer, self.trainer, values)}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a schedule; for a plateau, only epochs with a validation count."""
        if metric is None or self._validated:
            super().lr_scheduler_step(scheduler, metric)
            self._validated = False

    def on_validation_end(self) -> None:
        """Note that there is a new loss for a plateau."""
        self._validated = self.trainer.global_step > 0 and not self.trainer.sanity_checking

    def on_train_epoch_start(self) -> None:
        """Freeze or unfreeze the encoder."""
        if (epochs := self.hparams.freeze_encoder_epochs) == 0:
            return
        self._encoder_is_frozen = epochs == -1 or self.current_epoch < epochs
        self.backbone.train()  # not only the encoder: the backbone decides which parts stay in evaluation mode
        if self._encoder_is_frozen:
            for module in self.backbone.encoder_modules():
                module.eval()
        for parameter in self._encoder_parameters:
            # Processes agree at the start of training on what has a gradient, so several of them have to compute it.
            parameter.requires_grad_(not self._encoder_is_frozen or self.trainer.world_size > 1)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of a frozen encoder: an optimiser does not change weights without a gradient."""
        if self._encoder_is_frozen:
            for parameter in self._encoder_parameters:
                parameter.grad = None
