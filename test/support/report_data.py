"""Random detections and true keypoints in the form of a report's data."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from keypoint_detection.report import ReportData, ReportImage


def random_images(seed, channels=3, images=6, width=60, height=40, pictures=None, heatmaps=False):
    """Images whose detections lie near true keypoints, near those of other channels, or anywhere.

    Some scores and positions are whole tenths and whole pixels, so that ties occur; some channels are not labelled.
    Pictures are written to the folder `pictures`.
    """
    rng = np.random.default_rng(seed)
    result = []
    for index in range(images):
        truths = [rng.uniform(0, [width, height], (rng.integers(0, 5), 2)) for _ in range(channels)]
        everywhere = np.concatenate([*truths, rng.uniform(0, [width, height], (3, 2))])
        xy, scores = [], []
        for channel in range(channels):
            near = np.concatenate([truths[channel], everywhere[rng.random(len(everywhere)) < 0.4]])
            points = near + rng.normal(0, 1.5, near.shape)
            xy.append(np.where(rng.random((len(points), 1)) < 0.3, points.round(), points).astype(np.float32))
            values = rng.random(len(points))
            scores.append(np.where(rng.random(len(points)) < 0.5, values.round(1), values).astype(np.float32))
        picture = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        path = pictures and pictures / f"image {index}.png"
        if path:
            Image.fromarray(picture).save(path)
        result.append(
            ReportImage(
                name=f"folder/image {index}.png",
                width=width,
                height=height,
                truths=[values.astype(np.float32) for values in truths],
                xy=xy,
                scores=scores,
                labelled=rng.random(channels) < 0.9,
                path=path,
                heatmaps=rng.random((channels, height // 2, width // 2)).astype(np.float32) if heatmaps else None,
            )
        )
    return result


def random_report(seed=0, names=("nose", "paws", "tail"), **options):
    """A report's data over `random_images`."""
    images = random_images(seed, len(names), **options)
    steps = [0.0, 1.0, 2.0]
    curves = {
        "train/loss": (steps, [0.5, 0.2, 0.1]),
        "validation/loss": (steps, [0.6, float("nan"), 0.2]),
        "validation/meanAP": (steps, [0.1, 0.4, 0.6]),
        f"validation/AP/{names[0]}/d=2": (steps, [0.1, 0.5, 0.7]),
    }
    return ReportData("Test report", names, (2.0, 4.0), images, curves=curves, run_info={"checkpoint": "best.ckpt"})


def payload_of(page):
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def image_of(truths, detections, **fields):
    """An image from `[(x, y)]` and `[(x, y, score)]` per channel."""
    rows = [np.array(channel, np.float32).reshape(-1, 3) for channel in detections]
    truths = [np.array(channel, np.float32).reshape(-1, 2) for channel in truths]
    xy, scores = [row[:, :2] for row in rows], [row[:, 2] for row in rows]
    fields = {"name": "a.png", "width": 100, "height": 80, "labelled": np.ones(len(rows), bool), **fields}
    return ReportImage(truths=truths, xy=xy, scores=scores, **fields)
