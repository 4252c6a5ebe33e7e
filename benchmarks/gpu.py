"""What PyTorch offers for NVIDIA GPUs, each option against the same without it; no rows if there is no such GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from harness import Row, batch_of, compare, main, wait_for
from options import BATCH, REPEATS, WORK, new_detector, step_of
from pytorch_lightning.utilities import move_data_to_device
from torch import nn

from keypoint_detection.batch import Batch

WIDTH = 2048  # of the network that multiplies matrices


def to_device(batch: Batch, device: str) -> Batch:
    """The batch on the device, moved as in training."""
    return move_data_to_device(batch, torch.device(device))._replace(sizes=batch.sizes)


def precisions(device: str) -> list[Row]:
    """Training steps in 16 bits."""
    batch = to_device(batch_of(*BATCH), device)
    rows = []
    for name, precision in (("16-mixed (off)", torch.float16), ("bf16-mixed (on)", torch.bfloat16)):
        ours, plain = (step_of(new_detector().to(device), batch, precision=kind) for kind in (precision, None))
        rows.append(compare(Row(f"{name}, {device}", WORK, 0, "float32"), ours, plain, REPEATS))
    return rows


def tf32_of_convolutions(device: str) -> Row:
    """Training steps with convolutions in TF32, which training allows."""
    step = step_of(new_detector().to(device), to_device(batch_of(*BATCH), device))

    def with_tf32(allowed: bool) -> None:
        torch.backends.cudnn.allow_tf32 = allowed
        step()

    before = torch.backends.cudnn.allow_tf32
    row = Row(f"TF32 for convolutions (on), {device}", WORK, 0, "float32")
    row = compare(row, lambda: with_tf32(True), lambda: with_tf32(False), REPEATS)
    torch.backends.cudnn.allow_tf32 = before
    return row


def tf32_of_matrices(device: str, width: int = WIDTH) -> Row:
    """Matrix products in TF32, which training allows."""
    network = nn.Sequential(*(nn.Linear(width, width) for _ in range(4))).to(device)
    inputs = torch.rand(width, width, device=device)

    def with_precision(precision: str) -> None:
        torch.set_float32_matmul_precision(precision)
        network(inputs).sum().backward()
        wait_for(device)

    before = torch.get_float32_matmul_precision()
    row = Row(f"TF32 for matrix products (on), {device}", f"4 linear layers of {width} on {width} rows", 0, "float32")
    row = compare(row, lambda: with_precision("high"), lambda: with_precision("highest"), REPEATS)
    torch.set_float32_matmul_precision(before)
    return row


def pinned_memory(device: str, pin: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.pin_memory) -> Row:
    """Transfer of batches from pinned memory, into which a thread of the loader copies them."""
    batch = batch_of(*BATCH)
    pinned = Batch(*(None if tensor is None else pin(tensor) for tensor in batch))

    def transfer(batch: Batch) -> None:
        to_device(batch, device)
        wait_for(device)

    row = Row(f"pinned memory (on), {device}", "transfer of a batch of 4, 256x256", 0, "memory that is not pinned")
    return compare(row, lambda: transfer(pinned), lambda: transfer(batch), 21)


def run() -> list[Row]:
    """Measure all of them, if there is such a GPU."""
    if not torch.cuda.is_available():
        return []
    return [*precisions("cuda"), tf32_of_convolutions("cuda"), tf32_of_matrices("cuda"), pinned_memory("cuda")]


if __name__ == "__main__":
    main({"gpu": run}, __doc__)
