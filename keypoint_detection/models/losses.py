"""Losses by name: logits and true heatmaps in, one value per channel out.

B batch, C channels, h w heatmap. Every loss returns, for each channel, the mean over all cells in the batch that the
mask leaves in, and 0 for a channel without any. `evaluate_loss` calls it with float32 tensors that are 0 wherever the
mask is False, even if they were NaN. To use your own loss, write a function of the same form and register it:
`LOSSES["mine"] = mine`. Its keyword arguments become flags, so start their names with the loss's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from keypoint_detection import heatmaps
from keypoint_detection.errors import InputError

_BCE_KEYPOINT_WEIGHT = 0.0


class LossTargets(NamedTuple):
    """What a loss compares the logits with.

    Attributes:
        heatmaps: `(B, C, h, w)` true heatmaps in [0, 1].
        positives: `(B, C, h, w)` bool, the cells that hold a keypoint.
        mask: `(B, C, h, w)` bool, False for cells that do not count: padding and channels that are not labelled.
    """

    heatmaps: Tensor
    positives: Tensor
    mask: Tensor


def channel_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average over the cells of each channel, in all images, that the mask leaves in.

    Args:
        values: `(B, C, h, w)`, may be NaN where the mask is False.
        mask: `(B, C, h, w)` bool.

    Returns:
        `(C,)`, 0 for a channel without any such cell.
    """
    if values.is_floating_point() and _leaves_all(mask):
        return values.mean(dim=(0, 2, 3))
    return torch.where(mask, values, 0.0).sum(dim=(0, 2, 3)) / counted_cells(mask).clamp(min=1)


def counted_cells(mask: Tensor) -> Tensor:
    """`(B, C, h, w)` bool -> `(C,)` int64, how many cells of each channel the mask leaves in."""
    if _leaves_all(mask):
        return torch.full(mask.shape[1:2], mask[:, 0].numel())
    return mask.sum(dim=(0, 2, 3))


def _leaves_all(mask: Tensor) -> bool:
    """Whether a mask leaves all cells in, which saves work. Always False on a device that the CPU would wait for."""
    return mask.is_cpu and mask.numel() > 0 and bool(mask.numpy().all())  # torch's `all` takes 17 times as long


def bce(logits: Tensor, targets: LossTargets, *, bce_keypoint_weight: float = _BCE_KEYPOINT_WEIGHT) -> Tensor:
    """Binary cross-entropy of each cell.

    It is smallest if the predicted heatmaps equal the true ones, and then it is their entropy. Both hold for any
    weight, if the entropy has the same weights.

    Args:
        logits: `(B, C, h, w)`.
        targets: True heatmaps.
        bce_keypoint_weight: Additional weight of a cell at a keypoint; elsewhere, it is multiplied by the true heatmap.
            With 0, all cells have equal weight.

    Returns:
        `(C,)`.

    Raises:
        InputError: for a negative weight.
    """
    if not 0 <= bce_keypoint_weight < math.inf:
        raise InputError(f"bce_keypoint_weight is {bce_keypoint_weight}, expected 0 or more")
    values = _BinaryCrossEntropy.apply(logits, targets.heatmaps)
    if bce_keypoint_weight:
        values = values * (1 + bce_keypoint_weight * targets.heatmaps)
    return channel_mean(values, targets.mask)


def mse(logits: Tensor, targets: LossTargets) -> Tensor:
    """Squared difference between the sigmoid of the logits and the true heatmaps.

    Args:
        logits: `(B, C, h, w)`.
        targets: True heatmaps.

    Returns:
        `(C,)`.
    """
    return channel_mean((logits.sigmoid() - targets.heatmaps).square(), targets.mask)


