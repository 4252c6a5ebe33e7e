"""What an evaluation keeps of a batch."""

from pathlib import Path
from types import SimpleNamespace

import torch

from keypoint_detection.batch import Batch
from keypoint_detection.evaluation_pass import EvaluatedImages


def test_labels_of_a_shrunk_image_are_compared_in_pixels_of_its_file():
    annotations = SimpleNamespace(channel_names=("a",), name=lambda index: "a.png", path=lambda index: Path("a.png"))
    evaluated = EvaluatedImages(annotations, [2.0])
    batch = Batch(
        images=torch.zeros(1, 3, 20, 30),
        keypoints=torch.tensor([[[[10.0, 5.0]]]]),
        heatmaps=None,
        sizes=torch.tensor([[20, 30]]),
        labelled=torch.ones(1, 1, dtype=torch.bool),
        transforms=torch.diag(torch.tensor([2.0, 2.0, 1.0])).double()[None],
        indices=torch.tensor([0]),
    )
    evaluated.add(batch, torch.tensor([[[[20.0, 10.0]]]], dtype=torch.float64), torch.tensor([[[0.9]]]))
    values, image = evaluated.values(), evaluated.images[0]
    assert (values["meanAP"], values["median_distance"]) == (1, 0)
    assert (image.width, image.height) == (60, 40)
    assert image.truths[0].tolist() == [[20, 10]]
