"""Divides the images of an evaluation or a prediction among several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from keypoint_detection.errors import InputError
from keypoint_detection.wording import first_line

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a command, as seen from one of them.

    Attributes:
        device: Where the network of this process runs.
        rank: Number of this process.
        world: Number of processes.
    """

    device: str
    rank: int = 0
    world: int = 1

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that this process works on."""
        return items[self.rank :: self.world]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks; waits until all processes have called it."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values


def device_of(accelerator: str) -> str:
    """The device on which a single process runs its network.

    Args:
        accelerator: Kind of device, by Lightning's name.

    Returns:
        torch's name of the device, or auto.

    Raises:
        InputError: If this machine has no such device.
    """
    present = [torch.accelerator.current_accelerator().type] if torch.accelerator.is_available() else []
    if accelerator == "gpu" and present:
        return present[0]
    if accelerator not in ("auto", "cpu", *present):
        choices = " or ".join(["auto", "cpu", *present])
        raise InputError(f"--accelerator {accelerator}: not on this machine, expected {choices}")
    return accelerator


def start_processes(
    device: str,
    accelerator: str = "auto",
    devices: int = 1,
    strategy: Literal["auto", "ddp"] = "auto",
    num_nodes: int = 1,
) -> Processes:
    """Starts the processes of a command as Lightning does, or joins those that torchrun or SLURM started.

    Args:
        device: Where the network of a single process runs.
        accelerator: Kind of device: cpu, gpu or auto.
        devices: Processes on each machine, which share the images; start torchrun or srun with as many.
        strategy: How several processes work together: ddp; auto is ddp if there are several.
        num_nodes: Number of machines.

    Returns:
        The processes, seen from this one.

    Raises:
        InputError: If there are not enough devices, or a single `device` is given for several processes.
    """
    if devices == 1 and num_nodes == 1 and strategy == "auto":
        return Processes(device_of(accelerator) if device == "auto" else device)
    if device != "auto":
        raise InputError(f"--device {device}: is for one process, expected --accelerator, such as --accelerator gpu")
    try:
        # A process may have to wait until the slowest one has finished its share.
        ddp = DDPStrategy(timeout=timedelta(days=7))
        fabric = Fabric(accelerator=accelerator, devices=devices, strategy=ddp, num_nodes=num_nodes)
        fabric.launch()
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"--accelerator {accelerator} --devices {devices}: {first_line(error)}") from error
    return Processes(str(fabric.device), fabric.global_rank, fabric.world_size)