def focal(logits: Tensor, targets: LossTargets, *, focal_alpha: float = 2.0, focal_beta: float = 4.0) -> Tensor:
    """Penalty-reduced focal loss of CornerNet and CenterNet.

    After Law and Deng 2018 and Zhou et al. 2019, Objects as Points. The positive cell is the one that holds the
    keypoint, since no cell of the heatmap equals 1 if keypoints are not at the centres of cells. The papers divide by
    the number of keypoints; here it is a mean over cells, like every loss in this file.

    Args:
        logits: `(B, C, h, w)`.
        targets: True heatmaps and positive cells.
        focal_alpha: Exponent that reduces the weight of cells that are already right.
        focal_beta: Exponent that reduces the weight of negative cells near a keypoint.

    Returns:
        `(C,)`.

    Raises:
        InputError: for an alpha between 0 and 1, with which gradients may be NaN, or a negative exponent.
    """
    if not (focal_alpha == 0 or 1 <= focal_alpha < math.inf) or not 0 <= focal_beta < math.inf:
        raise InputError(
            f"focal_alpha is {focal_alpha} and focal_beta is {focal_beta}, expected 0 or at least 1, and at least 0"
        )
    probability = logits.sigmoid()
    positive = -((1 - probability) ** focal_alpha) * F.logsigmoid(logits)
    negative = -((1 - targets.heatmaps) ** focal_beta) * probability**focal_alpha * F.logsigmoid(-logits)
    return channel_mean(torch.where(targets.positives, positive, negative), targets.mask)


def awing(
    logits: Tensor,
    targets: LossTargets,
    *,
    awing_omega: float = 14.0,
    awing_theta: float = 0.5,
    awing_epsilon: float = 1.0,
    awing_alpha: float = 2.1,
    awing_weight: float = 10.0,
) -> Tensor:
    """Adaptive wing loss on the sigmoid of the logits, with its weighted map.

    After Wang, Bo and Li 2019, Adaptive Wing Loss for Robust Face Alignment via Heatmap Regression: almost linear near
    a keypoint, almost quadratic in the background.

    Args:
        logits: `(B, C, h, w)`.
        targets: True heatmaps.
        awing_omega: Scale of the logarithmic part.
        awing_theta: Difference at which the logarithmic part changes to the linear one.
        awing_epsilon: Width of the logarithmic part, above 0.
        awing_alpha: Exponent in the background, at least 2. Near a keypoint, the heatmap's value is subtracted from it.
        awing_weight: Additional weight of cells where the true heatmap is at least 0.2, and of their neighbours.

    Returns:
        `(C,)`.

    Raises:
        InputError: for an alpha below 2, with which gradients may be NaN, or another argument that is not positive; the
            weight may be 0.
    """
    if not 2 <= awing_alpha < math.inf or not 0 < awing_epsilon < math.inf:
        raise InputError(
            f"awing_alpha is {awing_alpha} and awing_epsilon is {awing_epsilon}, expected at least 2 and more than 0"
        )
    for name, value in (("awing_omega", awing_omega), ("awing_theta", awing_theta)):
        if not 0 < value < math.inf:
            raise InputError(f"{name} is {value}, expected more than 0")
    if not 0 <= awing_weight < math.inf:
        raise InputError(f"awing_weight is {awing_weight}, expected 0 or more")
    truth = targets.heatmaps
    difference = (logits.sigmoid() - truth).abs()
    exponent = awing_alpha - truth
    ratio = (awing_theta / awing_epsilon) ** exponent
    slope = awing_omega / (1 + ratio) * exponent * (awing_theta / awing_epsilon) ** (exponent - 1) / awing_epsilon
    offset = awing_theta * slope - awing_omega * torch.log1p(ratio)
    curved = awing_omega * torch.log1p((difference / awing_epsilon) ** exponent)
    loss = torch.where(difference < awing_theta, curved, slope * difference - offset)
    important = F.max_pool2d(truth, kernel_size=3, stride=1, padding=1) >= 0.2
    return channel_mean(loss * (1 + awing_weight * important), targets.mask)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "bce": bce,
    "mse": mse,
    "focal": focal,
    "awing": awing,
}


