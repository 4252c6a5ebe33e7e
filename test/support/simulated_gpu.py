"""A GPU that is not there: tensors that say they lie on it and compute on the CPU.

What a GPU refuses is an error here too: tensors of both devices in one operation, and a look at values from Python that
does not copy them. What a GPU makes the program wait for is counted.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from keypoint_detection.train.checkpoint_io import AtomicCheckpointIO

GPU = torch.device("cuda", 0)
# What these return, or its size, depends on values, which a GPU is asked for.
ASKING = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "equal", "bincount"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# Other operations take a tensor of a single number from the CPU.
STRICT = ("cat", "stack", "_foreach", "_fused", "scatter", "gather")


class OnGpu(torch.Tensor):
    """A tensor on the simulated GPU."""

    inner: torch.Tensor
    device = property(lambda self: GPU)
    is_cuda, is_cpu, is_meta = True, False, False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device="meta",  # for the parts of torch that would ask the driver of a GPU
        )  # fmt: skip

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of the simulation")

    def tolist(self):
        return self.cpu().tolist()


def is_gpu(device):
    return device is not None and torch.device(device).type in ("cuda", "meta")


def on_cpu(values):
    """The same values in tensors of the CPU, wherever they lie in a tree of containers."""
    return tree_map_only(OnGpu, lambda value: value.inner, values)


class SimulatedGpu(TorchDispatchMode):
    """While it is active there is a GPU, which a Trainer with `accelerator="cpu"` trains on.

    Attributes:
        waits: How often the program has waited for the GPU, by what it waited for.
    """

    def __init__(self):
        super().__init__()
        self.waits = Counter()

    def __enter__(self):
        with ExitStack() as changes:  # undone at once where one of them fails
            self._replace(changes.enter_context(pytest.MonkeyPatch.context()))
            swap, lift = torch.__future__.set_swap_module_params_on_conversion, torch._C._set_only_lift_cpu_tensors
            changes.callback(swap, torch.__future__.get_swap_module_params_on_conversion())
            changes.callback(lift, torch._C._only_lift_cpu_tensors())
            swap(True)
            lift(True)
            self._changes = changes.pop_all()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._changes.close()

    def _replace(self, patch):
        """Replace what would look for a GPU."""
        waits, make, save = self.waits, SingleDeviceStrategy.__init__, AtomicCheckpointIO.save_checkpoint

        class Event:
            def record(self):
                pass

            def synchronize(self):
                waits["event"] += 1

        def make_on_gpu(strategy, *args, **kwargs):
            make(strategy, *args, **kwargs)
            strategy._root_device = GPU

        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(16, dtype=torch.uint8))
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        patch.setattr(SingleDeviceStrategy, "__init__", make_on_gpu)
        patch.setattr(SingleDeviceStrategy, "teardown", lambda strategy: None)  # moves to the CPU what has a gradient
        patch.setattr(CPUAccelerator, "setup_device", lambda accelerator, device: None)
        patch.setattr(
            AtomicCheckpointIO, "save_checkpoint", lambda io, values, path, **_: save(io, on_cpu(values), path)
        )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        from_gpu = any(isinstance(tensor, OnGpu) for tensor in tensors)
        device = kwargs.get("device")
        to_gpu = from_gpu if device is None else is_gpu(device)
        if not from_gpu and not to_gpu:
            return func(*args, **kwargs)
        self._look(func.overloadpacket.__name__, tensors, from_gpu, to_gpu, args, kwargs)
        inner_args, inner_kwargs = on_cpu((args, {**kwargs, "device": torch.device("cpu")} if device else kwargs))
        out = func(*inner_args, **{name: value for name, value in inner_kwargs.items() if name != "non_blocking"})
        if not to_gpu:
            return out
        out = tree_map_only(torch.Tensor, OnGpu, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if from_gpu else out

    def _look(self, name, tensors, from_gpu, to_gpu, args, kwargs):
        """Count what a GPU would be waited for, and refuse what it would."""
        if name in ("_to_copy", "copy_"):
            across = from_gpu != to_gpu if name == "_to_copy" else len({isinstance(t, OnGpu) for t in tensors}) == 2
            waits = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,)))
            if across and waits:
                self.waits["copy"] += 1
            return
        asks = name in ASKING
        if name in INDEXING:
            indices = [index for index in args[1] if index is not None]
            asks = any(index.dtype == torch.bool or not isinstance(index, OnGpu) for index in indices)
            tensors = [args[0], *args[2:3]]
        if not from_gpu:
            return
        if asks:
            self.waits[name] += 1
        for tensor in tensors:
            if not isinstance(tensor, OnGpu) and (tensor.ndim or name.startswith(STRICT)):
                raise RuntimeError(f"{name}: expected all tensors on one device, found some on the GPU and the CPU")
