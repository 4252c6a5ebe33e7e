"""Faster 3x3 convolutions for inference on CPUs, by Winograd's algorithm.

Lavin and Gray 2016, Fast Algorithms for Convolutional Neural Networks: tiles of 6x6 outputs take a quarter of the
multiplications. NNPACK, which comes with torch, does this on CPUs; torch's own choice is a direct convolution.

B batch, H W image or feature map.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

# With fewer channels than this the transforms of the tiles cost more than the multiplications that they save.
_LEAST_CHANNELS = 32


class WinogradConv2d(nn.Module):
    """A trained 3x3 convolution of stride 1, equal to rounding, without gradients; `(B, in, H, W) -> (B, out, H, W)`.

    Args:
        convolution: The convolution whose weights it takes.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        bias = torch.zeros(convolution.out_channels) if convolution.bias is None else convolution.bias.detach()
        self.register_buffer("weight", convolution.weight.detach().contiguous())
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return torch._nnpack_spatial_convolution(x.contiguous(), self.weight, self.bias, [1, 1], [1, 1])


def is_faster() -> bool:
    """Whether Winograd's algorithm pays: on CPUs without AVX-512, whose direct convolutions are slow, in one thread.

    NNPACK has threads of its own, which compete for the cores with those of torch.
    """
    available = hasattr(torch, "_nnpack_spatial_convolution") and torch.backends.nnpack.is_available()
    return available and torch.get_num_threads() == 1 and torch.backends.cpu.get_cpu_capability() == "AVX2"


def with_winograd(network: nn.Module) -> nn.Module:
    """Copy a trained network on the CPU, with Winograd's algorithm wherever that is faster.

    Args:
        network: The network, in evaluation mode.

    Returns:
        A copy that computes the same up to rounding and is not to be trained, or the network itself where nothing
        is gained.
    """
    chosen = [name for name, module in network.named_modules() if _is_suited(module)]
    if not chosen or not is_faster():
        return network
    result = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    for name in chosen:
        result.set_submodule(name, WinogradConv2d(result.get_submodule(name)))
    return result


def _is_suited(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and (module.kernel_size, module.stride, module.dilation) == ((3, 3), (1, 1), (1, 1))
        and (module.padding, module.padding_mode, module.groups) == ((1, 1), "zeros", 1)
        and min(module.in_channels, module.out_channels) >= _LEAST_CHANNELS
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
    )