def evaluate_loss(
    name: str, arguments: Mapping[str, Any], logits: Tensor, targets: LossTargets
) -> tuple[Tensor, Tensor]:
    """Compute a loss in float32, whatever the precision of training, and the minimum that BCE can reach.

    Args:
        name: Key of `LOSSES`.
        arguments: The loss's own arguments by name.
        logits: `(B, C, h, w)`.
        targets: True heatmaps, positive cells and mask.

    Returns:
        The loss `(C,)`, and the entropy of the true heatmaps `(C,)` with the weights of BCE; NaN for other losses.

    Raises:
        InputError: when the logits and the true heatmaps differ in size, or the loss is not one value per channel.
    """
    if logits.shape != targets.heatmaps.shape:
        sizes = " and ".join("x".join(map(str, shape[1:])) for shape in (logits.shape, targets.heatmaps.shape))
        raise InputError(f"predicted and true heatmaps are {sizes}: expected a backbone with the stride heatmap_stride")
    with torch.autocast(logits.device.type, enabled=False):
        losses = LOSSES[name](*_prepare(logits, targets), **arguments)
    if not isinstance(losses, Tensor) or losses.shape != logits.shape[1:2]:
        got = tuple(losses.shape) if isinstance(losses, Tensor) else losses
        raise InputError(f"loss {name}: expected one value per channel, {tuple(logits.shape[1:2])}, got {got}")
    if name != "bce":
        return losses, torch.full_like(losses, math.nan)
    return losses, _mean_entropy(targets, arguments.get("bce_keypoint_weight", _BCE_KEYPOINT_WEIGHT)).to(losses.dtype)


def _mean_entropy(targets: LossTargets, weight: float) -> Tensor:
    """The entropy of the true heatmaps per channel, `(C,)`, with the weight that BCE gives to keypoints."""
    truth, mask = targets.heatmaps, targets.mask
    if not truth.is_cpu:
        return channel_mean(heatmaps.entropy(truth) * (1 + weight * truth), mask)
    # Most cells are 0, and have no entropy: on a CPU it is faster to find the others.
    cells = torch.from_numpy(np.flatnonzero(truth.float().numpy().ravel() != 0))
    values, counted = truth.flatten()[cells].double(), mask.flatten()[cells]
    entropy = torch.where(counted, heatmaps.entropy(values) * (1 + weight * values), 0.0)
    channels = cells // math.prod(truth.shape[2:]) % truth.shape[1]
    return torch.bincount(channels, entropy, truth.shape[1]) / counted_cells(mask).clamp(min=1)


def _prepare(logits: Tensor, targets: LossTargets) -> tuple[Tensor, LossTargets]:
    """Convert logits and true heatmaps to float32, and set them to 0 where they do not count.

    Masking the loss alone is not enough: the gradient of a masked NaN is 0 * NaN.
    """
    logits, truth = logits.float(), targets.heatmaps.float()
    if _leaves_all(targets.mask):
        return logits.contiguous(), targets._replace(heatmaps=truth)  # same memory order: several times as fast
    return torch.where(targets.mask, logits, 0.0), targets._replace(heatmaps=torch.where(targets.mask, truth, 0.0))


class _BinaryCrossEntropy(torch.autograd.Function):
    """Binary cross-entropy of every cell, with the same gradient as torch's, but accurate for small values.

    If a cell is background and almost right, torch's own subtracts two large numbers. It also takes longer on a CPU,
    where its log1p is slow.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, truth: Tensor) -> Tensor:
        """Finite logits and true heatmaps, floating point and of the same shape -> values of that shape."""
        ctx.save_for_backward(logits, truth)
        small = logits.abs().neg_().exp_()
        above = small + 1
        # log1p(small): the logarithm of the rounded sum, plus a correction for the rounding.
        log = above.log()
        log.addcdiv_(small.sub_(above - 1), above)
        return logits.clamp(min=0).addcmul_(logits, truth, value=-1).add_(log)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of the logits; the true heatmaps get none."""
        logits, truth = ctx.saved_tensors
        return (logits.sigmoid() - truth) * gradient, None  # not in place, so that it is differentiable
