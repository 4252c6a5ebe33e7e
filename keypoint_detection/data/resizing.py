"""A whole batch at a smaller size, for the part of a training that need not see every pixel.

B batch, C channels, K keypoints, H W image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from keypoint_detection.batch import Batch

# Images are not shrunk below this side in pixels: small ones have no detail to spare.
SMALLEST_SIDE = 128


def shrink_batch(batch: Batch, scale: float) -> Batch:
    """Shrinks the images of a batch and moves everything else with them.

    Args:
        batch: The batch; its heatmaps are dropped, since they would not fit.
        scale: Factor of the size, in (0, 1]. No side is shrunk below `SMALLEST_SIDE` by it.

    Returns:
        The batch at the new size, with the exact keypoints and transforms, or the same batch where nothing shrinks.
    """
    height, width = batch.images.shape[-2:]
    scale = max(scale, min(1.0, SMALLEST_SIDE / min(height, width)))
    new_height, new_width = round(height * scale), round(width * scale)
    if (new_height, new_width) == (height, width):
        return batch
    factors = batch.keypoints.new_tensor([new_width / width, new_height / height])
    back = torch.diag(torch.cat([1 / factors, factors.new_ones(1)])).to(batch.transforms)
    sizes = torch.ceil(batch.sizes * factors.flip(0)).long()
    return batch._replace(
        images=F.interpolate(batch.images, (new_height, new_width), mode="bilinear", antialias=True),
        keypoints=batch.keypoints * factors,
        heatmaps=None,
        sizes=sizes.minimum(sizes.new_tensor([new_height, new_width])),
        transforms=batch.transforms @ back,
    )
