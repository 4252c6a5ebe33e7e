"""Copies small tensors from the CPU to the network's device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor from the CPU to a device. The CPU does not wait for the copy if that is safe.

    CUDA first copies memory that is not pinned to a buffer of its own. MPS reads it later, when the tensor may be gone
    and its memory may hold anything (pytorch issue 189690).

    Args:
        tensor: Any tensor.
        device: The target.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
