"""What it brings that a process keeps the memory that a network frees, each way in processes of its own.

`python benchmarks/freed_memory.py` as any other benchmark; the processes that it starts print milliseconds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from harness import THREADS, Row, main, milliseconds
from options import batch_of, new_detector, step_of

from keypoint_detection.allocator import TRAINING_BYTES, keep_freed_memory

ROUNDS = 3  # of both ways in turn
REPEATS = 15
WORK = {
    "small": "a training step, Unet defaults, batch 4, 256x256",
    "large": "a training step, Unet defaults, batch 16, 512x512",
    "image": "inference, one 640x480 image, network alone",
}
CHANNELS = 4


def task(name: str) -> Callable[[], object]:
    """The work of that name."""
    if name == "image":
        detector, image = new_detector(CHANNELS).eval(), torch.rand(1, 3, 480, 640)
        return torch.inference_mode()(lambda: detector(image))
    batch = batch_of(4, CHANNELS, 4, 256, 256) if name == "small" else batch_of(16, CHANNELS, 4, 512, 512)
    return step_of(new_detector(CHANNELS), batch)


def in_process(name: str, keep: bool) -> float:
    """Median milliseconds, in a new process."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, __file__, "--child", name, str(keep)]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    return float(output.split()[-1])


def child(name: str, keep: bool) -> None:
    """What such a process does."""
    torch.set_num_threads(THREADS)
    if keep:
        keep_freed_memory(TRAINING_BYTES)
    work = task(name)
    work()
    print(statistics.median(milliseconds(work) for _ in range(REPEATS)))


def run() -> list[Row]:
    """All of them."""
    rows = []
    for name, text in WORK.items():
        times = [(in_process(name, True), in_process(name, False)) for _ in range(ROUNDS)]
        kept, given_back = (statistics.median(column) for column in zip(*times, strict=True))
        row = Row("freed memory kept (on)", text, kept, "given back to the system", given_back)
        rows.append(row)
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3] == "True")
    else:
        main({"freed_memory": run}, __doc__)
