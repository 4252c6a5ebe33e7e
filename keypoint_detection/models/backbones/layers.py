"""Building blocks that the backbones share.

B batch, H W image or feature map.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from keypoint_detection.errors import InputError

Module = TypeVar("Module", bound=nn.Module)


def normalization(channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu and He 2018) in up to 8 groups of at least 4 channels, as far as these divide evenly.

    It does not depend on other images of the batch, so batches of one image train as well, and training and inference
    compute the same.
    """
    return nn.GroupNorm(math.gcd(channels, max(1, min(8, channels // 4))), channels)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation (Ioffe and Szegedy 2015) over the images of all processes.

    All processes keep the same statistics, and train as one process would with all of their images. A single value per
    channel has no variance, so it is normalised as in inference. This happens at the coarsest level of a network if a
    single image is left for the last batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` -> the same shape."""
        if x.device.type == "mps":
            x = x.contiguous()  # gradients with the layout channels_last are wrong on MPS (pytorch issue 175189)
        if not self.training:
            return super().forward(x)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            return self._over_processes(x)
        if x.numel() == self.num_features:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)

    def _over_processes(self, x: Tensor) -> Tensor:
        """Works on any device, unlike torch's own normalisation over processes, which needs GPUs."""
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        count = values.new_full((1,), values[:, 0].numel())  # new_tensor would wait for the device
        total, count = _SumOfProcesses.apply(torch.cat([values.sum((0, 2, 3)), count])).split([self.num_features, 1])
        mean = total / count
        centred = values - mean[:, None, None]
        variance = _SumOfProcesses.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            unbiased = variance * count / (count - 1).clamp_min(1)
            for running, current in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.lerp_(current.to(running.dtype), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _SumOfProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is summed over them, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOfProcesses.forward(ctx, gradient)


def replace_normalization(module: nn.Module, old: type[nn.Module], new: Callable[[Any], nn.Module]) -> None:
    """Replaces all normalisations of one class inside a module, and keeps their scales and shifts.

    Args:
        module: The module that holds them.
        old: Their class.
        new: Makes the replacement for one of them.
    """
    for name, child in module.named_children():
        if isinstance(child, old):
            replacement = new(child)
            kept = {key: value for key, value in child.state_dict().items() if key in ("weight", "bias")}
            replacement.load_state_dict(kept, strict=False)
            setattr(module, name, replacement)
        else:
            replace_normalization(child, old, new)


@contextmanager
def as_in_inference(module: nn.Module) -> Iterator[None]:
    """Puts a module in training mode into evaluation mode; afterwards, each of its parts is in its own mode again."""
    in_training = [part for part in module.modules() if part.training] if module.training else []
    for part in in_training:
        part.training = False
    try:
        yield
    finally:
        for part in in_training:
            part.training = True


def fold_normalization(module: Module) -> Module:
    """Folds batch normalisations into the convolutions before them, in a copy.

    A class declares where that is valid: its `conv_norm_pairs` are pairs of names of its own modules. The output of the
    first must go to the second and nowhere else. Apart from rounding, the copy computes the same, but faster.

    Args:
        module: A module in evaluation mode.

    Returns:
        The copy, which is not for training; the module itself if there is nothing to fold.
    """
    if not any(_foldable_pairs(parent) for parent in module.modules()):
        return module
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for first, second in _foldable_pairs(parent):
            folded = fuse_conv_bn_eval(getattr(parent, first), getattr(parent, second))
            setattr(parent, first, folded.to(memory_format=torch.channels_last))
            setattr(parent, second, nn.Identity())
    return module


def _foldable_pairs(parent: nn.Module) -> list[tuple[str, str]]:
    # Inherited pairs do not count, because a subclass may compute in another order.
    pairs = vars(type(parent)).get("conv_norm_pairs", ())
    return [pair for pair in pairs if _can_fold(*(getattr(parent, name) for name in pair))]


def _can_fold(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether both compute nothing else, and the normalisation does not depend on its batch."""
    # Subclasses, such as those of timm, may standardise the kernels or add an activation, and so may hooks.
    plain = type(conv) is nn.Conv2d and type(norm) in (nn.BatchNorm2d, BatchNorm)
    hooked = any(module._forward_pre_hooks or module._forward_hooks for module in (conv, norm))
    return plain and not hooked and not norm.training and norm.running_mean is not None


def check_channels(n_channels_in: int, n_channels: int) -> None:
    """Check numbers of channels. A single value, as in a 1x1 image with one channel, cannot be normalised.

    Raises:
        InputError: names the argument and its value.
    """
    if n_channels_in not in (1, 3):
        raise InputError(f"n_channels_in is {n_channels_in}, expected 3 (colours) or 1 (their mean)")
    if n_channels < 2:
        raise InputError(f"n_channels is {n_channels}, expected an integer of at least 2")


def check_kernel_size(kernel_size: int) -> None:
    """Check that a kernel is odd, so that it is centred on its cell, and larger than a cell.

    A kernel of one cell would see nothing of what is around it. If it is strided, it would also skip most cells, and on
    a CPU, torch 2.14 writes its gradient beyond the memory it has.

    Raises:
        InputError: for an even size or one below 3.
    """
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise InputError(f"kernel_size is {kernel_size}, expected an odd integer of at least 3")


class ConvBlock(nn.Sequential):
    """Convolution, normalisation and ReLU, `(B, in, H, W) -> (B, out, H, W)`."""

    conv_norm_pairs = (("0", "1"),)

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
            normalization(out_channels),
            nn.ReLU(inplace=True),
        )


class DownBlock(nn.Sequential):
    """Strided convolution, normalisation and ReLU, `(B, in, H, W) -> (B, out, H / 2, W / 2)` for even H and W."""

    conv_norm_pairs = (("0", "1"),)

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride=2, padding=kernel_size // 2, bias=False),
            normalization(out_channels),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, `(B, C, H, W) -> (B, C, H, W)`.

    After He et al. 2016, Deep Residual Learning for Image Recognition. A new block only passes on its input: the scale
    of its last normalisation starts at 0 (Goyal et al. 2017).
    """

    conv_norm_pairs = (("conv2", "norm2"),)

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.block1 = ConvBlock(channels, channels, kernel_size)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm2 = normalization(channels)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the block computes to its input."""
        return F.relu(x + self.norm2(self.conv2(self.block1(x))))


class UpBlock(nn.Module):
    """Doubles the resolution and merges the encoder's features of that resolution.

    `(B, in, H, W), (B, skip, 2 H, 2 W) -> (B, out, 2 H, 2 W)`.
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        # Before the upsampling, the 1x1 convolution costs a quarter of what it would cost after it.
        self.reduce = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.merge = ConvBlock(out_channels + skip_channels, out_channels, kernel_size)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Upsample `x` and merge it with `skip`."""
        x = F.interpolate(self.reduce(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.merge(torch.cat((x, skip), dim=1))
