"""What the data module passes to the model: one batch of images with their keypoints.

B batch, C channels, K keypoints, H W image, h w heatmap.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from keypoint_detection.heatmaps import transform_points


class Batch(NamedTuple):
    """A batch of images, their keypoints and what is needed to map predictions back to the image files.

    Attributes:
        images: `(B, 3, H, W)` float32 RGB in [0, 1]. Images smaller than the largest of the batch are padded with 0 at
            the right and the bottom.
        keypoints: `(B, C, K, 2)` float32 xy in continuous pixels of `images`. NaN stands for no keypoint. K is the
            largest number of keypoints that a channel has in the batch, at least 1, and larger if images were mixed.
        heatmaps: `(B, C, h, w)` float32 in [0, 1] with `h = ceil(H / stride)`, or None until they are rendered.
        sizes: `(B, 2)` int64, height and width of the part of each image that is not padding. They stay on the CPU,
            where they are read, when the rest goes to a device.
        labelled: `(B, C)` bool. False leaves the channel of that image out of the loss and the metrics.
        transforms: `(B, 3, 3)` float64 homographies from pixels of `images` to pixels of the image file; for a mixed
            image, to the file that its index refers to. On Apple's GPUs, which have no float64, they are float32.
        indices: `(B,)` int64, the position of each sample in its annotations; -1 for a blank image that has none.
    """

    images: Tensor
    keypoints: Tensor
    heatmaps: Tensor | None
    sizes: Tensor
    labelled: Tensor
    transforms: Tensor
    indices: Tensor

    def file_keypoints(self) -> Tensor:
        """True keypoints in pixels of the image files, `(B, C, K, 2)` float64 on the CPU, NaN for none."""
        return transform_points(self.keypoints.cpu().double(), self.transforms.cpu().double())

    def file_diagonals(self) -> Tensor:
        """Diagonals of the image files in pixels, `(B, 1, 1, 1)` float64 on the CPU, to divide points by."""
        return self.file_sizes().norm(dim=1)[:, None, None, None]

    def file_sizes(self) -> Tensor:
        """Width and height of the image files in pixels, `(B, 2)` float64 on the CPU."""
        corners = self.sizes.cpu().flip(1).double()
        return transform_points(corners, self.transforms.cpu().double()).round()
