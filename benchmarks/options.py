"""PyTorch's options, each against a training step without it, and how the cost of a step grows with channels and size.

Also measured: this library's binary cross-entropy against torch's.
"""

from __future__ import annotations

import copy
import resource
from collections.abc import Callable
from dataclasses import replace

import torch
from harness import DETECTOR_VALUES, Row, batch_of, compare, main, optimizer_of, wait_for
from torch import Tensor
from torch.nn import functional as F

from keypoint_detection import heatmaps
from keypoint_detection.batch import Batch
from keypoint_detection.models.detector import KeypointDetector
from keypoint_detection.models.losses import LOSSES, LossTargets, channel_mean
from keypoint_detection.train.device_speed import compile_backbone

REPEATS = 5
BATCH = (4, 4, 20, 256, 256)  # images, channels, keypoints, height, width
WORK = "a training step, Unet defaults, batch 4, 256x256"
# In the unit of `ru_maxrss` on Linux, kibibytes. It is the peak of everything that this process did.
GIBIBYTE = 2**20


def step_of(
    detector: KeypointDetector, batch: Batch, fused: bool = True, precision: torch.dtype | None = None
) -> Callable[[], None]:
    """One training step without gradient clipping and averaged weights; the defaults are those of training."""
    optimizer, device = optimizer_of(detector), detector.device.type
    scaler = torch.amp.GradScaler(device, enabled=precision is torch.float16)  # scales what is too small for 16 bits
    if not fused:
        for group in optimizer.param_groups:
            group["fused"] = False

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, precision, enabled=precision is not None):
            loss = detector.training_step(batch)["loss"]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        wait_for(device)

    return step


def new_detector(channels: int = 4) -> KeypointDetector:
    """An untrained detector with the defaults."""
    torch.manual_seed(0)
    return KeypointDetector([f"channel{i}" for i in range(channels)], **DETECTOR_VALUES)


def offered() -> list[Row]:
    """A step with each option, on or off by default, against a step without it."""
    batch = batch_of(*BATCH)
    contiguous = new_detector().to(memory_format=torch.contiguous_format)
    pairs = (
        (
            "fused optimiser (on)",
            step_of(new_detector(), batch),
            "AdamW's part in a loop",
            {"fused": False},
        ),
        ("weights in channels_last (on)", step_of(new_detector(), batch), "default memory format", {}),
        ("bf16 (off)", step_of(new_detector(), batch, precision=torch.bfloat16), "float32", {}),
    )
    rows = []
    for name, ours, baseline, arguments in pairs:
        plain = step_of(contiguous if "channels_last" in name else new_detector(), batch, **arguments)
        rows.append(compare(Row(name, WORK, 0, baseline), ours, plain, REPEATS))
    compiled = new_detector()
    if compile_backbone(compiled):
        row = Row("--compile (off)", WORK, 0, "without", note="the first step, which compiles, does not count")
        rows.append(compare(row, step_of(compiled, batch), step_of(new_detector(), batch), REPEATS))
        image = torch.rand(1, 3, 480, 640)
        eager = new_detector().eval()
        compiled = copy.deepcopy(eager)
        compile_backbone(compiled)
        with torch.inference_mode():
            row = Row("--compile (off)", "inference, one 640x480 image, network alone", 0, "without")
            rows.append(compare(row, lambda: compiled(image), lambda: eager(image), REPEATS))
    return rows


def loss() -> list[Row]:
    """Binary cross-entropy and its gradient against torch's."""
    truth = heatmaps.render(
        torch.rand(4, 32, 1, 2, generator=torch.Generator().manual_seed(0)) * 288, (288, 288), 6.0, 4
    )
    logits = (
        torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
        .sub_(6)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
    )
    everywhere = torch.ones_like(truth, dtype=torch.bool)
    targets = LossTargets(truth, everywhere, everywhere)

    def with_torch(logits: Tensor, targets: LossTargets) -> Tensor:
        values = F.binary_cross_entropy_with_logits(logits, targets.heatmaps, reduction="none")
        return channel_mean(values, targets.mask)

    row = Row(
        "BCE and its gradient",
        "4 images x 32 channels x 72x72, channels_last",
        0,
        "torch's binary_cross_entropy_with_logits",
    )

    def in_training(logits: Tensor, targets: LossTargets) -> Tensor:
        return LOSSES["bce"](logits.contiguous(), targets)  # as `evaluate_loss` passes them

    ours, baseline = (lambda way=way: way(logits, targets).sum().backward() for way in (in_training, with_torch))
    return [compare(row, ours, baseline, 21)]


def large() -> list[Row]:
    """Many channels against few, and a large image against as many pixels in images of the usual size."""
    rows = []
    for name, batch, pieces, count in (
        ("50 channels", batch_of(1, 50, 4, 256, 256), batch_of(1, 4, 4, 256, 256), 1),
        ("1920x1080", batch_of(1, 4, 4, 1080, 1920), batch_of(1, 4, 4, 270, 480), 16),
    ):
        ours = step_of(new_detector(batch.keypoints.shape[1]), batch)
        small = step_of(new_detector(), pieces)

        def baseline(small: Callable[[], None] = small, count: int = count) -> None:
            for _ in range(count):
                small()

        baseline_name = "16 steps at 480x270" if count > 1 else "4 channels"
        row = compare(Row(f"a training step, {name}", "batch 1", 0, baseline_name), ours, baseline, REPEATS)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIBIBYTE
        rows.append(replace(row, note=f"this process never used more than {peak:.1f} GiB"))
    return rows


def run() -> list[Row]:
    """Measure all of them."""
    return [*loss(), *large(), *offered()]


if __name__ == "__main__":
    main({"options": run}, __doc__)
