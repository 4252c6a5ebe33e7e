"""Base class of all backbones: images of any size in, features at a fixed stride out.

B batch, H W image, h w heatmap.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keypoint_detection.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """Base of the backbones: normalises, pads and crops, so that a subclass only computes features.

    A subclass sets up its layers and implements `features`. To use your own backbone, register it with
    `BACKBONES["Mine"] = Mine` and choose it by that name. Its constructor takes `heatmap_stride` and its own typed
    arguments by keyword. Your own blocks predict faster if they declare where a batch normalisation follows a
    convolution, see `layers.fold_normalization`.

    Args:
        heatmap_stride: Pixels of the image per cell of the output.
        n_channels_in: Channels of the images. With 1, RGB images are averaged to gray first.
        out_channels: Channels of the output.
        size_divisor: The images that `features` gets have a height and width that are multiples of this.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, heatmap_stride: int, n_channels_in: int, out_channels: int, size_divisor: int) -> None:
        super().__init__()
        if heatmap_stride not in (1, 2, 4):
            raise InputError(f"heatmap_stride is {heatmap_stride}, expected 1, 2 or 4")
        if size_divisor % heatmap_stride:
            raise ValueError(f"size_divisor {size_divisor} is not a multiple of heatmap_stride {heatmap_stride}")
        self.heatmap_stride = heatmap_stride
        self.n_channels_in = n_channels_in
        self.out_channels = out_channels
        self.size_divisor = size_divisor
        if n_channels_in == 3:
            self.set_normalization(IMAGENET_MEAN, IMAGENET_STD)
        else:
            gray_mean, gray_std = sum(IMAGENET_MEAN) / 3, sum(IMAGENET_STD) / 3
            self.set_normalization((gray_mean,) * n_channels_in, (gray_std,) * n_channels_in)

    def set_normalization(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Set the mean and standard deviation, per channel of images in [0, 1], for normalising images."""
        self.register_buffer("image_mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("image_std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def features(self, images: Tensor) -> Tensor:
        """Compute the features of normalised images whose height and width are multiples of `size_divisor`.

        Args:
            images: `(B, n_channels_in, H, W)`.

        Returns:
            `(B, out_channels, H / heatmap_stride, W / heatmap_stride)`.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Compute features of images of any size.

        Args:
            images: `(B, n_channels_in, H, W)` in [0, 1], H and W at least 1.

        Returns:
            `(B, out_channels, ceil(H / heatmap_stride), ceil(W / heatmap_stride))`.

        Raises:
            InputError: If `features` does not return a tensor with the expected number of channels and size.
        """
        height, width = images.shape[-2:]
        if self.n_channels_in == 1 and images.shape[1] == 3:
            images = images.mean(dim=1, keepdim=True)
        scale = self.image_std.reciprocal()
        images = (images * scale).add_(-self.image_mean * scale)
        right, bottom = -width % self.size_divisor, -height % self.size_divisor
        # An exported graph always pads, because it has to work for all sizes.
        if torch.compiler.is_compiling() or right or bottom:
            # Padding at the right and bottom keeps cell (0, 0) at the image's origin; 0 is the mean colour here.
            images = F.pad(images, (0, right, 0, bottom))
        # With this layout, convolutions are faster on CPUs and GPUs. Normalising colours is faster without it.
        features = self.features(images.contiguous(memory_format=torch.channels_last))
        if not torch.compiler.is_compiling():
            self._check_features(features, *images.shape[-2:])
        return features[..., : -(-height // self.heatmap_stride), : -(-width // self.heatmap_stride)]

    def _check_features(self, features: Tensor, height: int, width: int) -> None:
        """Checks the features of a padded image: larger ones would be cropped, and trained at the wrong scale."""
        if not isinstance(features, Tensor):
            raise InputError(
                f"backbone {type(self).__name__}: features are a {type(features).__name__}, expected a tensor"
            )
        expected = (self.out_channels, height // self.heatmap_stride, width // self.heatmap_stride)
        if features.shape[1:] != expected:
            got, wanted = ("x".join(map(str, shape)) for shape in (features.shape[1:], expected))
            raise InputError(
                f"backbone {type(self).__name__}: features of {height}x{width} pixels are {got}, expected {wanted}, "
                "that is, out_channels, and height and width divided by heatmap_stride"
            )

    def encoder_modules(self) -> list[nn.Module]:
        """Return the modules that `encoder_learning_rate_factor` and `freeze_encoder_epochs` act on, [] for none."""
        return []

    def untrained_modules(self) -> list[nn.Module]:
        """Return the modules whose weights start at random; only kernels in these get Muon's orthogonal steps."""
        return [self]

    def load_pretrained(self) -> None:
        """Load weights that were trained elsewhere. This is called once, when a detector is built from scratch."""
