"""How much faster a process is that keeps the memory that a network frees; each way in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from harness import PAUSE, InProcess, Row, batch_of, compare, main
from options import new_detector, step_of

from keypoint_detection.allocator import PREDICTION, TRAINING, keep_freed_memory

REPEATS = 15
CHANNELS = 4
WORK = {
    "small": "a training step, Unet defaults, batch 4, 256x256",
    "large": "a training step, Unet defaults, batch 16, 512x512",
    "image": "inference, one 640x480 image, network alone",
}


def task(name: str, keep: bool) -> Callable[[], object]:
    """The work with that name, in a process that keeps freed memory or gives it back."""
    if keep:
        keep_freed_memory(*(PREDICTION if name == "image" else TRAINING))
    if name == "image":
        detector, image = new_detector(CHANNELS).eval(), torch.rand(1, 3, 480, 640)
        return torch.inference_mode()(lambda: detector(image))
    batch = batch_of(4, CHANNELS, 4, 256, 256) if name == "small" else batch_of(16, CHANNELS, 4, 512, 512)
    return step_of(new_detector(CHANNELS), batch)


def run() -> list[Row]:
    """Compare all kinds of work."""
    rows = []
    for name, text in WORK.items():
        row = Row("freed memory kept (on)", text, 0, "given back to the system")
        with InProcess(task, name, True) as kept, InProcess(task, name, False) as given_back:
            row = compare(row, kept, given_back, REPEATS, PAUSE)
            peaks = f"at most {kept.peak_bytes / 1e9:.2f} and {given_back.peak_bytes / 1e9:.2f} GB in use"
        rows.append(replace(row, note=peaks))
    return rows


if __name__ == "__main__":
    main({"freed_memory": run}, __doc__)
