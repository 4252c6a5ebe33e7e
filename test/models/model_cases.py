"""Small backbones, batches and a trainer that several tests of the models share."""

import pytorch_lightning as pl
import torch

from keypoint_detection.batch import Batch

# Arguments that keep each backbone small; a newcomer without an entry is tested with its defaults.
SMALL = {
    "Unet": {"n_channels": 8, "n_downsampling_layers": 3, "n_resnet_blocks": 1},
    "DilatedCnn": {"n_channels": 8, "dilations": [1, 2, 1]},
    "S3K": {"n_channels": 8, "n_resnet_blocks": 1},
    "Smp": {"encoder": "tu-convnext_atto", "decoder_channels": [16]},
}


def quiet_trainer(**arguments):
    """A trainer on the CPU that shows and writes nothing."""
    return pl.Trainer(
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accelerator="cpu",
        **arguments,
    )


def make_batch(seed=0, images=2, channels=3, keypoints=2, size=(48, 40), labelled=True):
    """A batch of noise with random keypoints at least two pixels inside of each image."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    xy = torch.rand(images, channels, keypoints, 2, generator=generator) * torch.tensor([width - 4.0, height - 4.0]) + 2
    return Batch(
        images=torch.rand(images, 3, height, width, generator=generator),
        keypoints=xy,
        heatmaps=None,
        sizes=torch.tensor([[height, width]] * images),
        labelled=torch.full((images, channels), labelled),
        transforms=torch.eye(3, dtype=torch.float64).expand(images, 3, 3).clone(),
        indices=torch.arange(images),
    )
