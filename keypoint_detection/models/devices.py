"""Small tensors on their way from the CPU to where the network is."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. The CPU does not wait for the copy where that is safe.

    CUDA copies what is not pinned aside before it goes on. MPS reads it later, and by then it may be gone and its
    memory hold anything (pytorch issue 189690).

    Args:
        tensor: Any tensor.
        device: Where to.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
