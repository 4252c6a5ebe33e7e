"""Two processes that run the same function, each with its rank."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing


def free_port():
    """A port of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_in_two_processes(body: Callable[..., None], *args: Any) -> dict[int, Any]:
    """What `body(rank, *args, results)` has put into `results` as `(rank, value)`; raises what it raised."""
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    spawned = torch.multiprocessing.spawn(body, args=(*args, results), nprocs=2, join=False)
    found, ended = {}, False
    while not ended:
        ended = spawned.join(timeout=0.1)
        while not results.empty():  # a pipe that is full would keep a process from its end
            rank, value = results.get()
            found[rank] = value
    return found
