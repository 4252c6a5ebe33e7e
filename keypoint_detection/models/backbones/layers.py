"""Building blocks that the backbones share.

B batch, H W image or feature map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from keypoint_detection.errors import InputError


def normalization(channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu and He 2018) in up to 8 groups of at least 4 channels, where that divides.

    It does not look at other images of the batch, so that batches of one train as well, and that training and
    inference compute the same.
    """
    return nn.GroupNorm(math.gcd(channels, max(1, min(8, channels // 4))), channels)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation (Ioffe and Szegedy 2015) over the images of all processes.

    They keep the same statistics, and train as one process does with all of their images. A single value per channel
    has no spread: the coarsest level of a network comes to that with an image that is left over for a last batch, and
    is normalised as in inference then.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` -> the same shape."""
        if not self.training:
            return super().forward(x)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            return self._over_processes(x)
        if x.numel() == self.num_features:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)

    def _over_processes(self, x: Tensor) -> Tensor:
        """On any device, where torch's own normalisation over processes takes GPUs alone."""
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        count = values.new_tensor([values[:, 0].numel()])
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
    """The sum of a tensor over all processes, of which each process has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOfProcesses.forward(ctx, gradient)


def replace_normalization(module: nn.Module, old: type[nn.Module], new: Callable[[Any], nn.Module]) -> None:
    """Replaces all normalisations of a kind inside of a module, with their scales and shifts.

    Args:
        module: What holds them.
        old: Their class.
        new: Makes one in the place of another.
    """
    for name, child in module.named_children():
        if isinstance(child, old):
            replacement = new(child)
            kept = {key: value for key, value in child.state_dict().items() if key in ("weight", "bias")}
            replacement.load_state_dict(kept, strict=False)
            setattr(module, name, replacement)
        else:
            replace_normalization(child, old, new)


def fold_normalization(module: nn.Module) -> nn.Module:
    """Makes batch normalisations part of the convolutions before them, where that is known to be right.

    That is where a plain `nn.Sequential` holds the two one after the other, and where a module lists them as
    `conv_norm_pairs`, names of its own. The result computes the same but for rounding, in less time.

    Args:
        module: Changed in place. It must be in evaluation mode, and is not for training any more.

    Returns:
        The module.
    """
    for parent in list(module.modules()):
        pairs = list(getattr(parent, "conv_norm_pairs", ()))
        if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
            pairs += itertools.pairwise(parent._modules)
        for first, second in pairs:
            conv, norm = getattr(parent, first), getattr(parent, second)
            # Subclasses, such as those of timm, may standardise the kernels or go on with an activation.
            plain = type(conv) is nn.Conv2d and type(norm) in (nn.BatchNorm2d, BatchNorm)
            if plain and norm.track_running_stats:
                folded = fuse_conv_bn_eval(conv, norm)
                setattr(parent, first, folded.to(memory_format=torch.channels_last))
                setattr(parent, second, nn.Identity())
    return module


def check_channels(n_channels_in: int, n_channels: int) -> None:
    """Check numbers of channels. One value in all, as a 1x1 image of one channel has, cannot be normalised.

    Raises:
        InputError: names the argument and its value.
    """
    for name, value, least in (("n_channels_in", n_channels_in, 1), ("n_channels", n_channels, 2)):
        if value < least:
            raise InputError(f"{name} is {value}, expected an integer of at least {least}")


def check_kernel_size(kernel_size: int) -> None:
    """Check that a kernel is odd, so that it is centred on its cell.

    Raises:
        InputError: for an even size or one below 1.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise InputError(f"kernel_size is {kernel_size}, expected an odd integer such as 3")


class ConvBlock(nn.Sequential):
    """Convolution, normalisation and ReLU, `(B, in, H, W) -> (B, out, H, W)`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
            normalization(out_channels),
            nn.ReLU(inplace=True),
        )


class DownBlock(nn.Sequential):
    """Strided convolution, normalisation and ReLU, `(B, in, H, W) -> (B, out, H / 2, W / 2)` for even H and W."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride=2, padding=kernel_size // 2, bias=False),
            normalization(out_channels),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, `(B, C, H, W) -> (B, C, H, W)`.

    After He et al. 2016, Deep Residual Learning for Image Recognition. A new block passes its input on: the scale of
    its last normalisation starts at 0 (Goyal et al. 2017).
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
        # The 1x1 convolution comes before the upsampling, where it costs a quarter.
        self.reduce = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.merge = ConvBlock(out_channels + skip_channels, out_channels, kernel_size)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Upsample `x` and merge it with `skip`."""
        x = F.interpolate(self.reduce(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.merge(torch.cat((x, skip), dim=1))
