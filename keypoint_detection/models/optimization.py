"""The optimiser, its parameter groups, and learning rate schedules as functions of training progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from keypoint_detection.models.muon import Muon
from keypoint_detection.models.progress import TrainingProgress

# Where the learning rate of one cycle starts and ends, as fractions of its highest value.
_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_END = 1e-4
# Decay of AdamW's moments. The second is shorter than usual, because a training run may have few steps.
_BETAS = (0.9, 0.99)
# Muon's learning rate of kernels, as a multiple of AdamW's for the other weights.
_KERNEL_RATE = 10 / 3
OPTIMIZERS = ("muon", "adamw")


def constant(progress: float, warmup: float) -> float:
    """Factor of the learning rate: a linear rise, then 1.

    Args:
        progress: Share of the training that is completed, in [0, 1].
        warmup: Share of the training in which the factor rises.

    Returns:
        The factor, in [0, 1].
    """
    return min(progress / warmup, 1.0) if warmup else 1.0


def cosine(progress: float, warmup: float) -> float:
    """Factor of the learning rate: a linear rise, then half a cosine down to 0.

    After Loshchilov and Hutter 2017, SGDR: Stochastic Gradient Descent with Warm Restarts, without restarts. Arguments
    and result as for `constant`.
    """
    return _rise_and_fall(0.0, progress, warmup)


def cosine_to_half(progress: float, warmup: float) -> float:
    """Factor of the learning rate: a linear rise, then half a cosine down to a half.

    For averaged weights: steps that stay large move around a wide minimum, and the average of the weights is near its
    middle (after Izmailov et al. 2018, Averaging Weights Leads to Wider Optima and Better Generalization). Arguments
    and result as for `constant`.
    """
    return _rise_and_fall(0.5, progress, warmup)


def one_cycle(progress: float, warmup: float) -> float:
    """Factor of the learning rate: half a cosine from 1/25 up to 1, then half a cosine down to 1/10,000.

    After Smith and Topin 2018, Super-Convergence. Arguments and result as for `constant`.
    """
    if progress < warmup:
        return _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * (1 - math.cos(math.pi * progress / warmup)) / 2
    return _rise_and_fall(_ONE_CYCLE_END, progress, warmup)


def _rise_and_fall(end: float, progress: float, warmup: float) -> float:
    """A linear rise to 1, then half a cosine down to `end`."""
    if progress < warmup:
        return progress / warmup
    share = (progress - warmup) / (1 - warmup)
    return end + (1 - end) * (1 + math.cos(math.pi * share)) / 2


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "cosine_to_half": cosine_to_half,
    "one_cycle": one_cycle,
}
# Not a function of progress: it depends on the loss.
PLATEAU = "plateau"


def parameter_groups(
    module: nn.Module,
    encoder: list[nn.Module],
    *,
    learning_rate: float,
    weight_decay: float,
    encoder_factor: float,
    hidden: list[nn.Module] | None = None,
) -> list[dict[str, object]]:
    """Split parameters into groups for an optimiser.

    Weights of one dimension (norms and biases) are not decayed, and an encoder has its own learning rate.

    Args:
        module: The whole network.
        encoder: The modules within it that make up its encoder.
        learning_rate: Learning rate of all other weights; that of kernels with orthogonal steps is 10/3 of it.
        weight_decay: Weight decay of weights of two or more dimensions.
        encoder_factor: Learning rate of the encoder as a multiple of `learning_rate`.
        hidden: For `Muon`, the modules whose convolution kernels get orthogonal steps if they have at least 8 input and
            8 output channels, which leaves out depthwise kernels and those on the colours of an image. None for AdamW.

    Returns:
        One dictionary per group that is not empty, with `name`, `params`, `lr` and `weight_decay`, and for `Muon` also
        `orthogonal`.
    """
    in_encoder = {id(p) for part in encoder for p in part.parameters()} if encoder_factor != 1 else set()
    kernels = {id(p) for part in hidden or [] for p in part.parameters() if p.ndim == 4 and min(p.shape[:2]) >= 8}
    groups: dict[str, dict[str, object]] = {}
    for parameter in module.parameters():
        encoded, decayed, orthogonal = id(parameter) in in_encoder, parameter.ndim > 1, id(parameter) in kernels
        name = "encoder" if encoded else "network"
        name += "_kernels" if orthogonal else "" if decayed else "_norms_and_biases"
        group = groups.setdefault(
            name,
            {
                "name": name,
                "params": [],
                "lr": learning_rate * (encoder_factor if encoded else 1.0) * (_KERNEL_RATE if orthogonal else 1.0),
                "weight_decay": weight_decay if decayed else 0.0,
                **({} if hidden is None else {"orthogonal": orthogonal}),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def current_learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The current learning rate in terms of the flag `learning_rate`: not that of the encoder or of orthogonal steps.

    Args:
        optimizer: An optimiser with the groups of `parameter_groups`, one of which always has the head's bias.
    """
    return next(group["lr"] for group in optimizer.param_groups if group["name"] == "network_norms_and_biases")


def build_optimizer(groups: list[dict[str, object]], trainer: pl.Trainer) -> torch.optim.Optimizer:
    """Build Muon or AdamW (Loshchilov and Hutter 2019), with AdamW's fused kernel if possible.

    Args:
        groups: Parameter groups. If they have the key `orthogonal`, the optimiser is Muon.
        trainer: The trainer whose precision and gradient clipping the optimiser has to suit.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    if "orthogonal" in groups[0]:
        return Muon(groups, _BETAS, fused)
    # The fused kernel undoes the scaling of float16 gradients itself, which is too late for clipping them. Lightning
    # refuses to clip for it in bf16 as well, although there is no scaling.
    clips_mixed = str(trainer.precision).endswith("mixed") and trainer.gradient_clip_val is not None
    return torch.optim.AdamW(groups, betas=_BETAS, fused=fused and not clips_mixed)


def build_schedule(optimizer: torch.optim.Optimizer, trainer: pl.Trainer, values: Any) -> dict[str, Any]:
    """Build the learning rate schedule, in the form that Lightning takes.

    Args:
        optimizer: An optimiser whose groups have the highest learning rates.
        trainer: The trainer whose run the schedule spans.
        values: The detector's hyperparameters.

    Returns:
        What Lightning expects as `lr_scheduler`.
    """
    name, warmup = values.learning_rate_schedule, values.learning_rate_warmup
    if name == PLATEAU:
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            factor=values.plateau_factor,
            patience=values.plateau_patience,
            threshold=values.plateau_relative_threshold,
            threshold_mode="rel",
        )
        return {"scheduler": scheduler, "interval": "epoch", "monitor": "validation/loss", "strict": False}
    shape = SCHEDULES[name]
    progress = _no_progress if name == "constant" and not warmup else TrainingProgress(trainer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: shape(progress(step), warmup))
    return {"scheduler": scheduler, "interval": "step"}


def _no_progress(step: int) -> float:
    return 1.0
